"""Ranges that may be logged, and bitmaps of written pages, against models made of plain sets."""

import errno
import itertools

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from precopy.vfio.dirty import (
    DirtyBitmap,
    Intervals,
    check_ranges,
    merge_ranges,
)
from precopy.vfio.uapi import LoggingRange

PAGE = 4096
TOP = 1 << 64


def errno_of(*arguments: object) -> int | None:
    function, *rest = arguments
    try:
        function(*rest)  # type: ignore[operator]
    except OSError as error:
        return error.errno
    return None


def pages(*pairs: tuple[int, int]) -> list[LoggingRange]:
    return [LoggingRange(first * PAGE, count * PAGE) for first, count in pairs]


# --- Ranges -----------------------------------------------------------------------------------


def test_ranges_come_back_in_order_and_may_touch() -> None:
    assert check_ranges(pages((9, 1), (2, 3), (5, 4)), PAGE) == pages((2, 3), (5, 4), (9, 1))


@pytest.mark.parametrize(
    ("ranges", "page_size", "expected"),
    [
        ([], PAGE, errno.EINVAL),
        (pages(*((2 * n, 1) for n in range(256))), PAGE, None),
        (pages(*((2 * n, 1) for n in range(257))), PAGE, errno.E2BIG),
        (pages((1, 1)), 2 * PAGE, errno.EINVAL),
        ([LoggingRange(PAGE + 1, PAGE)], PAGE, errno.EINVAL),
        ([LoggingRange(PAGE, PAGE + 1)], PAGE, errno.EINVAL),
        ([LoggingRange(PAGE, 0)], PAGE, errno.EINVAL),
        (pages((1, 1)), 0, errno.EINVAL),
        (pages((1, 1)), 3, errno.EINVAL),
        ([LoggingRange(PAGE, PAGE)], 1, None),
        ([LoggingRange(TOP - PAGE, PAGE)], PAGE, errno.EOVERFLOW),
        ([LoggingRange(TOP - PAGE, 2 * PAGE)], PAGE, errno.EOVERFLOW),
        ([LoggingRange(TOP - 2 * PAGE, PAGE)], PAGE, None),
        (pages((1, 3), (3, 1)), PAGE, errno.EINVAL),
        (pages((3, 1), (1, 3)), PAGE, errno.EINVAL),
        (pages((3, 1), (3, 1)), PAGE, errno.EINVAL),
        (pages((1, 9), (3, 1)), PAGE, errno.EINVAL),
    ],
)
def test_which_ranges_may_be_logged(
    ranges: list[LoggingRange], page_size: int, expected: int | None
) -> None:
    assert errno_of(check_ranges, ranges, page_size) == expected


def kernel_merge(ranges: list[LoggingRange], limit: int) -> list[LoggingRange]:
    """One pair at a time: the first of those with the smallest gap, as the kernel's core does."""
    found = list(ranges)
    while len(found) > limit:
        gaps = [found[n + 1].iova - sum(found[n]) for n in range(len(found) - 1)]
        at = gaps.index(min(gaps))
        first, second = found[at], found[at + 1]
        found[at : at + 2] = [LoggingRange(first.iova, sum(second) - first.iova)]
    return found


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5)), min_size=1, max_size=40),
    st.integers(1, 45),
)
def test_merging_closes_the_smallest_gaps(steps: list[tuple[int, int]], limit: int) -> None:
    ranges, end = [], 0
    for gap, length in steps:
        ranges.append(LoggingRange((end + gap) * PAGE, length * PAGE))
        end += gap + length
    assert merge_ranges(ranges, limit) == kernel_merge(ranges, limit)


# --- Bitmaps ----------------------------------------------------------------------------------


def ones(bitmap: memoryview) -> set[int]:
    return {8 * n + bit for n, byte in enumerate(bitmap) for bit in range(8) if byte >> bit & 1}


#: Sizes as powers of two, addresses in units of 1 KiB, so that nothing need be aligned to anything.
UNIT = 1024
UNITS = 512


