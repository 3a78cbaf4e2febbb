"""Guest memory and the DMA address space."""

import errno
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.pci.dma import DmaSpace
from precopy.pci.memory import GuestMemory, RegionSpec

PAGE = 4096


def test_untouched_memory_has_no_extents_and_reads_as_zeroes() -> None:
    memory = GuestMemory([RegionSpec(0x10000, 64 * PAGE), RegionSpec(0x100000, 8 * PAGE)])
    assert list(memory.extents()) == []
    memory.view(0x10000 + 5 * PAGE + 7, 3)[:] = b"abc"
    memory.view(0x100000, 1)[:] = b"x"
    assert [tuple(extent) for extent in memory.extents()] == [(0, 5 * PAGE, PAGE), (1, 0, PAGE)]
    assert memory.size == 72 * PAGE
    memory.close()


@pytest.mark.parametrize(
    "specs",
    [[(0, 100)], [(1, PAGE)], [(0, 0)], [(0, 2 * PAGE), (PAGE, PAGE)], [((1 << 64) - PAGE, 2 * PAGE)]],
)  # fmt: skip
def test_bad_regions_are_refused(specs: list[tuple[int, int]]) -> None:
    with pytest.raises(OSError, match="EINVAL"):
        GuestMemory([RegionSpec(*spec) for spec in specs])


def test_the_devices_have_a_mapping_of_their_own_of_the_same_memory() -> None:
    memory = GuestMemory([RegionSpec(0x10000, 4 * PAGE)])
    region = memory.regions[0]
    assert region.device_view is region.device_view
    region.device_view[5:8] = b"dev"
    region.view[PAGE : PAGE + 3] = b"cpu"
    assert bytes(region.view[5:8]) == b"dev"
    assert bytes(region.device_view[PAGE : PAGE + 3]) == b"cpu"
    addresses = {
        np.frombuffer(view, dtype=np.uint8).ctypes.data
        for view in (region.view, region.device_view)
    }
    assert len(addresses) == 2
    memory.close()
    with pytest.raises(OSError, match="closed") as refused:
        _ = region.device_view
    assert refused.value.errno == errno.EBADF


def test_memory_may_be_closed_while_views_are_held() -> None:
    memory, space = GuestMemory([RegionSpec(0x10000, 4 * PAGE)]), DmaSpace()
    space.map_guest(memory)
    region = memory.regions[0]
    held = region.view[:16], np.frombuffer(region.device_view, dtype=np.uint8)
    space.write(0x10000, b"before")
    memory.close()
    memory.close()
    space.write(0x10000 + 6, b" after")
    assert bytes(held[0][:12]) == bytes(held[1][:12]) == b"before after"


def test_dma_reaches_only_what_is_mapped_and_tells_of_writes() -> None:
    space = DmaSpace()
    first, second = bytearray(PAGE), bytearray(PAGE)
    space.map(0x1000, memoryview(first))
    space.map(0x3000, memoryview(second))
    told: list[tuple[int, int]] = []
    listener = lambda address, length: told.append((address, length))  # noqa: E731
    space.listen(listener)
    space.write(0x1FFE, b"hi")
    assert first[-2:] == b"hi"
    assert space.read(0x1FFE, 2) == b"hi"
    space.unlisten(listener)
    space.write(0x3000, b"later")
    assert told == [(0x1FFE, 2)]
    for address, length in ((0xFFF, 1), (0x1FFF, 2), (0x2000, 1), (0x4000, 1)):
        with pytest.raises(OSError, match="EFAULT"):
            space.view(address, length)
    space.unmap(0x1000)
    with pytest.raises(OSError, match="EFAULT"):
        space.read(0x1000, 1)
    with pytest.raises(OSError, match="ENOENT"):
        space.unmap(0x1000)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 8)), max_size=12))
def test_mappings_never_overlap(ranges: list[tuple[int, int]]) -> None:
    space, taken = DmaSpace(), set[int]()
    for start, length in ranges:
        wanted = set(range(start, start + length))
        try:
            space.map(start, memoryview(bytearray(length)))
        except OSError as error:
            assert error.errno == errno.EEXIST
            assert wanted & taken
        else:
            assert not wanted & taken
            taken |= wanted
    for address in range(50):
        if address in taken:
            assert space.read(address, 1) == b"\0"
        else:
            with pytest.raises(OSError, match="EFAULT"):
                space.read(address, 1)


