"""What every write tracker does, whatever it goes by."""

import ctypes
import errno
import mmap
import os
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precopy.memory import KINDS, tracker_for
from precopy.pci.dma import DmaSpace
from precopy.pci.memory import PAGE_SIZE, GuestMemory, RegionSpec
from tests.memory.kinds import HERE, collected

#: The last region goes over the 2 MiB in which some look, and ends inside of such a block.
SPECS = (RegionSpec(0, 9 * PAGE_SIZE), RegionSpec(1 << 32, 1100 * PAGE_SIZE))

every_kind = pytest.mark.parametrize(("kind", "sees_devices"), HERE)


def fill(memory: GuestMemory, region: int, first: int, count: int, value: int) -> None:
    view = memory.regions[region].view
    for page in range(first, first + count):
        view[page * PAGE_SIZE + value % PAGE_SIZE] = value % 255 + 1


@st.composite
def scenes(draw: st.DrawFn) -> list[tuple[str, int, int, int]]:
    """Steps: what, region, page, pages."""
    steps = []
    for _ in range(draw(st.integers(1, 12))):
        region = draw(st.integers(0, 1))
        pages = SPECS[region].length // PAGE_SIZE
        first = draw(st.integers(0, pages - 1))
        what = draw(st.sampled_from(["write", "write", "device", "collect", "read", "start"]))
        steps.append((what, region, first, draw(st.integers(1, min(pages - first, 40)))))
    return steps


@every_kind
@given(steps=scenes())
def test_pages_that_the_cpu_wrote(
    kind: str, sees_devices: bool, steps: list[tuple[str, int, int, int]]
) -> None:
    memory = GuestMemory(SPECS)
    tracker = tracker_for(memory, kind)
    assert tracker.name == kind
    tracker.start()
    written: list[set[int]] = [set(), set()]
    for number, (what, region, first, count) in enumerate(
        [*steps, *[("collect", n, 0, 1) for n in (0, 1)]]
    ):
        pages = set(range(first, first + count))
        view = memory.regions[region].view
        if what == "write":
            fill(memory, region, first, count, number)
            written[region] |= pages
        elif what == "device":
            start = first * PAGE_SIZE + number
            memory.regions[region].device_view[start : start + 1] = bytes([number + 100])
            if sees_devices:
                written[region].add(first)
        elif what == "read":
            assert len(bytes(view[first * PAGE_SIZE : (first + count) * PAGE_SIZE]))
        elif what == "start":
            tracker.start()
            written = [set(), set()]
        else:
            assert collected(tracker, memory, region) == written[region]
            written[region] = set()
    tracker.stop()
    memory.close()


@every_kind
def test_bits_are_only_set(kind: str, sees_devices: bool) -> None:
    memory = GuestMemory(SPECS)
    tracker = tracker_for(memory, kind)
    tracker.start()
    fill(memory, 0, 3, 1, 1)
    dirty = np.array([0x81, 0xF0, 0x55], dtype=np.uint8)
    tracker.collect(0, dirty)
    assert dirty.tolist() == [0x89, 0xF0, 0x55]
    tracker.stop()
    memory.close()


@every_kind
def test_what_was_written_before_counts_as_clean(kind: str, sees_devices: bool) -> None:
    memory = GuestMemory(SPECS)
    fill(memory, 1, 0, 1100, 3)
    tracker = tracker_for(memory, kind)
    tracker.start()
    assert collected(tracker, memory, 1) == set()
    # A second start after a stop, with writes that nobody was to know of.
    tracker.stop()
    tracker.stop()
    fill(memory, 1, 7, 5, 4)
    tracker.start()
    assert collected(tracker, memory, 1) == set()
    fill(memory, 1, 1099, 1, 5)
    assert collected(tracker, memory, 1) == {1099}
    tracker.stop()
    memory.close()


@every_kind
def test_dma_through_a_space_is_for_its_own_log(kind: str, sees_devices: bool) -> None:
    memory, space = GuestMemory(SPECS), DmaSpace()
    space.map_guest(memory)
    tracker = tracker_for(memory, kind)
    tracker.start()
    space.write((1 << 32) + 5 * PAGE_SIZE - 1, b"ab")
    assert bytes(memory.regions[1].view[5 * PAGE_SIZE - 1 : 5 * PAGE_SIZE + 1]) == b"ab"
    assert collected(tracker, memory, 1) == ({4, 5} if sees_devices else set())
    # The CPU's write into a page that a device wrote is the CPU's all the same.
    memory.regions[1].view[4 * PAGE_SIZE] = 1
    assert collected(tracker, memory, 1) == {4}
    tracker.stop()
    memory.close()