@st.composite
def reports(draw: st.DrawFn) -> tuple[int, int, int, int, list[tuple[int, int]], list[int]]:
    base = draw(st.sampled_from([0, 1 << 20, (1 << 63) - (1 << 18), TOP - UNIT * UNITS]))
    tracked = 1 << draw(st.integers(10, 18))
    page = 1 << draw(st.integers(12, 17))
    iova = draw(st.integers(0, UNITS - 2))
    length = draw(st.integers(0, UNITS - 1 - iova))
    cuts = sorted(draw(st.sets(st.integers(0, UNITS), max_size=10)))
    ranges = [(low, high - 1) for low, high in zip(cuts[::2], cuts[1::2], strict=False)]
    count = max(UNIT * UNITS // tracked, 1)
    written = sorted(draw(st.sets(st.integers(0, count - 1))))
    return (
        base + iova * UNIT,
        length * UNIT,
        page,
        tracked,
        [(base + low * UNIT, base + high * UNIT + UNIT - 1) for low, high in ranges],
        [base + number * tracked for number in written],
    )


@given(reports())
@example((1024, 0, 4096, 2048, [(0, 2047)], [0]))
def test_pages_of_any_size_reported_in_pages_of_any_size(
    report: tuple[int, int, int, int, list[tuple[int, int]], list[int]],
) -> None:
    iova, length, page, tracked, ranges, written = report
    if iova + length >= TOP:
        return
    count = -(-length // page)
    room = bytearray(-(-count // 8) + 2)
    dirty = DirtyBitmap(iova, length, page, memoryview(room))
    dirty.add_pages(np.array(written, dtype=np.uint64), tracked, ranges)
    expected = set()
    for bit in range(count):
        for unit in range(iova + bit * page, min(iova + (bit + 1) * page, iova + length), UNIT):
            inside = any(low <= unit <= high for low, high in ranges)
            if inside and any(start <= unit < start + tracked for start in written):
                expected.add(bit)
    assert ones(memoryview(room)) == expected
    again = bytearray(len(room))
    intervals = [
        (max(low, start), min(high, start + tracked - 1))
        for start in written
        for low, high in ranges
        if low < start + tracked and start <= high
    ]
    DirtyBitmap(iova, length, page, memoryview(again)).add(intervals)
    assert again == room


@pytest.mark.parametrize(("iova", "bits"), [(PAGE - 1, set()), (PAGE, {0}), (2 * PAGE - 1, {0})])
def test_a_window_of_one_byte(iova: int, bits: set[int]) -> None:
    room = memoryview(bytearray(1))
    page = np.array([PAGE], dtype=np.uint64)
    DirtyBitmap(iova, 1, PAGE, room).add_pages(page, PAGE, [(0, 9 * PAGE)])
    assert ones(room) == bits
    room = memoryview(bytearray(1))
    DirtyBitmap(0, 9 * PAGE, 16 * PAGE, room).add_pages(page, PAGE, [(iova, iova)])
    assert ones(room) == bits


def test_bits_are_only_set_and_nothing_beyond_the_window_changes() -> None:
    room = bytearray(b"\x24" * 4)
    dirty = DirtyBitmap(0, 9 * PAGE, PAGE, memoryview(room)[1:3])
    dirty.add([(0, 100 * PAGE)])
    assert room == b"\x24\xff\x25\x24"


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "room", "expected"),
    [
        (0, PAGE, 2048, 8, errno.EINVAL),
        (0, PAGE, 3 * PAGE, 8, errno.EINVAL),
        (0, PAGE, 0, 8, errno.EINVAL),
        (TOP - PAGE, PAGE, PAGE, 8, errno.EOVERFLOW),
        (TOP - PAGE, PAGE - 1, PAGE, 8, None),
        (0, 65 * PAGE, PAGE, 8, errno.EFAULT),
        (0, 64 * PAGE + 1, PAGE, 8, errno.EFAULT),
        (0, 64 * PAGE, PAGE, 8, None),
        (0, 0, PAGE, 0, None),
    ],
)
def test_which_reports_may_be_asked_for(
    iova: int, length: int, page_size: int, room: int, expected: int | None
) -> None:
    bitmap = memoryview(bytearray(room))
    assert errno_of(DirtyBitmap, iova, length, page_size, bitmap) == expected


def test_a_bitmap_that_cannot_be_written_is_a_bad_address() -> None:
    assert errno_of(DirtyBitmap, 0, PAGE, PAGE, memoryview(bytes(8))) == errno.EFAULT


# --- Sets of bytes ----------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 40), st.integers(0, 12)), min_size=1, max_size=30
    )
)
def test_intervals(steps: list[tuple[bool, int, int]]) -> None:
    intervals, model = Intervals(), set[int]()
    for add, first, more in steps:
        asked = set(range(first, first + more + 1))
        if add:
            intervals.add(first, first + more)
            model |= asked
        else:
            taken = intervals.take(first, first + more)
            assert {n for low, high in taken for n in range(low, high + 1)} == model & asked
            model -= asked
        held = list(intervals)
        assert all(low <= high for low, high in held)
        assert {n for low, high in held for n in range(low, high + 1)} == model
        assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(held))
