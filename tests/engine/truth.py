"""A guest at work that is moved, or is not, held against what has to be true after that.

Whatever becomes of a migration, the guest works on one side, at full speed, every page of its memory
is what its own model says, and each of its messages arrives once, in order, intact. Where it moves,
every byte of its memory at the target is what the source has, at the moment of the handover.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from precopy.backends import sim
from precopy.backends.sim import SimDevice
from precopy.engine.outcome import InDoubt, MigrationError, Stopped
from precopy.engine.progress import Snapshot
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.engine.target import Received, TargetOptions
from precopy.guest import MemoryCheck, WorkloadGuest
from precopy.guest.options import workload_of
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.status import Status
from precopy.pci.memory import PAGE_SIZE, GuestMemory
from precopy.vfio.device import DmaRange
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import Feature
from tests.engine.relay import Point, Then
from tests.engine.rig import BLANK, Both, as_before, files, started

#: Longer than anything here takes; reached only where something hangs.
PATIENCE = 20.0

#: Bytes that are compared at a time.
_PIECE = 1 << 20


def differences(one: GuestMemory, other: GuestMemory) -> list[tuple[int, int]]:
    """Where two memories differ: region and page. What was never written stays so."""
    assert one.specs == other.specs
    found = []
    for index, (a, b) in enumerate(zip(one.regions, other.regions, strict=True)):
        for at in range(0, a.spec.length, _PIECE):
            length = min(_PIECE, a.spec.length - at)
            mine, its = os.pread(a.fd, length, at), os.pread(b.fd, length, at)
            if mine != its:
                rows = [
                    np.frombuffer(each, np.uint8).reshape(-1, PAGE_SIZE) for each in (mine, its)
                ]
                differ = np.flatnonzero((rows[0] != rows[1]).any(axis=1)) + at // PAGE_SIZE
                found += [(index, int(page)) for page in differ]
    return found


def guest_of(opened: Opened) -> WorkloadGuest:
    assert isinstance(opened.guest, WorkloadGuest)
    return opened.guest


def sim_of(opened: Opened) -> SimDevice:
    assert isinstance(opened.device, SimDevice)
    return opened.device


# --- What may happen on the way ---------------------------------------------------------------


@dataclass(frozen=True)
class Trouble:
    """Nothing happens."""

    def arm(self, pair: Both) -> None:
        """Prepare it, before the migration begins."""

    def on_progress(self, now: Snapshot, options: Options) -> None:
        """Asked at each step of the source's."""

    @property
    def at(self) -> Point | None:
        """Where something happens to the connection, or to the target."""
        return None

    #: What becomes of the connection there.
    then = Then.FORWARD

    def act(self, target_options: TargetOptions) -> None:
        """What happens there besides."""


@dataclass(frozen=True)
class Fault(Trouble):
    """The ``nth`` command of ``opcode`` from the beginning of the migration on fails on one side."""

    at_source: bool
    opcode: Opcode
    nth: int

    def arm(self, pair: Both) -> None:
        side = pair.source if self.at_source else pair.target
        sim_of(side).adapter.firmware.faults.add_next(self.opcode, self.nth, Status.INT_ERR)


@dataclass(frozen=True)
class LogOverflows(Trouble):
    """The device has no room for what its DMA log has to keep."""

    def arm(self, pair: Both) -> None:
        sim_of(pair.source).adapter.firmware.page_tracks.max_blocks = 0


class Cancel(Trouble):
    """The source is cancelled at its ``nth`` step."""

    def __init__(self, nth: int) -> None:
        self.nth = self._left = nth

    def __repr__(self) -> str:
        return f"Cancel({self.nth})"

    def on_progress(self, now: Snapshot, options: Options) -> None:
        self._left -= 1
        if not self._left:
            options.cancel.set()


@dataclass(frozen=True)
class Cut(Trouble):
    """The connection is cut at ``point``."""

    point: Point
    then = Then.CUT

    @property
    def at(self) -> Point | None:
        return self.point


@dataclass(frozen=True)
class CancelTarget(Cut):
    """The target is cancelled at ``point``."""

    then = Then.FORWARD

    def act(self, target_options: TargetOptions) -> None:
        target_options.cancel.set()


