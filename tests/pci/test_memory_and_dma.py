"""Guest memory and the DMA address space."""

import errno

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
