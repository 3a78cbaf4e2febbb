"""The page tracker: DMA logging of one VF, from start to stop.

As in the kernel's driver: a CQ, a pair of RC QPs in loopback (one for the firmware to send from, one
that receives into buffers under a memory key) and a PAGE_TRACK object. A report asks the object for a
range; the firmware answers with messages of page addresses, the last of which says so.
"""

import contextlib
import enum
import errno
import itertools
import mmap
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from precopy.mlx5.buffers import DataBuffer, Direction, pages_for
from precopy.mlx5.capabilities import Capabilities
from precopy.mlx5.commands import PAGE_SIZE, Commands, Queue, ReceiveQueue
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.general_object import (
    ENTRY_BYTES,
    ENTRY_DTYPE,
    EQE_OBJECT_ID,
    IMMEDIATE_SHIFT,
    PageTrackState,
)
from precopy.mlx5_abi.port import DoorbellPort
from precopy.mlx5_abi.wqe import CqeOpcode, EventType
from precopy.vfio.device import DmaRange
from precopy.vfio.dirty import Addresses, DirtyBitmap, Interval, Intervals, merge_ranges
from precopy.vfio.errors import refuse

#: Room for messages; for at least so many of them.
_RECEIVE_BYTES, _MIN_MESSAGES = 2 << 20, 4
_RECEIVE_ENTRY = 16

_LOG_EQ = 8
_QP_EVENTS = frozenset(
    {EventType.WQ_CATAS_ERROR, EventType.WQ_INVAL_REQ_ERROR, EventType.WQ_ACCESS_ERROR}
)
_EVENTS = sum(1 << kind for kind in (EventType.CQ_ERROR, EventType.OBJECT_CHANGE, *_QP_EVENTS))

#: Where the queues stand in the PF's address space: far from what else is mapped there.
_IOVAS = itertools.count(1 << 62, 1 << 32)

#: Doorbell records, in the first page of the queues.
_CQ_RECORD, _QP_RECORD = 0, 64

#: How long a silent firmware is waited for before it is asked for the object's state, in seconds.
_ASK_AFTER = 1.0


class _Area(enum.IntEnum):
    """What the memory of the queues is made of, in this order."""

    RECORDS = 0
    CQ = 1
    RQ = 2
    EQ = 3


class _QueueMemory:
    """Memory for doorbell records, CQ, receive queue and EQ, mapped for DMA of the PF."""

    def __init__(self, commands: Commands, log_entries: int) -> None:
        sizes = {
            _Area.RECORDS: PAGE_SIZE,
            _Area.CQ: wqe.CQE_BYTES << log_entries,
            _Area.RQ: _RECEIVE_ENTRY << log_entries,
            _Area.EQ: wqe.EQE_BYTES << _LOG_EQ,
        }
        logs = {_Area.CQ: log_entries, _Area.RQ: log_entries, _Area.EQ: _LOG_EQ}
        #: Where each area begins in ``view``.
        self.at: dict[_Area, int] = {}
        end = 0
        for area, size in sizes.items():
            self.at[area] = end
            end += pages_for(size) * PAGE_SIZE
        self.iova = next(_IOVAS)
        try:
            self.view = memoryview(mmap.mmap(-1, end))
        except (OSError, OverflowError) as error:
            raise refuse(errno.ENOMEM, f"no room for {end} bytes of queues: {error}") from error
        self.queues = {
            area: Queue(self.iova + self.at[area], pages_for(sizes[area]), log)
            for area, log in logs.items()
        }
        # Entries never written belong to the adapter.
        for base, count in (
            (self.at[_Area.CQ], 1 << log_entries),
            (self.at[_Area.EQ], 1 << _LOG_EQ),
        ):
            last_bytes = np.frombuffer(self.view, dtype=np.uint8)[base : base + 64 * count]
            last_bytes[wqe.CQE_OP_OWN :: 64] = wqe.CQE_INVALID_BYTE
        self._dma = commands.port.dma
        self._dma.map(self.iova, self.view)

    def free(self) -> None:
        self._dma.unmap(self.iova)