@every_kind
def test_the_kernel_writes_into_the_view_for_the_cpu(kind: str, sees_devices: bool) -> None:
    memory = GuestMemory(SPECS)
    tracker = tracker_for(memory, kind)
    tracker.start()
    reading, writing = os.pipe()
    os.write(writing, b"x" * 300)
    view = memory.regions[0].view
    assert os.readv(reading, [view[2 * PAGE_SIZE - 100 : 2 * PAGE_SIZE + 200]]) == 300
    assert collected(tracker, memory, 0) == {1, 2}
    for fd in (reading, writing):
        os.close(fd)
    tracker.stop()
    memory.close()


@every_kind
def test_looking_fills_no_memory(kind: str, sees_devices: bool) -> None:
    memory = GuestMemory(SPECS)
    fill(memory, 1, 600, 1, 1)
    tracker = tracker_for(memory, kind)
    tracker.start()
    for region in (0, 1):
        collected(tracker, memory, region)
    tracker.stop()
    assert [tuple(each) for each in memory.extents()] == [(1, 600 * PAGE_SIZE, PAGE_SIZE)]
    memory.close()


@every_kind
def test_a_written_page_that_the_kernel_took_from_the_page_table(
    kind: str, sees_devices: bool
) -> None:
    """What happens when memory is short: the content goes elsewhere, and the entry is empty."""
    memory = GuestMemory(SPECS)
    tracker = tracker_for(memory, kind)
    tracker.start()
    fill(memory, 0, 2, 1, 1)
    address = np.frombuffer(memory.regions[0].map, dtype=np.uint8).ctypes.data
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_void_p(address + 2 * PAGE_SIZE)
    assert libc.madvise(page, ctypes.c_size_t(PAGE_SIZE), mmap.MADV_DONTNEED) == 0
    assert collected(tracker, memory, 0) == {2}
    assert collected(tracker, memory, 0) == set()
    tracker.stop()
    memory.close()


def test_checksums_tell_of_pages_that_were_given_back() -> None:
    """They read as zeroes then, though nobody wrote."""
    memory = GuestMemory(SPECS)
    fill(memory, 0, 0, 4, 1)
    tracker = tracker_for(memory, "checksums")
    tracker.start()
    memory.regions[0].map.madvise(mmap.MADV_REMOVE, 0, 4 * PAGE_SIZE)
    assert list(memory.extents()) == []
    assert collected(tracker, memory, 0) == {0, 1, 2, 3}
    assert collected(tracker, memory, 0) == set()
    tracker.stop()
    memory.close()


