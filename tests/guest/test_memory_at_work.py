"""A guest with memory of its own: beside its messages, elsewhere, and slowed down."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from precopy.guest import MemoryCheck, WorkloadConfig, WorkloadGuest, layout
from precopy.guest.bringup import BringUpError
from precopy.guest.layout import BASE, PAGE
from precopy.guest.pci_port import REGION
from precopy.pci.memory import RegionSpec
from precopy.vfio.guest import GuestCounts
from tests.connectx.rig import small_adapter
from tests.guest.rig import PATIENCE, GuestRig
from tests.guest.test_workload import open_files

PAGES = 500
FASTEST = 1 << 60


def writes(guest: WorkloadGuest) -> int:
    (count,) = layout.WRITES.unpack_from(guest.memory.regions[0].view, layout.WRITES_AT)
    return int(count)


def wait_for(guest: WorkloadGuest, count: int) -> None:
    """Return once ``count`` pages have been written, of all there ever were."""
    never = threading.Event()
    for _ in range(int(PATIENCE / 0.001)):
        if writes(guest) >= count:
            return
        never.wait(0.001)
    raise AssertionError(f"{writes(guest)} of {count} writes")


def moved(guest: WorkloadGuest) -> WorkloadGuest:
    """A guest of another VF, with what was ever written in its memory."""
    made = WorkloadGuest.attach(small_adapter().vfs[0], guest.memory.specs)
    for region, offset, length in guest.memory.extents():
        its = guest.memory.regions[region].view[offset : offset + length]
        made.memory.regions[region].view[offset : offset + length] = its
    return made


@pytest.fixture
def make() -> Iterator[Callable[..., GuestRig]]:
    rigs: list[GuestRig] = []

    def make(**config: int | str) -> GuestRig:
        rigs.append(GuestRig(**{"memory": PAGES * PAGE, **config}))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def test_messages_and_writes_side_by_side(make: Callable[..., GuestRig]) -> None:
    rig = make(rate=0, writes=FASTEST, zeros=20)
    for count in (300, 900):
        rig.guest.start()
        rig.port.wait_for(count)
        wait_for(rig.guest, count)
        rig.guest.pause()
        assert not {thread.name for thread in threading.enumerate()} & {"vcpu", "scribe"}
        assert rig.guest.check_memory() == MemoryCheck(PAGES, 0, None)
    rig.guest.start()
    # Settled while it runs.
    counts = rig.guest.settle(PATIENCE)
    sent = counts.sent
    assert counts == GuestCounts(sent=sent, received=sent, memory_pages=PAGES)
    assert "scribe" not in {thread.name for thread in threading.enumerate()}
    before = writes(rig.guest)
    # Started anew it writes again.
    rig.guest.pause()
    rig.guest.start()
    wait_for(rig.guest, before + 100)


def test_a_wrong_page_is_a_fault(make: Callable[..., GuestRig]) -> None:
    rig = make()
    rig.guest.write(1000)
    rig.guest.step(4)
    view = rig.guest.memory.regions[1].view
    view[77 * PAGE + 1] ^= 0x40
    assert rig.guest.counts() == GuestCounts(sent=4, received=4)
    found = GuestCounts(sent=4, received=4, memory_wrong=1, memory_pages=PAGES)
    assert rig.guest.settle(PATIENCE) == found
    assert found.faults == 1
    assert rig.guest.check_memory() == MemoryCheck(PAGES, 1, 77)
    view[77 * PAGE + 1] ^= 0x40
    assert rig.guest.settle(PATIENCE) == replace(found, memory_wrong=0)


def test_without_memory_nothing_is_told_of_it() -> None:
    rig = GuestRig()
    assert len(rig.guest.memory.regions) == 1
    rig.guest.write(10)
    assert rig.guest.check_memory() == MemoryCheck(0, 0, None)
    assert rig.guest.settle(0.0) == GuestCounts()
    rig.close()


def test_where_the_memory_is() -> None:
    config = WorkloadConfig(pairs=1, active=1, memory=3 * PAGE)
    end = config.region.iova + config.region.length
    assert config.memory_region([config.region]) == RegionSpec(end, 3 * PAGE)
    assert config.memory_region([REGION, config.region]) == RegionSpec((1 << 36) + (2 << 20), 12288)
    guest = WorkloadGuest.power_on(small_adapter().vfs[0], config)
    assert guest.memory.specs == (config.region, RegionSpec(end, 3 * PAGE))
    guest.close()


@pytest.mark.parametrize("rate", [FASTEST, 0])
def test_it_goes_on_where_its_memory_is(make: Callable[..., GuestRig], rate: int) -> None:
    rig = make(active=0, writes=rate, fill=60, working=70, zeros=10)
    rig.guest.start()
    wait_for(rig.guest, 500 if rate else 0)
    rig.guest.pause()
    rig.guest.write(200)
    before = writes(rig.guest)
    there = moved(rig.guest)
    assert there.check_memory() == MemoryCheck(PAGES, 0, None)
    there.start()
    wait_for(there, before + 500 if rate else before)
    there.pause()
    assert there.settle(0.0) == GuestCounts(memory_pages=PAGES)
    # The same as if it had stayed.
    rig.guest.write(writes(there) - before)
    assert bytes(there.memory.regions[1].view) == bytes(rig.guest.memory.regions[1].view)
    there.close()


def test_writes_that_a_move_leaves_out_are_noticed(make: Callable[..., GuestRig]) -> None:
    rig = make(active=0)
    rig.guest.write(100)
    there = moved(rig.guest)
    mine, its = rig.guest.memory.regions, there.memory.regions
    rig.guest.write(1)
    # The last of the control page goes there, and nothing else.
    its[0].view[:PAGE] = mine[0].view[:PAGE]
    assert there.check_memory() == MemoryCheck(PAGES, 1, 0)
    for at in range(0, PAGES * PAGE, PAGE):
        if its[1].view[at : at + PAGE] != mine[1].view[at : at + PAGE]:
            assert there.check_memory().wrong_pages
            its[1].view[at : at + PAGE] = mine[1].view[at : at + PAGE]
    assert there.check_memory() == MemoryCheck(PAGES, 0, None)
    there.close()


@pytest.mark.parametrize("lacks", [[], [RegionSpec(BASE + (1 << 40), (PAGES + 1) * PAGE)]])
def test_memory_that_lacks_what_it_worked_on(
    make: Callable[..., GuestRig], lacks: list[RegionSpec]
) -> None:
    rig = make()
    there = WorkloadGuest.attach(small_adapter().vfs[0], [rig.config.region, *lacks])
    there.memory.regions[0].view[:PAGE] = rig.take(0, PAGE)
    calls: list[Callable[[], object]] = [there.start, there.check_memory, lambda: there.write(1)]
    for call in calls:
        with pytest.raises(RuntimeError, match="lacks the 2048000 bytes that it worked on"):
            call()
    there.close()


def test_other_memory_in_the_same_place(make: Callable[..., GuestRig]) -> None:
    """Attached once, filled twice: what counts is what is there."""
    rig, other = make(active=0, seed=3), make(active=0, seed=4)
    there = moved(rig.guest)
    assert not there.check_memory().wrong_pages
    for mine, its in zip(there.memory.regions, other.guest.memory.regions, strict=True):
        mine.view[:] = its.view
    there.write(10)
    assert there.check_memory() == MemoryCheck(PAGES, 0, None)
    there.close()


def test_closing_gives_its_memory_back() -> None:
    before = open_files()
    rig = GuestRig(memory=PAGES * PAGE, writes=FASTEST)
    rig.guest.start()
    wait_for(rig.guest, 1)
    rig.close()
    assert open_files() == before
    assert "scribe" not in {thread.name for thread in threading.enumerate()}
    adapter = small_adapter("CREATE_QP:1:0x8")
    with pytest.raises(BringUpError):
        WorkloadGuest.power_on(adapter.vfs[0], replace(rig.config))
    assert open_files() == before


# --- Slowed down ----------------------------------------------------------------------------------


def test_messages_without_a_pace_get_their_share() -> None:
    """A thousandth of its time: one burst, then it stands still for as good as ever."""
    rig = GuestRig(pairs=4, active=4, rate=0)
    rig.guest.limit(0.001)
    rig.guest.start()
    enough = rig.port.once(300)
    assert not enough.wait(0.25)
    # A pause need not wait for it, and all its time can be given back at any time.
    rig.guest.pause()
    rig.guest.limit(1.0)
    rig.guest.start()
    assert enough.wait(PATIENCE)
    assert rig.guest.settle(PATIENCE).faults == 0
    rig.close()


def test_messages_with_a_pace_get_their_share() -> None:
    rig = GuestRig(pairs=2, active=2, rate=200)
    rig.guest.limit(0.25)
    before = time.monotonic()
    rig.guest.start()
    rig.port.wait_for(6)
    # 50 a second are left of it.
    assert time.monotonic() - before >= 5 / 50
    rig.guest.pause()
    assert rig.guest.settle(PATIENCE).faults == 0
    rig.close()


def test_a_limit_that_cannot_be_given() -> None:
    rig = GuestRig()
    with pytest.raises(ValueError, match="share of its time"):
        rig.guest.limit(0.0)
    rig.close()