def test_a_range_over_adjacent_mappings_is_read_and_written_as_one() -> None:
    space = DmaSpace()
    parts = [bytearray(4), bytearray(2), bytearray(6)]
    for address, part in zip((100, 104, 106), parts, strict=True):
        space.map(address, memoryview(part))
    told: list[tuple[int, int]] = []
    space.listen(lambda address, length: told.append((address, length)))
    space.write(102, bytes(range(1, 9)))
    assert [bytes(part) for part in parts] == [b"\0\0\1\2", b"\3\4", b"\5\6\7\x08\0\0"]
    assert told == [(102, 8)]
    assert space.read(101, 10) == b"\0\1\2\3\4\5\6\7\x08\0"
    views = space.views(103, 4)
    assert [len(view) for view in views] == [1, 2, 1]
    views[2][:] = b"!"
    assert parts[2][0] == ord("!")
    with pytest.raises(OSError, match="EFAULT"):
        space.view(103, 2)


def test_a_range_with_a_hole_is_refused_whole() -> None:
    space = DmaSpace()
    first, second = bytearray(8), bytearray(8)
    space.map(0, memoryview(first))
    space.map(9, memoryview(second))
    told: list[tuple[int, int]] = []
    space.listen(lambda address, length: told.append((address, length)))
    for address, length in ((4, 5), (4, 8), (8, 1), (8, 4), (12, 6), (17, 1), ((1 << 64) - 1, 2)):
        with pytest.raises(OSError, match="EFAULT"):
            space.write(address, bytes([0xFF]) * length)
        with pytest.raises(OSError, match="EFAULT"):
            space.views(address, length)
        with pytest.raises(OSError, match="EFAULT"):
            space.check(address, length)
    assert bytes(first + second) == bytes(16)
    assert told == []
    space.check(9, 8)


def test_no_bytes_need_no_mapping() -> None:
    space = DmaSpace()
    told: list[tuple[int, int]] = []
    space.listen(lambda address, length: told.append((address, length)))
    assert space.views(5, 0) == []
    assert space.read(5, 0) == b""
    space.write(5, b"")
    assert told == []


def test_words_are_written_by_their_bytes() -> None:
    space, memory = DmaSpace(), bytearray(8)
    space.map(0, memoryview(memory)[:3])
    space.map(3, memoryview(memory)[3:])
    space.write(0, memoryview(b"\1\2\3\4\5\6\7\x08").cast("I"))
    assert memory == b"\1\2\3\4\5\6\7\x08"


def test_memory_that_cannot_be_mapped() -> None:
    space = DmaSpace()
    with pytest.raises(OSError, match="EINVAL"):
        space.map(0, memoryview(bytearray()))
    with pytest.raises(OSError, match="EEXIST"):
        space.map((1 << 64) - 1, memoryview(bytearray(2)))


def test_memory_that_dma_may_only_read() -> None:
    space, told = DmaSpace(), list[tuple[int, int]]()
    space.listen(lambda address, length: told.append((address, length)))
    space.map(0, memoryview(bytearray(b"before")))
    space.map(6, memoryview(b"read-only"))
    assert space.read(3, 7) == b"oreread"
    for address, data in ((6, b"x"), (3, b"across")):
        with pytest.raises(OSError, match="EFAULT"):
            space.write(address, data)
    with pytest.raises(OSError, match="EFAULT"):
        space.view(6, 1)
    with pytest.raises(OSError, match="EFAULT"):
        space.views(5, 2)
    assert space.read(0, 6) == b"before"
    assert not told


