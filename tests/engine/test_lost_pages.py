"""A page that gets lost is found: of each of those whom a migration believes, one loses a page.

Without this nobody would know whether the truth test can fail.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from numpy.typing import NDArray

from precopy.engine import target as engine_target
from precopy.engine.messages import Message
from precopy.engine.pages import PageTarget
from precopy.engine.progress import Snapshot
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.guest import MemoryCheck
from precopy.guest.layout import WorkloadConfig
from precopy.memory import WriteTracker, tracker, tracker_for
from precopy.memory.common import Still
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.status import Status
from precopy.pci.memory import PAGE_SIZE, GuestMemory
from precopy.vfio.states import DeviceState
from tests.engine.rig import Both, both
from tests.engine.truth import differences, guest_of, sim_of

PAGES = 1024

#: It works when it is told to, so that it is known which page is written last.
GUEST = f"sim:mlx5?qps=4&log_max_qp=8&size=4096&mix=s&active=4&memory={PAGES * PAGE_SIZE}"

#: The region that it works on, and the page of it that gets lost: one with data.
WORKED, LOST = 1, 700


@contextmanager
def standing(name: str = GUEST) -> Iterator[Both]:
    with both(name) as pair:
        guest_of(pair.source).pause()
        yield pair


def move(
    pair: Both, tracking: str = "auto", then: Callable[[], object] = lambda: None
) -> list[tuple[int, int]]:
    """Move it; it works once more before the switchover. What differs at the handover.

    ``then`` is called between that work and the switchover.
    """
    found: list[tuple[int, int]] = []

    def progress(now: Snapshot) -> None:
        here = guest_of(pair.source)
        if now.phase == "STOP_COPY":
            # Every page of data is written; each pair gets as many messages as may be under way,
            # which the guest has not seen yet when it moves.
            here.write(20 * PAGES)
            pair.source.device.set_state(DeviceState.PRE_COPY_P2P)
            here.step(16)
            pair.source.device.set_state(DeviceState.PRE_COPY)
            then()
        elif now.phase == "handover":
            found.extend(differences(here.memory, guest_of(pair.target).memory))

    pair.move(Options(tracking=tracking), progress=progress)
    assert isinstance(pair.at_source, Report), pair.at_source
    return found


class Forgetful:
    """A write tracker that never tells of page :data:`LOST`."""

    name = "forgetful"

    def __init__(self, real: WriteTracker) -> None:
        self._real = real
        self.start, self.stop, self.copied = real.start, real.stop, real.copied

    def collect(self, region: int, dirty: NDArray[np.uint8]) -> None:
        self._real.collect(region, dirty)
        if region == WORKED:
            dirty[LOST // 8] &= ~(1 << LOST % 8) & 0xFF


def test_nothing_is_lost() -> None:
    with standing() as pair:
        assert move(pair) == []
        assert guest_of(pair.target).check_memory() == MemoryCheck(PAGES, 0, None)
        assert not guest_of(pair.target).settle(5).faults


@pytest.mark.parametrize("kind", ["userfaultfd", "checksums"])
def test_a_write_tracker_loses_a_page(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(memory: GuestMemory, still: Still | None) -> WriteTracker:
        return Forgetful(tracker_for(memory, kind))

    monkeypatch.setitem(tracker.KINDS, "forgetful", make)
    with standing() as pair:
        assert move(pair, "forgetful") == [(WORKED, LOST)]
        assert guest_of(pair.target).check_memory() == MemoryCheck(PAGES, 1, LOST)
        counts = guest_of(pair.target).settle(5)
        assert (counts.faults, counts.memory_wrong) == (1, 1)


@pytest.mark.parametrize("kind", ["userfaultfd", "checksums"])
def test_a_page_is_written_before_it_is_copied_and_written_back_after(kind: str) -> None:
    with standing() as pair:
        view = guest_of(pair.source).memory.regions[WORKED].view
        page = view[LOST * PAGE_SIZE : (LOST + 1) * PAGE_SIZE]
        contents = [bytes(PAGE_SIZE), bytes(page)]

        def progress(now: Snapshot) -> None:
            # It is told before the first round is sent, and after it.
            if now.phase == "guest memory" and contents:
                page[:] = contents.pop(0)

        pair.move(Options(tracking=kind), progress=progress)
        page.release()
        assert not contents
        assert guest_of(pair.target).check_memory() == MemoryCheck(PAGES, 0, None)


def test_a_dma_log_loses_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    config = WorkloadConfig(pairs=4, active=4, size=4096, mix="s")
    lost = config.receive_slot(2, 3) // PAGE_SIZE
    with standing() as pair:
        device = pair.source.device
        real = device.log_report

        def report(iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
            real(iova, length, page_size, bitmap)
            if iova == config.region.iova:
                bitmap[lost // 8] &= ~(1 << lost % 8) & 0xFF

        monkeypatch.setattr(device, "log_report", report)
        assert move(pair) == [(0, lost)]
        # That is no page of the model: it is the fourth message of the third pair, never taken in.
        counts = guest_of(pair.target).settle(5)
        assert (counts.faults, counts.damaged) == (1, 1)


def test_a_dma_log_is_lost_as_a_whole_at_the_last_moment() -> None:
    """All that was ever written is moved again: what the log would have told is among it."""
    with standing() as pair:
        faults = sim_of(pair.source).adapter.firmware.faults
        failing = Opcode.MODIFY_GENERAL_OBJECT
        assert move(pair, then=lambda: faults.add_next(failing, 1, Status.INT_ERR)) == []
        assert isinstance(pair.at_source, Report)
        assert "the device lost its DMA log" in "\n".join(pair.at_source.notes)
        memory = pair.at_source.memory
        assert memory is not None
        assert memory.rounds[-1] >= memory.rounds[0]
        assert not guest_of(pair.target).settle(5).faults


class Careless(PageTarget):
    """A target that takes all that comes, but for what page :data:`LOST` holds in the end."""

    def announce(self, fields: Message) -> None:
        super().announce(fields)
        self._page = self._rows[WORKED][LOST]
        self._kept = self._page.copy()

    def take(self, payload: memoryview) -> None:
        super().take(payload)
        self._page[:] = self._kept


def test_a_target_loses_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_target, "PageTarget", Careless)
    with standing() as pair:
        assert move(pair) == [(WORKED, LOST)]
        assert guest_of(pair.target).check_memory() == MemoryCheck(PAGES, 1, LOST)