# --- The journey ------------------------------------------------------------------------------


class Journey:
    """A guest, and where it works now; :meth:`hop` tries to move it on."""

    def __init__(self, source: str) -> None:
        workload = workload_of(sim.parse(source))
        assert workload is not None
        self._workload = workload
        self.here = started(source)
        #: Whether it can go on at all.
        self.stands = False
        self.pages = guest_of(self.here).check_memory().pages

    def hop(
        self, options: Options, trouble: Trouble | None = None, target: str = BLANK
    ) -> Report | MigrationError:
        """One migration, and what has to be true after it. How it ended for the source."""
        trouble = trouble or Trouble()
        pair = Both(self.here, target)
        try:
            outcome = self._move(pair, options, trouble)
        finally:
            gone = pair.source if self.here is pair.target else pair.target
            gone.close()
        if not self.stands:
            self.check()
        return outcome

    def _move(self, pair: Both, options: Options, trouble: Trouble) -> Report | MigrationError:
        target_options = TargetOptions()
        trouble.arm(pair)
        compared: list[list[tuple[int, int]]] = []

        def progress(now: Snapshot) -> None:
            trouble.on_progress(now, options)
            if now.phase == "handover":
                memories = guest_of(pair.source).memory, guest_of(pair.target).memory
                compared.append(differences(*memories))

        pair.move(
            options,
            trouble.at,
            lambda: trouble.act(target_options),
            trouble.then,
            target_options,
            progress,
        )
        firmware = sim_of(pair.source).adapter.firmware
        firmware.faults.clear()
        firmware.page_tracks.max_blocks = 1 << 16
        sim_of(pair.target).adapter.firmware.faults.clear()
        assert compared in ([], [[]]), f"pages that differ (region, page): {compared[0][:10]}"
        moved = isinstance(pair.at_target, Received)
        at_source = pair.at_source
        assert at_source is not None
        if moved:
            assert isinstance(at_source, Report | InDoubt), at_source
            assert compared
            self.here = pair.target
            assert pair.source.device.state in (DeviceState.STOP, DeviceState.STOP_COPY)
        else:
            assert isinstance(at_source, MigrationError), (at_source, pair.at_target)
            if not isinstance(pair.at_target, Stopped):
                assert as_before(pair.target), pair.at_target
            if isinstance(at_source, InDoubt):
                # Somebody has looked, and runs it here again.
                self.here.device.set_state(DeviceState.RUNNING)
                guest_of(self.here).start()
            elif isinstance(at_source, Stopped):
                self.stands = True
                guest = guest_of(self.here)
                guest.pause()
                assert guest.check_memory() == MemoryCheck(self.pages, 0, None)
        return at_source

    def check(self) -> None:
        """It works here, at full speed, with nothing left of a migration, and all is right."""
        device, guest = self.here.device, guest_of(self.here)
        assert device.state is DeviceState.RUNNING
        assert guest.share == 1.0
        assert not [each for each in files() if "userfaultfd" in each]
        if Feature.DMA_LOGGING_START in device.features():
            device.log_start([DmaRange(*guest.memory.specs[0])], PAGE_SIZE)
            device.log_stop()
        self._works_by_itself(guest)
        guest.step(20)
        guest.write(100)
        counts = guest.settle(PATIENCE)
        assert not counts.faults, (counts, guest.check_memory())
        assert counts.received == counts.sent
        assert counts.memory_pages == self.pages
        # Settled it has stopped to send.
        guest.pause()
        guest.start()

    def _works_by_itself(self, guest: WorkloadGuest) -> None:
        config = self._workload
        if config.active:
            sent = guest.counts().sent
            until(lambda: guest.counts().sent > sent)
        if config.memory and config.writes:
            writes = guest.writes
            until(lambda: guest.writes > writes)

    def close(self) -> None:
        self.here.close()


def until(true: Callable[[], bool]) -> None:
    """Return once it is ``true``."""
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@contextmanager
def journey(source: str) -> Iterator[Journey]:
    made = Journey(source)
    try:
        yield made
    finally:
        made.close()
