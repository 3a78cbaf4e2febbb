"""Guest memory on its way out: a passenger beside the device, with the same life.

What was written since is asked of two: of the write tracker for what the guest's own instructions
wrote, and of the device's DMA log for what the device did. Pages go once while everything runs, then
again as they were written, and the last of them while guest and device stand still.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from precopy.engine import messages, pages
from precopy.engine.channel import MEMORY, Channel
from precopy.engine.outcome import reason_of
from precopy.engine.report import MemoryReport
from precopy.memory.tracker import WriteTracker, tracker_for
from precopy.pci.memory import PAGE_SIZE
from precopy.vfio.device import DmaRange, VfioDevice
from precopy.vfio.dirty_bits import count_bits, set_runs
from precopy.vfio.guest import Guest
from precopy.vfio.uapi import Feature

#: Windows that nothing in them was written are passed over this many at a time.
_WINDOW_BYTES = pages.WINDOW // 8


class MemorySource:
    """The memory of ``guest`` on ``device``; ``check`` is called between pieces and may raise.

    ``log_page_size``: the hint for the device's DMA log, bytes; a device may choose another.
    """

    def __init__(
        self,
        guest: Guest,
        device: VfioDevice,
        channel: Channel,
        check: Callable[[], object],
        tracking: str = "auto",
        log_page_size: int = PAGE_SIZE,
    ) -> None:
        memory = guest.memory
        self._guest, self._memory, self._device, self._channel = guest, memory, device, channel
        self._check, self._kind, self._log_page_size = check, tracking, log_page_size
        self._rows = [pages.rows(region.view) for region in memory.regions]
        self._dirty = [np.zeros(-(-len(each) // 64) * 8, dtype=np.uint8) for each in self._rows]
        self._room = np.empty((pages.FRAME_PAGES, PAGE_SIZE), dtype=np.uint8)
        self._tracker: WriteTracker | None = None
        self._logging = self._stopped = False
        self._collected = 0.0
        self._sending = 0.0
        #: Told to people: why it is not tracked, or what had to be sent again.
        self.notes: list[str] = []
        self.report = MemoryReport(size=memory.size)

    @property
    def tracked(self) -> bool:
        return self._tracker is not None

    @property
    def remaining_bytes(self) -> int:
        """Bytes of the pages that have to be moved, as of the last :meth:`collect`."""
        return sum(count_bits(each) for each in self._dirty) * PAGE_SIZE

    @property
    def sending_seconds(self) -> float:
        """How long pages have been on their way, in all."""
        return self._sending

    # --- Its life -----------------------------------------------------------------------------

    def begin(self) -> bool:
        """Begin to track, and take all that was ever written as dirty; whether it can be tracked.

        Where it can't, all of it has to be moved while everything stands still.
        """
        self._take_all()
        if Feature.DMA_LOGGING_START not in self._device.features():
            self.notes.append("the device keeps no log of its DMA: memory is moved while stopped")
            return False
        try:
            self._start_log()
        except OSError as error:
            what = f"the device can't log its DMA ({reason_of(error)})"
            self.notes.append(f"{what}: memory is moved while stopped")
            return False
        try:
            tracker = tracker_for(self._memory, self._kind, still=self._still)
            tracker.start()
        except BaseException:
            self._stop_log()
            raise
        self._tracker = tracker
        # What was written before tracking began is there now.
        self._take_all()
        self._collected = time.monotonic()
        self.report.tracking = f"{tracker.name}, DMA log of the device"
        return True

    @contextlib.contextmanager
    def _still(self) -> Iterator[None]:
        """No instruction of the guest's is carried out meanwhile."""
        if self._stopped:
            yield
            return
        self._guest.pause()
        try:
            yield
        finally:
            self._guest.start()

    def _start_log(self) -> None:
        ranges = [DmaRange(*spec) for spec in self._memory.specs]
        # A range has to be made of whole pages of the log's.
        ends = itertools.chain.from_iterable(ranges)
        self._device.log_start(ranges, math.gcd(self._log_page_size, *ends))
        self._logging = True

    def _stop_log(self) -> None:
        if self._logging:
            self._logging = False
            with contextlib.suppress(OSError):
                self._device.log_stop()

    def end(self) -> None:
        """Stop tracking and let go of the memory; a second call does nothing."""
        self._rows = []
        tracker, self._tracker = self._tracker, None
        if tracker is not None:
            tracker.stop()
        self._stop_log()

    def _take_all(self) -> None:
        """Everything that was ever written is dirty."""
        for extent in self._memory.extents():
            first = extent.offset // PAGE_SIZE
            last = -(-(extent.offset + extent.length) // PAGE_SIZE) - 1
            set_runs(self._dirty[extent.region], np.array([first]), np.array([last]))

    # --- Rounds -------------------------------------------------------------------------------

    def collect(self, *, stopped: bool = False) -> None:
        """Ask what was written since the last time. ``stopped``: nothing writes any more.

        Where nothing is tracked that is known only then: all that was ever written.
        """
        if self._tracker is None:
            if stopped:
                self._take_all()
            return
        self._stopped = stopped
        began = time.monotonic()
        before = self.remaining_bytes
        for index in range(len(self._rows)):
            self._tracker.collect(index, self._dirty[index])
        self._ask_device(stopped)
        now = time.monotonic()
        elapsed = now - self._collected
        if elapsed > 0 and not stopped:
            self.report.dirty_rate = (self.remaining_bytes - before) / elapsed
        self._collected = now
        self.report.collect_seconds = now - began

    def _ask_device(self, stopped: bool) -> None:
        try:
            for spec, dirty in zip(self._memory.specs, self._dirty, strict=True):
                self._device.log_report(spec.iova, spec.length, PAGE_SIZE, memoryview(dirty.data))
        except OSError as error:
            # What the log has lost nobody knows: all of it may have been written.
            self.notes.append(
                f"the device lost its DMA log ({reason_of(error)}): memory is sent again"
            )
            self._take_all()
            if not stopped:
                self._stop_log()
                self._start_log()
                self._take_all()

    def send(self) -> int:
        """Send what is dirty; bytes of the pages that went, zeroes among them."""
        began = time.monotonic()
        moved = 0
        for index, dirty in enumerate(self._dirty):
            moved += self._send_region(index, dirty)
        self._sending += time.monotonic() - began
        self.report.rounds.append(moved)
        return moved

    def _send_region(self, index: int, dirty: NDArray[np.uint8]) -> int:
        moved = 0
        words = dirty.view(np.uint64)
        per_window = _WINDOW_BYTES // 8
        nonzero = np.flatnonzero(words)
        for window in np.unique(nonzero // per_window).tolist():
            low = window * _WINDOW_BYTES
            part = dirty[low : low + _WINDOW_BYTES]
            bits = np.flatnonzero(np.unpackbits(part, bitorder="little"))
            # What is written from now on is told by the next collect.
            part[:] = 0
            moved += len(bits) * PAGE_SIZE
            self._send_window(index, window * pages.WINDOW, bits)
        return moved

    def _send_window(self, index: int, first: int, indexes: NDArray[np.int64]) -> None:
        for at in range(0, len(indexes), pages.FRAME_PAGES):
            self._check()
            some = indexes[at : at + pages.FRAME_PAGES]
            # A copy, since the guest goes on writing: checksum and frame have to agree.
            copied = self._copy(self._rows[index], first, some)
            if self._tracker is not None and not self._stopped:
                self._tracker.copied(index, first + some, copied)
            zero = pages.is_zero(copied)
            if zero.any():
                copied = copied[~zero]
            sent = some[~zero]
            # Counted with the frames, so that none of both can be lost or change places.
            told = messages.encode("pages", **pages.describe(index, first, sent, some[zero]))
            self._channel.send_control(told)
            self._channel.count_sent(MEMORY, told)
            if len(sent):
                self._channel.send_memory(memoryview(copied.data).cast("B"))
            self.report.sent_bytes += len(sent) * PAGE_SIZE
            self.report.zero_bytes += (len(some) - len(sent)) * PAGE_SIZE

    def _copy(self, memory: pages.Pages, first: int, some: NDArray[np.int64]) -> pages.Pages:
        room = self._room[: len(some)]
        low = first + int(some[0])
        if int(some[-1]) - int(some[0]) + 1 == len(some):
            np.copyto(room, memory[low : low + len(some)])
        else:
            np.take(memory, first + some, axis=0, out=room, mode="clip")
        return room
