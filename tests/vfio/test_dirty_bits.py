"""Bitmaps, whole runs at a time, against models made of plain sets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.vfio.dirty_bits import (
    Bits,
    clear_runs,
    count_bits,
    dirty_runs,
    or_into,
    set_runs,
    take,
)


def bitmap(ones: set[int], size: int) -> Bits:
    bits = np.zeros(size, dtype=np.uint8)
    for bit in ones:
        bits[bit // 8] |= 1 << bit % 8
    return bits


def ones_of(bits: Bits) -> set[int]:
    return {
        8 * n + bit for n, byte in enumerate(bits.tolist()) for bit in range(8) if byte >> bit & 1
    }


def members(runs: list[tuple[int, int]]) -> set[int]:
    return {bit for first, count in runs for bit in range(first, first + count)}


def columns(runs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    pairs = np.array([(first, first + count - 1) for first, count in runs], dtype=np.int64)
    pairs = pairs.reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


#: Bytes of the bitmaps. Runs in any order, short ones and ones beyond the length that slices are used for.
SIZE = 1500
some_runs = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 400), st.integers(1, 90)),
        st.tuples(st.integers(0, SIZE * 8 - 1100), st.integers(1, 1100)),
    ),
    max_size=30,
)


@given(some_runs, some_runs, some_runs)
def test_bits_are_set_and_cleared_as_in_a_set(
    before: list[tuple[int, int]],
    added: list[tuple[int, int]],
    removed: list[tuple[int, int]],
) -> None:
    bits = bitmap(members(before), SIZE)
    set_runs(bits, *columns(added))
    assert ones_of(bits) == members(before) | members(added)
    clear_runs(bits, *columns(removed))
    assert ones_of(bits) == (members(before) | members(added)) - members(removed)


@pytest.mark.parametrize("whole", range(60, 70))
@pytest.mark.parametrize("ends", [(0, 0), (5, 3)])
def test_whole_bytes_of_every_number(whole: int, ends: tuple[int, int]) -> None:
    bits = np.zeros(SIZE, dtype=np.uint8)
    first, last = np.array([80 - ends[0]]), np.array([79 + 8 * whole + ends[1]])
    set_runs(bits, first, last)
    assert ones_of(bits) == set(range(first[0], last[0] + 1))
    clear_runs(bits, first, last)
    assert not bits.any()


@pytest.mark.parametrize("change", [set_runs, clear_runs])
@pytest.mark.parametrize("run", [(-1, 3), (70, 80), (0, 80)])
def test_a_run_beyond_the_bitmap_changes_nothing(change, run: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    bits = bitmap({1, 7, 79}, 10)
    with pytest.raises(IndexError):
        change(bits, np.array([7, run[0]]), np.array([7, run[1]]))
    assert ones_of(bits) == {1, 7, 79}


@given(some_runs, st.integers(0, 9), st.integers(0, 9))
def test_runs_that_are_found(runs: list[tuple[int, int]], skip: int, cut: int) -> None:
    # A slice need neither begin nor end where a word does.
    bits = bitmap(members(runs), SIZE)[skip : SIZE - cut]
    expected = ones_of(bits)
    firsts, counts = dirty_runs(bits)
    found = list(zip(firsts.tolist(), counts.tolist(), strict=True))
    assert members(found) == expected
    # Each as long as can be, ascending.
    assert all(a + count < b for (a, count), (b, _) in itertools.pairwise(found))
    assert all(count > 0 for _, count in found)
    assert count_bits(bits) == len(expected)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 65])
def test_all_and_nothing(size: int) -> None:
    bits = np.zeros(size, dtype=np.uint8)
    assert [len(each) for each in dirty_runs(bits)] == [0, 0]
    assert count_bits(bits) == 0
    bits[:] = 0xFF
    firsts, counts = dirty_runs(bits)
    assert (firsts.tolist(), counts.tolist()) == (([0], [8 * size]) if size else ([], []))
    assert count_bits(bits) == 8 * size


def test_runs_over_the_blocks_in_which_words_are_looked_at() -> None:
    bits = np.zeros(9 << 17, dtype=np.uint8)
    # Every word has a bit, so that blocks end at multiples of 2^16 words.
    single = np.arange(0, len(bits) * 8, 64)
    set_runs(bits, single, single)
    edge = 64 << 16
    set_runs(bits, np.array([edge - 5, 2 * edge - 64]), np.array([edge + 3, 2 * edge - 1]))
    firsts, counts = dirty_runs(bits)
    found = dict(zip(firsts.tolist(), counts.tolist(), strict=True))
    # The second run joins the bit behind it; the first one holds the bit at the edge.
    assert {first: count for first, count in found.items() if count > 1} == {
        edge - 5: 9,
        2 * edge - 64: 65,
    }
    assert len(found) == len(single) - 1
    assert count_bits(bits) == len(single) + 8 + 63


@given(some_runs, some_runs, st.integers(0, 100))
def test_a_bitmap_put_into_another_one(
    before: list[tuple[int, int]], added: list[tuple[int, int]], at: int
) -> None:
    into = bitmap(members(before), SIZE + 20)
    or_into(into, bitmap(members(added), SIZE), at)
    assert ones_of(into) == members(before) | {bit + at for bit in members(added)}


@pytest.mark.parametrize(
    ("at", "fits"), [(0, True), (12, True), (13, False), (80, False), (-1, False)]
)
def test_a_bitmap_has_place_or_changes_nothing(at: int, fits: bool) -> None:
    into, bits = bitmap({5}, 2), bitmap({1, 3}, 3)
    if fits:
        or_into(into, bits, at)
        assert ones_of(into) == {5, 1 + at, 3 + at}
    else:
        with pytest.raises(IndexError):
            or_into(into, bits, at)
        assert ones_of(into) == {5}


@given(some_runs, st.data())
def test_bits_that_are_taken_are_there_no_more(
    runs: list[tuple[int, int]], data: st.DataObject
) -> None:
    bits = bitmap(members(runs), SIZE)
    first = data.draw(st.integers(0, SIZE * 8))
    count = data.draw(st.integers(0, min(SIZE * 8 - first, 2000)))
    taken = take(bits, first, count)
    asked = set(range(first, first + count))
    assert len(taken) == -(-count // 8)
    assert ones_of(taken) == {bit - first for bit in members(runs) & asked}
    assert ones_of(bits) == members(runs) - asked
    # And back again.
    or_into(bits, taken, first)
    assert ones_of(bits) == members(runs)


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, -1), (70, 11), (81, 0)])
def test_no_more_can_be_taken_than_there_is(first: int, count: int) -> None:
    bits = bitmap({1, 79}, 10)
    with pytest.raises(IndexError):
        take(bits, first, count)
    assert ones_of(bits) == {1, 79}
