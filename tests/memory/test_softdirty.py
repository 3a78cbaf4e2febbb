"""Soft-dirty bits, on files that behave as such a kernel's."""

import contextlib
import errno
import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.memory.softdirty import SoftDirtyTracker
from precopy.pci.memory import PAGE_SIZE, GuestMemory, RegionSpec
from tests.memory.fake_soft_dirty import FakeSoftDirty
from tests.memory.kinds import collected

#: The second one takes more than one reading of the pagemap; nothing of it is filled.
PAGES = (9, (1 << 17) + 13)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    found = GuestMemory([RegionSpec(n << 40, count * PAGE_SIZE) for n, count in enumerate(PAGES)])
    yield found
    found.close()


@pytest.fixture
def kernel(tmp_path: Path, memory: GuestMemory) -> Iterator[FakeSoftDirty]:
    fake = FakeSoftDirty(tmp_path, memory)
    yield fake
    fake.close()


def tracker_of(kernel: FakeSoftDirty) -> SoftDirtyTracker:
    return SoftDirtyTracker(
        kernel.memory,
        kernel.still,
        pagemap=kernel.pagemap,
        clear_refs=kernel.clear_refs,
        probe=kernel.probe,
    )


def write(kernel: FakeSoftDirty, region: int, page: int) -> None:
    kernel.memory.regions[region].view[page * PAGE_SIZE] = 1
    kernel.wrote(region, page)


def test_bits_are_told_once_and_for_each_region_apart(kernel: FakeSoftDirty) -> None:
    tracker, last = tracker_of(kernel), PAGES[1] - 1
    write(kernel, 0, 1)
    tracker.start()
    assert collected(tracker, kernel.memory, 0) == set()
    for region, page in ((0, 3), (0, 8), (1, 0), (1, 1 << 17), (1, last)):
        write(kernel, region, page)
    # The look at one region clears the bits of all.
    assert collected(tracker, kernel.memory, 0) == {3, 8}
    write(kernel, 1, 5)
    assert collected(tracker, kernel.memory, 1) == {0, 5, 1 << 17, last}
    assert collected(tracker, kernel.memory, 1) == set()
    assert collected(tracker, kernel.memory, 0) == set()
    tracker.stop()


def test_a_page_that_was_written_and_evicted_is_told(kernel: FakeSoftDirty) -> None:
    tracker = tracker_of(kernel)
    tracker.start()
    write(kernel, 0, 2)
    kernel.evict(0, 2)
    assert collected(tracker, kernel.memory, 0) == {2}
    # Until somebody reads it, as who sends it does.
    assert collected(tracker, kernel.memory, 0) == {2}
    kernel.read(0, 2)
    assert collected(tracker, kernel.memory, 0) == set()
    tracker.stop()


def test_writers_are_still_while_bits_are_read_and_cleared(kernel: FakeSoftDirty) -> None:
    tracker = tracker_of(kernel)
    tracker.start()
    assert kernel.stills == 1
    collected(tracker, kernel.memory, 0)
    assert kernel.stills == 2
    tracker.start()
    assert kernel.stills == 3
    tracker.stop()


def test_a_start_forgets_what_was_told_and_not_collected(kernel: FakeSoftDirty) -> None:
    tracker = tracker_of(kernel)
    tracker.start()
    write(kernel, 1, 4)
    collected(tracker, kernel.memory, 0)
    tracker.start()
    assert collected(tracker, kernel.memory, 1) == set()
    tracker.stop()
    with pytest.raises(OSError, match="not started"):
        collected(tracker, kernel.memory, 1)


@pytest.mark.parametrize("what", ["no file", "a file that ends", "no bits"])
def test_a_kernel_without_soft_dirty_bits(what: str, tmp_path: Path, memory: GuestMemory) -> None:
    pagemap = tmp_path / "pagemap"
    if what == "a file that ends":
        pagemap.write_bytes(bytes(64))
    elif what == "no bits":
        with pagemap.open("wb") as file:
            file.truncate(1 << 40)
    with pytest.raises(OSError, match="CONFIG_MEM_SOFT_DIRTY") as refused:
        SoftDirtyTracker(
            memory, contextlib.nullcontext, pagemap=pagemap, probe=mmap.mmap(-1, PAGE_SIZE)
        )
    assert refused.value.errno == errno.ENOTSUP


def test_a_kernel_that_does_not_let_bits_be_cleared(kernel: FakeSoftDirty) -> None:
    kernel.clear_refs.unlink()
    with pytest.raises(FileNotFoundError):
        tracker_of(kernel).start()
