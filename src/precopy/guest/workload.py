"""The workload: messages through QP pairs, each with a sequence number and a checksum, and memory.

All that it knows is in its memory, so whoever holds a copy of the memory and a VF in the same state
goes on where it was.
"""

import errno
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from precopy.guest.bringup import Driver
from precopy.guest.layout import Count, WorkloadConfig
from precopy.guest.pace import Pace
from precopy.guest.pages import MemoryCheck, Pages
from precopy.guest.scribe import Scribe
from precopy.guest.share import GuestTime
from precopy.guest.traffic import Traffic, control_of, counts_of
from precopy.mlx5_abi.port import FunctionPort
from precopy.pci.memory import GuestMemory, RegionSpec
from precopy.vfio.errors import refuse
from precopy.vfio.guest import GuestCounts

#: What is told of the memory where it was not checked, or where there is none.
_UNCHECKED = MemoryCheck(0, 0, None)


class WorkloadGuest:
    """A guest with a vCPU for messages and one for its memory (threads).

    :meth:`power_on` makes a new one, :meth:`attach` one to be filled.
    """

    def __init__(self, port: FunctionPort, memory: GuestMemory) -> None:
        self._port = port
        self._memory = memory
        self._view = memory.regions[0].view
        self._cpu = threading.RLock()
        self._wake = threading.Event()
        self._time = GuestTime()
        self._events = False
        self._running = False
        self._thread: threading.Thread | None = None
        self._config: WorkloadConfig | None = None
        self._scribe: Scribe | None = None
        self._checked = _UNCHECKED
        self._closed = False
        try:
            port.connect_memory(memory)
        except BaseException:
            del self._view
            memory.close()
            raise
        port.set_interrupt(0, self._interrupt)

    @classmethod
    def power_on(cls, port: FunctionPort, config: WorkloadConfig) -> "WorkloadGuest":
        """A guest that has brought up its VF, not yet started. RuntimeError where the VF refuses."""
        specs = [config.region, *port.regions]
        if config.memory:
            specs.append(config.memory_region(specs))
        guest = cls(port, GuestMemory(specs))
        try:
            port.power_on()
            Driver(port, config, guest._view).bring_up()
            guest._take_up()
            if guest._scribe is not None:
                guest._scribe.power_on()
        except BaseException:
            guest.close()
            raise
        return guest

    @classmethod
    def attach(cls, port: FunctionPort, specs: Sequence[RegionSpec]) -> "WorkloadGuest":
        """A guest whose memory another one's will be copied into. OSError as GuestMemory."""
        if not specs:
            raise refuse(errno.EINVAL, "a guest needs memory")
        return cls(port, GuestMemory(specs))

    @property
    def memory(self) -> GuestMemory:
        return self._memory

    # --- The vCPUs ----------------------------------------------------------------------------

    def _take_up(self) -> Traffic:
        """Read from the memory what does not change while the guest runs. RuntimeError, ValueError."""
        config = control_of(self._view).config()
        if config != self._config:
            self._change(config)
        return Traffic(self._port, config, self._view)

    def _change(self, config: WorkloadConfig) -> None:
        """Be the guest of ``config`` from now on. RuntimeError where its memory is not that here."""
        regions = self._memory.regions
        if config.region != regions[0].spec:
            raise RuntimeError(
                f"the guest's memory is not that of a workload of {config.pairs} pairs"
            )
        # The region that it works on is above all others, whatever others there are.
        last = len(regions) - 1
        if config.memory and (not last or regions[last].spec.length != config.memory):
            raise RuntimeError(f"the guest lacks the {config.memory} bytes that it worked on")
        if self._scribe is not None:
            self._scribe.close()
            self._scribe = None
        if config.memory:
            self._scribe = Scribe(Pages(self._memory, last, config), config.writes, self._time)
        self._config = config

    def start(self) -> None:
        with self._cpu:
            if self._running:
                return
            traffic = self._take_up()
            assert self._config is not None
            rate = self._config.rate
            if self._scribe is not None:
                self._scribe.start()
            self._running = True
            # Interrupts may have come while nobody was there to hear them.
            self._events = True
            traffic.set_control(settling=0)
        self._thread = threading.Thread(
            target=self._run, args=(traffic, rate), name="vcpu", daemon=True
        )
        self._thread.start()

    def pause(self) -> None:
        with self._cpu:
            self._running = False
        self._time.wake()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        if self._scribe is not None:
            self._scribe.pause()

    def limit(self, share: float) -> None:
        self._time.limit(share)

    @property
    def share(self) -> float:
        """What :meth:`limit` leaves it of its time."""
        return self._time.share

    def _interrupt(self) -> None:
        self._events = True
        self._wake.set()

    def _run(self, traffic: Traffic, rate: int) -> None:
        pace = Pace(rate, self._time.now(), counts_of(self._view)[Count.SENT])
        while self._running:
            with self._cpu:
                if not self._running:
                    break
                began = time.monotonic()
                if self._events:
                    self._handle_events(traffic)
                due = pace.due(self._time.now(), counts_of(self._view)[Count.SENT])
                progress = traffic.burst(due) if due > 0 else False
                busy = time.monotonic() - began
            self._time.rest(busy, lambda: self._running)
            if not progress or rate:
                self._wake.wait(0.001)
                self._wake.clear()

    def _handle_events(self, traffic: Traffic) -> None:
        self._events = False
        traffic.handle_events()

    def step(self, count: int) -> None:
        """Send up to ``count`` messages in the calling thread, paused or not; tests drive it so."""
        with self._cpu:
            traffic = self._take_up()
            self._handle_events(traffic)
            traffic.burst(count, for_ever=True)

    def write(self, count: int) -> None:
        """Write ``count`` pages of its memory in the calling thread, paused or not; tests drive it so."""
        with self._cpu:
            self._take_up()
            if self._scribe is not None:
                self._scribe.write(count)

    @property
    def writes(self) -> int:
        """Pages of its memory written since power-on; may be asked while it runs."""
        return self._scribe.writes if self._scribe is not None else 0

    # --- Counts -------------------------------------------------------------------------------

    def check_memory(self) -> MemoryCheck:
        """Compare all pages of the memory that it works on with what they have to hold.

        It writes nothing meanwhile. RuntimeError, ValueError where the memory is no workload's.
        """
        with self._cpu:
            self._take_up()
        self._checked = _UNCHECKED if self._scribe is None else self._scribe.check()
        return self._checked

    def counts(self) -> GuestCounts:
        pages, wrong, _ = self._checked
        counts = GuestCounts(*counts_of(self._view))
        return replace(counts, memory_wrong=wrong, memory_pages=pages)

    def settle(self, timeout: float) -> GuestCounts:
        deadline = time.monotonic() + timeout
        with self._cpu:
            traffic = self._take_up()
            traffic.set_control(settling=1)
        if self._scribe is not None:
            self._scribe.pause()
        while True:
            with self._cpu:
                self._handle_events(traffic)
                late = traffic.outstanding()
                if not late or time.monotonic() >= deadline:
                    for index in late:
                        traffic.give_up(index)
                    break
            self._wake.wait(0.001)
            self._wake.clear()
        self.check_memory()
        return self.counts()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.pause()
        self._port.set_interrupt(0, None)
        self._port.disconnect_memory(self._memory)
        if self._scribe is not None:
            self._scribe.close()
        del self._view
        self._memory.close()
