"""What a message holds, and what one that has arrived means: the checks of the workload.

Messages of a pair are numbered from 0 and have to arrive once each, in that order. All functions
here are pure; what is remembered of a pair is its :class:`Pair`.
"""

import xxhash

from precopy.guest.layout import MESSAGE, OPERATIONS, Count, Pair, WorkloadConfig
from precopy.mlx5_abi.wqe import WqeOpcode

#: As many messages before the next one as are remembered to be missing.
_REMEMBERED = 64
_MASK = (1 << _REMEMBERED) - 1


def operation(config: WorkloadConfig, sequence: int) -> WqeOpcode:
    """How message ``sequence`` of a pair is sent."""
    return OPERATIONS[config.mix[sequence % len(config.mix)]]


def build(config: WorkloadConfig, index: int, sequence: int) -> bytes:
    """Message ``sequence`` of pair ``index``: every byte of it follows from these and the seed."""
    length = config.size - MESSAGE.size
    block = xxhash.xxh3_128_digest(b"%d %d %d" % (config.seed, index, sequence))
    payload = (block * (length // len(block) + 1))[:length]
    return MESSAGE.pack(sequence, index, length, xxhash.xxh3_64_intdigest(payload)) + payload


def immediate(config: WorkloadConfig, sequence: int) -> int | None:
    """The immediate that message ``sequence`` brings, None where it brings none."""
    carries = operation(config, sequence) == WqeOpcode.SEND_IMM
    return sequence & 0xFFFFFFFF if carries else None


def sequence_of(config: WorkloadConfig, index: int, found: bytes) -> int | None:
    """Which message of pair ``index`` ``found`` is; None where it is none, or not whole."""
    sequence: int = MESSAGE.unpack_from(found)[0]
    return sequence if found == build(config, index, sequence) else None


def arrive(pair: Pair, sequence: int) -> tuple[Pair, dict[Count, int]]:
    """Message ``sequence`` has arrived, whole: the pair from now on, and what to add to its counts.

    Those before it that have not arrived count as lost, until they come late: then as reordered.
    """
    if sequence >= pair.next_arrival:
        pair, tally = pass_over(pair, sequence)
        return _next(pair), tally
    late = (
        1 << (pair.next_arrival - 1 - sequence)
        if sequence + _REMEMBERED >= pair.next_arrival
        else 0
    )
    if pair.missing & late:
        return pair._replace(missing=pair.missing ^ late), {Count.LOST: -1, Count.REORDERED: 1}
    return pair, {Count.DOUBLED: 1}


def arrive_damaged(pair: Pair) -> tuple[Pair, dict[Count, int]]:
    """Something has arrived that is no message: it is taken for the next one, where one is due."""
    due = pair.next_arrival < pair.next_send
    return _next(pair) if due else pair, {Count.DAMAGED: 1}


def pass_over(pair: Pair, until: int) -> tuple[Pair, dict[Count, int]]:
    """Wait no longer for the messages before ``until``: those that have not arrived are lost."""
    gap = until - pair.next_arrival
    if gap <= 0:
        return pair, {}
    missing = _MASK if gap >= _REMEMBERED else (pair.missing << gap | (1 << gap) - 1) & _MASK
    return pair._replace(next_arrival=until, missing=missing), {Count.LOST: gap}


def _next(pair: Pair) -> Pair:
    return pair._replace(next_arrival=pair.next_arrival + 1, missing=pair.missing << 1 & _MASK)