class _Distant:
    """Memory of somebody else, who is asked for it."""

    def __init__(self, size: int, *, readonly: bool = False) -> None:
        self.data, self.readonly = bytearray(range(size)), readonly

    def __len__(self) -> int:
        return len(self.data)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.data[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.data[offset : offset + len(data)] = data


def test_memory_that_is_asked_for() -> None:
    space, distant = DmaSpace(), _Distant(8)
    space.map(0x100, memoryview(bytearray(8)))
    space.map(0x108, distant)
    assert space.ranges() == [(0x100, 8), (0x108, 8)]
    assert space.read(0x106, 4) == b"\0\0\0\1"
    assert space.read(0x109, 2) == b"\1\2"
    space.write(0x106, b"abcd")
    assert space.read(0x106, 4) == b"abcd"
    assert distant.data[:3] == b"cd\2"
    space.check(0x100, 16)
    for access in (space.view, space.views):
        with pytest.raises(OSError, match="EFAULT"):
            access(0x108, 1)
    for address in (0x10C, 0x110):
        with pytest.raises(OSError, match="EFAULT"):
            space.read(address, 8)
    distant.readonly = True
    with pytest.raises(OSError, match="EFAULT"):
        space.write(0x106, b"wxyz")
    assert space.read(0x106, 4) == b"abcd"


def test_mappings_are_replaced_in_one_step_or_not_at_all() -> None:
    space = DmaSpace()
    space.map(0, memoryview(bytearray(b"old!")))
    space.map(4, memoryview(bytearray(b"kept")))
    space.replace([0], [(0, memoryview(bytearray(b"ne"))), (2, memoryview(bytearray(b"w.")))])
    assert space.read(0, 8) == b"new.kept"
    with pytest.raises(OSError, match="EEXIST"):
        space.replace([0, 2], [(0, memoryview(bytearray(4))), (3, memoryview(bytearray(2)))])
    with pytest.raises(OSError, match="ENOENT"):
        space.replace([0, 3], [])
    assert space.read(0, 8) == b"new.kept"
    space.replace([0, 2, 4], [])
    with pytest.raises(OSError, match="EFAULT"):
        space.check(0, 1)


def test_accesses_beside_changes_see_one_state_or_the_other() -> None:
    space = DmaSpace()
    space.map(0, memoryview(bytearray(b"a" * 8)))
    space.map(1 << 20, memoryview(bytearray(b"aaaaaaaa")))
    ready, done = threading.Barrier(2), threading.Event()
    seen: set[bytes] = set()
    failed: list[OSError] = []

    def access() -> None:
        ready.wait()
        while not done.is_set():
            try:
                seen.add(space.read(0, 8))
                space.write(1 << 20, b"other")
            except OSError as error:
                failed.append(error)

    thread = threading.Thread(target=access)
    thread.start()
    ready.wait()
    round_ = 0
    while round_ < 500 or len(seen) < 2:
        old = [0] if round_ % 2 == 0 else [0, 4]
        letters = b"b" * 8 if round_ % 2 else b"a" * 8
        memory = memoryview(bytearray(letters))
        space.replace(old, [(0, memory)] if round_ % 2 else [(0, memory[:4]), (4, memory[4:])])
        # Below and above what is accessed, so that its place in the table moves.
        space.map(100 + round_, memoryview(bytearray(1)))
        space.map((1 << 30) + round_, memoryview(bytearray(1)))
        round_ += 1
    done.set()
    thread.join()
    assert not failed
    assert seen == {b"a" * 8, b"b" * 8}


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.integers(0, 47),
    st.binary(min_size=1, max_size=20),
)
def test_pieces_behave_as_one_memory(sizes: list[int], start: int, data: bytes) -> None:
    space, whole = DmaSpace(), bytearray(sum(sizes))
    at = 0
    for size in sizes:
        space.map(at, memoryview(whole)[at : at + size])
        at += size
    told: list[tuple[int, int]] = []
    space.listen(lambda address, length: told.append((address, length)))
    if start + len(data) > len(whole):
        with pytest.raises(OSError, match="EFAULT"):
            space.write(start, data)
        assert whole == bytes(len(whole))
        return
    space.write(start, data)
    assert whole[start : start + len(data)] == data
    assert whole.count(0) >= len(whole) - len(data)
    assert space.read(start, len(data)) == data
    assert told == [(start, len(data))]