class PageTracker:
    """Tracks the writes of VHCA ``caps.vhca_id`` to ``ranges``, which are ascending and do not overlap.

    ``page_size`` is a hint and a power of two; ``vector`` is an MSI-X vector of the PF that nobody
    else uses. OSError: EOPNOTSUPP where the adapter can't track so much, or what a command gives;
    then nothing is left. The caller lets one thread in at a time.
    """

    #: Seconds that a report may stand still.
    patience = 60.0

    def __init__(
        self,
        commands: Commands,
        port: DoorbellPort,
        caps: Capabilities,
        vector: int,
        ranges: Sequence[DmaRange],
        page_size: int,
    ) -> None:
        assert caps.page_track is not None
        limits = caps.page_track
        self._commands, self._port = commands, port
        self._ranges: list[Interval] = [(iova, iova + length - 1) for iova, length in ranges]
        tracked = merge_ranges(ranges, limits.max_ranges)
        log_addr_space = (sum(length for _, length in tracked) - 1).bit_length()
        if not limits.log_min_addr_space <= log_addr_space <= limits.log_max_addr_space:
            what = f"the adapter tracks 2^{limits.log_min_addr_space} to 2^{limits.log_max_addr_space} bytes"
            raise refuse(errno.EOPNOTSUPP, f"{what}, not 2^{log_addr_space}")
        log_page = page_size.bit_length() - 1
        log_page = min(max(log_page, limits.log_min_page_size), limits.log_max_page_size)
        #: Bytes of a page that is tracked.
        self.page_size = 1 << log_page
        self._message_bytes = 1 << limits.log_max_msg_size
        receive_bytes = max(_RECEIVE_BYTES, _MIN_MESSAGES * self._message_bytes)
        self._log_entries = (-(-receive_bytes // self._message_bytes) - 1).bit_length()
        #: Entries posted to the receive queue, and consumed from CQ and EQ.
        self._posted = self._cq_consumer = self._eq_consumer = self._arm_sn = 0
        self._woken = threading.Event()
        self._object_changed = False
        #: Why what was tracked is lost.
        self._broken = ""
        #: Written bytes of pages that were reported before the page's other bytes.
        self._left = Intervals()
        with contextlib.ExitStack() as stack:
            self._undo = stack
            self._start(caps, vector, tracked, log_addr_space, log_page, receive_bytes)
            self._undo = stack.pop_all()

    def _on_stop(self, undo: Callable[..., object], *args: object) -> None:
        """Call ``undo`` when tracking stops. A firmware that refuses leaks its object only."""

        def leave() -> None:
            with contextlib.suppress(OSError):  # nobody is left to whom it could be told
                undo(*args)

        self._undo.callback(leave)

    def _start(
        self,
        caps: Capabilities,
        vector: int,
        tracked: Sequence[DmaRange],
        log_addr_space: int,
        log_page: int,
        receive_bytes: int,
    ) -> None:
        commands, later = self._commands, self._on_stop
        self._memory = memory = _QueueMemory(commands, self._log_entries)
        later(memory.free)
        queues = memory.queues
        self._uar = uar = commands.alloc_uar()
        later(commands.dealloc_uar, uar)
        pd = commands.alloc_pd()
        later(commands.dealloc_pd, pd)
        self._port.set_interrupt(vector, self._woken.set)
        later(self._port.set_interrupt, vector, None)
        self._eqn = commands.create_eq(uar, vector, _EVENTS, queues[_Area.EQ])
        later(commands.destroy_eq, self._eqn)
        record = memory.iova + _CQ_RECORD
        self._cqn = commands.create_cq(uar, self._eqn, record, queues[_Area.CQ])
        later(commands.destroy_cq, self._cqn)
        self._arm()
        receive = ReceiveQueue(queues[_Area.RQ], memory.iova + _QP_RECORD, self._cqn)
        version = caps.cqe_version
        host = commands.create_qp(pd, uar, cqe_version=version, receive=receive)
        later(commands.destroy_qp, host)
        pages = pages_for(receive_bytes)
        self._buffer = DataBuffer(commands, pd, pages, Direction.FROM_DEVICE)
        later(self._buffer.free)
        firmware = commands.create_qp(pd, uar, cqe_version=version)
        later(commands.destroy_qp, firmware)
        self._qpns = {host, firmware}
        commands.rst2init_qp(host)
        for index in range(1 << self._log_entries):
            self._post(index)
        commands.init2rtr_qp(host, firmware, caps.log_max_msg)
        commands.rst2init_qp(firmware)
        commands.init2rtr_qp(firmware, host, caps.log_max_msg)
        commands.rtr2rts_qp(firmware)
        self._object = commands.create_page_track(
            tracked,
            vhca_id=caps.vhca_id,
            log_page_size=log_page,
            log_msg_size=self._message_bytes.bit_length() - 1,
            log_addr_space_size=log_addr_space,
            reporting_qpn=firmware,
        )
        later(commands.destroy_page_track, self._object)

    def stop(self) -> None:
        """Give everything back. A second call does nothing."""
        self._undo.close()

    def give_up(self, why: str) -> None:
        """Let a report that waits for the firmware end with EIO; called from any thread."""
        self._broken = self._broken or why
        self._woken.set()

    # --- Reports ------------------------------------------------------------------------------

    def report(self, bitmap: DirtyBitmap) -> None:
        """Set the bits of all pages written since they were last reported, and forget them.

        OSError: what the command gives; EIO where what was tracked is lost, from then on always.
        """
        self._hear()
        first, last = bitmap.first, bitmap.last
        if last < first:
            return
        # Whole pages: what was written beside the window is kept here for its own report.
        low = first // self.page_size * self.page_size
        high = min((last // self.page_size + 1) * self.page_size - 1, low + (1 << 64) - 2)
        self._commands.report_pages(self._object, low, high - low + 1)
        try:
            more = True
            while more:
                pages, more = self._next_message()
                bitmap.add_pages(pages, self.page_size, self._ranges)
                for begin, end in ((low, first - 1), (last + 1, high)):
                    page = begin // self.page_size * self.page_size
                    if begin <= end and np.uint64(page) in pages:
                        self._left.add(begin, end)
        except BaseException as error:
            # Pages that have been reported are marked nowhere else.
            self._broken = self._broken or f"a report failed ({error})"
            raise
        for begin, end in self._left.take(first, last):
            bitmap.add((max(begin, start), min(end, stop)) for start, stop in self._ranges)

    def _next_message(self) -> tuple[Addresses, bool]:
        """The pages that the next message tells, ascending, and whether more messages follow."""
        at = self._next_completion()
        view = self._memory.view
        if view[at + wqe.CQE_OP_OWN] >> 4 != CqeOpcode.RESP_SEND_IMM:
            raise self._break("a message failed")
        immediate, length, _, _, counter, _, _ = wqe.CQE_TAIL.unpack_from(
            view, at + wqe.CQE_TAIL_OFFSET
        )
        state = immediate >> IMMEDIATE_SHIFT
        if state not in (PageTrackState.TRACKING, PageTrackState.REPORTING):
            raise self._break("the firmware lost track")
        more = state == PageTrackState.REPORTING
        if length > self._message_bytes or length % ENTRY_BYTES or (more and not length):
            raise self._break(f"a message of {length} bytes makes no sense")
        index = counter & ((1 << self._log_entries) - 1)
        start = index * self._message_bytes
        entries = np.frombuffer(self._buffer.view[start : start + length], dtype=ENTRY_DTYPE)
        pages = entries.astype(np.uint64)
        if np.any(pages[1:] < pages[:-1]):
            pages.sort()
        if np.any(pages & np.uint64(self.page_size - 1)):
            raise self._break("a reported address is no page's")
        self._post(index)
        self._tell_consumer(0)
        return pages, more

    def _post(self, index: int) -> None:
        """Post receive buffer ``index``; descriptors are written before the doorbell record."""
        view, mask = self._memory.view, (1 << self._log_entries) - 1
        at = self._memory.at[_Area.RQ] + (self._posted & mask) * _RECEIVE_ENTRY
        size = self._message_bytes
        wqe.DATA_SEG.pack_into(view, at, size, self._buffer.mkey, index * size)
        self._posted += 1
        wqe.QP_DBR.pack_into(view, _QP_RECORD, self._posted & 0xFFFF, 0)

    # --- Completions --------------------------------------------------------------------------

    def _next_completion(self) -> int:
        """Where the next entry of the CQ stands, which is consumed; waits for it."""
        deadline = time.monotonic() + self.patience
        while True:
            at = self._poll()
            if at is None:
                self._woken.clear()
                self._arm()
                at = self._poll()
            if at is not None:
                return at
            self._hear()
            left = deadline - time.monotonic()
            if left <= 0:
                raise self._break(f"the firmware did not go on for {self.patience:g} s")
            if not self._woken.wait(min(left, _ASK_AFTER)):
                self._ask()

    def _poll(self) -> int | None:
        consumer, log = self._cq_consumer, self._log_entries
        at = self._memory.at[_Area.CQ] + (consumer & ((1 << log) - 1)) * wqe.CQE_BYTES
        own = self._memory.view[at + wqe.CQE_OP_OWN]
        if own >> 4 == CqeOpcode.INVALID or own & 1 != consumer >> log & 1:
            return None
        self._cq_consumer += 1
        return at

    def _tell_consumer(self, arm: int) -> None:
        consumer = self._cq_consumer & 0xFFFFFF
        wqe.CQ_DBR.pack_into(self._memory.view, _CQ_RECORD, consumer, arm)

    def _arm(self) -> None:
        """Ask for an event at the next completion."""
        word = (self._arm_sn & 3) << 28 | self._cq_consumer & 0xFFFFFF
        self._tell_consumer(word)
        self._port.ring(self._uar, wqe.UAR_CQ_DOORBELL, wqe.CQ_DBR.pack(word, self._cqn))

    # --- Events -------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take all events there are. EIO where tracking is broken."""
        view, base = self._memory.view, self._memory.at[_Area.EQ]
        heard = self._eq_consumer
        while True:
            consumer = self._eq_consumer
            at = base + (consumer & ((1 << _LOG_EQ) - 1)) * wqe.EQE_BYTES
            if view[at + wqe.EQE_OWNER] & 1 != consumer >> _LOG_EQ & 1:
                break
            self._eq_consumer += 1
            self._event(view[at : at + wqe.EQE_BYTES])
        if heard != self._eq_consumer:
            word = self._eqn << 24 | self._eq_consumer & 0xFFFFFF
            self._port.ring(self._uar, wqe.UAR_EQ_ARM, word.to_bytes(4, "big") + bytes(4))
        if self._object_changed:
            self._object_changed = False
            self._ask()
        if self._broken:
            raise refuse(errno.EIO, f"the page tracker is broken: {self._broken}")

    def _event(self, entry: memoryview) -> None:
        def number(at: int) -> int:
            return int.from_bytes(entry[at : at + 4], "big")

        kind = entry[wqe.EQE_TYPE]
        if kind == EventType.COMP:
            self._arm_sn += 1
        elif kind == EventType.CQ_ERROR and number(wqe.EQE_CQ_ERROR_CQN) & 0xFFFFFF == self._cqn:
            self._broken = "the completion queue overran"
        elif kind in _QP_EVENTS and number(wqe.EQE_QP_QPN) in self._qpns:
            self._broken = "a queue pair failed"
        elif kind == EventType.OBJECT_CHANGE and number(EQE_OBJECT_ID) == self._object:
            self._object_changed = True

    def _ask(self) -> None:
        """Ask for the object's state. EIO where it is in error."""
        if self._commands.page_track_state(self._object) == PageTrackState.ERROR:
            raise self._break("the firmware lost track")

    def _break(self, why: str) -> OSError:
        self._broken = self._broken or why
        return refuse(errno.EIO, f"the page tracker is broken: {self._broken}")