@every_kind
def test_no_write_beside_a_collect_is_lost(kind: str, sees_devices: bool) -> None:
    """Copying what is told, at any time, ends with an equal copy."""
    memory = GuestMemory(SPECS)
    view, copy = memory.regions[1].view, bytearray(SPECS[1].length)
    tracker = tracker_for(memory, kind)
    tracker.start()
    done = threading.Event()

    def write() -> None:
        numbers = random.Random(5)
        for n in range(60_000):
            at = numbers.randrange(SPECS[1].length // 8) * 8
            view[at : at + 8] = n.to_bytes(8, "little")
        done.set()

    def take() -> None:
        for page in collected(tracker, memory, 1):
            place = slice(page * PAGE_SIZE, (page + 1) * PAGE_SIZE)
            copy[place] = view[place]

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        take()
    thread.join()
    take()
    assert copy == view
    tracker.stop()
    memory.close()


@every_kind
def test_a_run_longer_than_one_answer_of_the_kernel(kind: str, sees_devices: bool) -> None:
    """Every second page of 256 MiB: more than 2^15 runs. Only what is written takes memory."""
    pages = (1 << 16) + 6
    memory = GuestMemory([RegionSpec(0, pages * PAGE_SIZE)])
    tracker = tracker_for(memory, kind)
    tracker.start()
    np.frombuffer(memory.regions[0].map, dtype=np.uint8)[:: 2 * PAGE_SIZE] = 1
    assert collected(tracker, memory, 0) == set(range(0, pages, 2))
    assert collected(tracker, memory, 0) == set()
    tracker.stop()
    memory.close()


@every_kind
def test_what_is_refused(kind: str, sees_devices: bool) -> None:
    memory = GuestMemory(SPECS)
    tracker = tracker_for(memory, kind)
    dirty = np.zeros(2, dtype=np.uint8)
    with pytest.raises(OSError, match="not started") as refused:
        tracker.collect(0, dirty)
    assert refused.value.errno == errno.EINVAL
    tracker.start()
    fill(memory, 0, 8, 1, 1)
    with pytest.raises(OSError, match="8 bits for 9 pages") as refused:
        tracker.collect(0, dirty[:1])
    assert refused.value.errno == errno.EINVAL
    # And nothing was forgotten.
    assert collected(tracker, memory, 0) == {8}
    tracker.stop()
    with pytest.raises(OSError, match="not started"):
        tracker.collect(0, dirty)
    memory.close()


@every_kind
def test_memory_may_be_closed_before_its_tracker(kind: str, sees_devices: bool) -> None:
    memory = GuestMemory(SPECS)
    tracker = tracker_for(memory, kind)
    tracker.start()
    memory.close()
    tracker.stop()


# --- The choice -------------------------------------------------------------------------------


def test_auto_takes_the_best() -> None:
    memory = GuestMemory(SPECS)
    assert tracker_for(memory).name == HERE[0][0]
    memory.close()


def test_a_kind_that_there_is_not() -> None:
    memory = GuestMemory(SPECS)
    with pytest.raises(
        OSError, match="there are auto, userfaultfd, softdirty, checksums"
    ) as refused:
        tracker_for(memory, "magic")
    assert refused.value.errno == errno.EINVAL
    memory.close()


#: Where no file can be opened any more no userfaultfd can.
_WITHOUT = """
import resource
from precopy.memory import tracker_for
from precopy.pci.memory import GuestMemory, RegionSpec
memory = GuestMemory([RegionSpec(0, 4096)])
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
print(tracker_for(memory).name)
try:
    tracker_for(memory, "userfaultfd")
except OSError as error:
    print(error.errno)
    print(error.strerror)
"""


def test_a_machine_without_userfaultfd() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT], capture_output=True, text=True, check=True
    )
    name, number, what = done.stdout.splitlines()
    assert (name, int(number)) == ("checksums", errno.ENOTSUP)
    assert "userfaultfd" in what


def test_softdirty_needs_writers_that_can_be_held_still() -> None:
    memory = GuestMemory(SPECS)
    with pytest.raises(OSError, match="held still") as refused:
        tracker_for(memory, "softdirty")
    assert refused.value.errno == errno.ENOTSUP
    memory.close()


def test_the_kinds_are_in_order() -> None:
    assert list(KINDS) == ["userfaultfd", "softdirty", "checksums"]


@every_kind
@example(script=["write 1", "collect", "write 2", "copy", "write 1"])
@given(script=st.lists(st.sampled_from(["write 0", "write 1", "collect", "copy"]), max_size=12))
def test_a_copy_of_the_pages_that_are_told_is_right_in_the_end(
    kind: str, sees_devices: bool, script: list[str]
) -> None:
    """Whatever goes to and fro between the looks and the copies; two pages of as many blocks."""
    memory = GuestMemory(SPECS)
    view, pages = memory.regions[1].view, np.array([511, 512])
    rows = np.frombuffer(view[:], dtype=np.uint8).reshape(-1, PAGE_SIZE)
    tracker = tracker_for(memory, kind)
    tracker.start()
    copy = rows[pages].copy()
    told: set[int] = set()
    for step in [*script, "collect", "copy"]:
        if step == "collect":
            told |= collected(tracker, memory, 1)
        elif step == "copy":
            some = np.array(sorted(told), dtype=np.int64)
            content = rows[some]
            tracker.copied(1, some, content)
            copy[np.searchsorted(pages, some)] = content
            told = set()
        else:
            rows[pages] = int(step[-1])
    assert np.array_equal(copy, rows[pages])
    del rows
    tracker.stop()
    memory.close()
