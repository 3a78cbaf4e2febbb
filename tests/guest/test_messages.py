"""What counts as lost, doubled, reordered and damaged."""

import collections
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.guest import messages
from precopy.guest.layout import MESSAGE, Count, Pair, WorkloadConfig
from precopy.mlx5_abi.wqe import WqeOpcode

CONFIG = WorkloadConfig(pairs=4, active=4, size=96, mix="siwr", seed=3)
FRESH = Pair(*[0] * len(Pair._fields))

LOST, DOUBLED, REORDERED, DAMAGED = Count.LOST, Count.DOUBLED, Count.REORDERED, Count.DAMAGED


def counted(arrivals: Iterable[int], sent: int) -> dict[Count, int]:
    """What is counted when these messages arrive, in this order, and no more of those sent."""
    pair, counts = FRESH._replace(next_send=sent), collections.Counter[Count]()
    for sequence in arrivals:
        pair, tally = messages.arrive(pair, sequence)
        counts.update(tally)
    pair, tally = messages.pass_over(pair, sent)
    counts.update(tally)
    assert pair.next_arrival == sent
    return {which: count for which, count in counts.items() if count}


@pytest.mark.parametrize(
    ("arrivals", "sent", "counts"),
    [
        ([0, 1, 2, 3], 4, {}),
        ([], 0, {}),
        ([], 4, {LOST: 4}),
        ([1, 2, 3], 4, {LOST: 1}),
        ([0, 2, 3], 4, {LOST: 1}),
        ([0, 1, 2], 4, {LOST: 1}),
        ([3], 4, {LOST: 3}),
        ([0, 0, 1, 2, 3], 4, {DOUBLED: 1}),
        ([0, 1, 2, 3, 0, 1], 4, {DOUBLED: 2}),
        ([1, 0, 2, 3], 4, {REORDERED: 1}),
        ([3, 2, 1, 0], 4, {REORDERED: 3}),
        ([1, 0, 0, 2, 3], 4, {REORDERED: 1, DOUBLED: 1}),
        ([0, 2, 2, 3], 4, {LOST: 1, DOUBLED: 1}),
        ([2, 1, 3], 4, {LOST: 1, REORDERED: 1}),
    ],
)
def test_what_counts_as_what(arrivals: list[int], sent: int, counts: dict[Count, int]) -> None:
    assert counted(arrivals, sent) == counts


@settings(max_examples=300, deadline=None, derandomize=True)
@given(sent=st.integers(1, 40), data=st.data())
def test_any_arrivals_of_a_window(sent: int, data: st.DataObject) -> None:
    """Each message that never came is lost; each beyond its first coming is doubled; each that
    came after a later one is reordered."""
    arrivals = data.draw(st.lists(st.integers(0, sent - 1), max_size=80))
    seen: set[int] = set()
    late = 0
    for sequence in arrivals:
        late += sequence not in seen and any(other > sequence for other in seen)
        seen.add(sequence)
    expected = {LOST: sent - len(seen), DOUBLED: len(arrivals) - len(seen), REORDERED: late}
    assert counted(arrivals, sent) == {which: n for which, n in expected.items() if n}


def test_a_message_that_comes_after_ages_counts_as_doubled() -> None:
    """No more than 64 are remembered to be missing; what was counted as lost stays lost."""
    assert counted([*range(1, 64), 0], 64) == {REORDERED: 1}
    assert counted([*range(1, 65), 0], 65) == {LOST: 1, DOUBLED: 1}
    assert counted([100, 37, 36], 101) == {LOST: 99, REORDERED: 1, DOUBLED: 1}
    assert counted([1 << 62], (1 << 62) + 1) == {LOST: 1 << 62}


def test_what_is_damaged_takes_the_place_of_the_next() -> None:
    pair = FRESH._replace(next_send=3, next_arrival=1)
    pair, tally = messages.arrive_damaged(pair)
    assert (pair.next_arrival, tally) == (2, {DAMAGED: 1})
    pair, tally = messages.arrive(pair, 2)
    assert tally == {}
    # Where nothing is due it takes no place.
    pair, tally = messages.arrive_damaged(pair)
    assert (pair.next_arrival, tally) == (3, {DAMAGED: 1})


@pytest.mark.parametrize("size", [32, 33, 64, 1000, 65536])
def test_a_message_is_told_from_every_other_and_from_each_flip(size: int) -> None:
    config = WorkloadConfig(pairs=2, active=2, size=size)
    message = messages.build(config, 1, 77)
    assert len(message) == size
    assert messages.sequence_of(config, 1, message) == 77
    assert messages.sequence_of(config, 0, message) is None
    other = WorkloadConfig(pairs=2, active=2, size=size, seed=2)
    assert messages.sequence_of(other, 1, message) is None
    for at in range(0, size, 1 if size < 2000 else 997):
        for bit in range(8):
            flipped = bytearray(message)
            flipped[at] ^= 1 << bit
            assert messages.sequence_of(config, 1, bytes(flipped)) is None
    assert messages.sequence_of(config, 1, bytes(size)) is None


def test_messages_differ_in_all_that_names_them() -> None:
    made = {
        messages.build(WorkloadConfig(seed=seed, size=64), index, sequence)[MESSAGE.size :]
        for seed in (1, 2)
        for index in range(5)
        for sequence in (0, 1, 1 << 32)
    }
    assert len(made) == 30


def test_operations_in_turn() -> None:
    mixed = [messages.operation(CONFIG, sequence) for sequence in range(5)]
    assert mixed == [
        WqeOpcode.SEND,
        WqeOpcode.SEND_IMM,
        WqeOpcode.RDMA_WRITE,
        WqeOpcode.RDMA_READ,
        WqeOpcode.SEND,
    ]
    assert [messages.immediate(CONFIG, sequence) for sequence in (0, 1, 2, 3)] == [None, 1] + [
        None
    ] * 2
    assert messages.immediate(CONFIG, (1 << 32) + 1) == 1
