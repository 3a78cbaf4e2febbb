"""Bitmaps of pages, whole runs at a time: set, cleared, found, counted, moved.

A bitmap is an array of bytes; bit n is ``bits[n // 8] >> n % 8``, the order of
DMA_LOGGING_REPORT (struct vfio_device_feature_dma_logging_report of linux/vfio.h). Nothing here walks
bits or pages in Python.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Bits = NDArray[np.uint8]
#: Numbers of bits.
Numbers = NDArray[np.int64]

_WORD = np.dtype("<u8")

#: Whole bytes of a run are written by their numbers up to here; beyond, a slice for each run is faster.
_SHORT = 64
#: Words that are looked at together, so that what is made on the way stays in the cache.
_BLOCK = 1 << 16

_ONE, _TOP = np.uint64(1), np.uint64(63)
_M1, _M2, _M4 = (
    np.uint64(mask) for mask in (0x5555555555555555, 0x3333333333333333, 0x0F0F0F0F0F0F0F0F)
)
_SUM = np.uint64(0x0101010101010101)


def set_runs(bits: Bits, first: Numbers, last: Numbers) -> None:
    """Set the bits from ``first[i]`` to ``last[i]``, the last included, for every i.

    Runs may come in any order and overlap. IndexError for a bit beyond the end; then nothing is set.
    """
    _change(bits, first, last, np.bitwise_or, 0)


def clear_runs(bits: Bits, first: Numbers, last: Numbers) -> None:
    """Clear the bits from ``first[i]`` to ``last[i]``; all else as :func:`set_runs`."""
    _change(bits, first, last, np.bitwise_and, 0xFF)


def _change(
    bits: Bits,
    first: Numbers,
    last: Numbers,
    into: Callable[[Bits, Bits], Bits],
    turned: int,
) -> None:
    """Runs as masks, turned over by XOR with ``turned``, put into the bytes of ``bits``."""
    if not len(first):
        return
    if np.any(first[1:] < first[:-1]):
        order = np.argsort(first, kind="stable")
        first, last = first[order], last[order]
    last = np.maximum.accumulate(last)
    if first[0] < 0 or last[-1] >= len(bits) * 8:
        raise IndexError(f"bits {first[0]} to {last[-1]} of a bitmap of {len(bits) * 8}")
    # Runs that touch become one.
    starts = np.flatnonzero(np.concatenate(([True], first[1:] > last[:-1] + 1)))
    ends = np.append(starts[1:], len(first)) - 1
    first, last = first[starts], last[ends]
    head, tail = first >> 3, last >> 3
    upwards = 0xFF << (first & 7) & 0xFF
    downwards = 0xFF >> (7 - (last & 7))
    within = head == tail

    def masked(at: Numbers, masks: Numbers) -> None:
        # Ascending, and a byte may be there again.
        if len(at):
            begins = np.flatnonzero(np.diff(at, prepend=-1))
            bytes_ = np.bitwise_or.reduceat(masks, begins).astype(np.uint8)
            some = at[begins]
            bits[some] = into(bits[some], bytes_ ^ np.uint8(turned))

    masked(head, np.where(within, upwards & downwards, upwards))
    beyond = ~within
    masked(tail[beyond], downwards[beyond])
    full = 0xFF ^ turned
    begin, count = head[beyond] + 1, tail[beyond] - head[beyond] - 1
    short = (count > 0) & (count <= _SHORT)
    bits[_numbers(begin[short], count[short])] = full
    long = count > _SHORT
    for low, size in zip(begin[long].tolist(), count[long].tolist(), strict=True):
        bits[low : low + size] = full


def _numbers(first: Numbers, count: Numbers) -> Numbers:
    """``first[i]``, ``first[i] + 1`` ... of every run, ``count[i]`` of them."""
    before = np.cumsum(count) - count
    numbers: Numbers = np.repeat(first - before, count) + np.arange(count.sum(), dtype=np.int64)
    return numbers


def _words(bits: Bits) -> NDArray[np.uint64]:
    """``bits`` in words: the memory itself where it is made of whole ones, else a copy."""
    short = -len(bits) % 8
    if short or not bits.flags.c_contiguous:
        bits = np.concatenate((bits, np.zeros(short, dtype=np.uint8)))
    return bits.view(_WORD)


def _some(words: NDArray[np.uint64]) -> Numbers:
    """Numbers of the words that are not 0."""
    filled: Numbers = np.flatnonzero(words != 0)
    return filled


def _positions(words: NDArray[np.uint64], at: Numbers) -> Numbers:
    """Numbers of the bits that are set, where ``words[i]`` is word ``at[i]``."""
    cells = words.astype(_WORD, copy=False).view(np.uint8)
    filled = np.flatnonzero(cells != 0)
    found = np.flatnonzero(np.unpackbits(cells[filled], bitorder="little"))
    byte = filled[found >> 3]
    positions: Numbers = (at[byte >> 3] << 6) + ((byte & 7) << 3) + (found & 7)
    return positions


def dirty_runs(bits: Bits) -> tuple[Numbers, Numbers]:
    """The runs of bits that are set, ascending: the first of each, and how many they are."""
    words = _words(bits)
    at = _some(words)
    # The word before and behind, where it is not all clean.
    firsts: list[Numbers] = []
    lasts: list[Numbers] = []
    for begin in range(0, len(at), _BLOCK):
        part = at[begin : begin + _BLOCK]
        here = words[part]
        before = np.where(part > 0, words[part - 1], np.uint64(0)) >> _TOP
        behind = np.where(part + 1 < len(words), words[(part + 1) % len(words)], np.uint64(0))
        firsts.append(_edges(here & ~(here << _ONE | before), part))
        lasts.append(_edges(here & ~(here >> _ONE | behind << _TOP), part))
    if not firsts:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first = np.concatenate(firsts)
    return first, np.concatenate(lasts) - first + 1


def _edges(edges: NDArray[np.uint64], at: Numbers) -> Numbers:
    # In long runs most words have no edge.
    some = _some(edges)
    return _positions(edges[some], at[some])


def count_bits(bits: Bits) -> int:
    """How many bits are set."""
    words = _words(bits)
    total = 0
    for begin in range(0, len(words), _BLOCK):
        block = words[begin : begin + _BLOCK]
        block = block[block != 0]
        # Sums of 2, 4 and 8 bits beside each other, then of all bytes in the uppermost.
        block = block - (block >> _ONE & _M1)
        block = (block & _M2) + (block >> np.uint64(2) & _M2)
        block = block + (block >> np.uint64(4)) & _M4
        total += int((block * _SUM >> np.uint64(56)).sum())
    return total


def or_into(into: Bits, bits: Bits, at: int = 0) -> None:
    """Set in ``into`` the bits of ``bits``, the first of them at bit ``at``.

    IndexError where a bit that is set has no place; then nothing is set.
    """
    if at < 0:
        raise IndexError(f"bit {at} of a bitmap")
    moved, begin = _shifted_up(bits, at & 7), at >> 3
    room = max(len(into) - begin, 0)
    if moved[room:].any():
        raise IndexError(f"{len(bits) * 8} bits at {at} of a bitmap of {len(into) * 8}")
    part = into[begin : begin + len(moved)]
    np.bitwise_or(part, moved[: len(part)], out=part)


def take(bits: Bits, first: int, count: int) -> Bits:
    """Move ``count`` bits from ``first`` on out of ``bits``, in which they are clear then.

    In what is given bit 0 stands for ``first``. IndexError where ``bits`` has not so many.
    """
    if first < 0 or count < 0 or first + count > len(bits) * 8:
        raise IndexError(f"bits {first} to {first + count - 1} of a bitmap of {len(bits) * 8}")
    if not count:
        return np.zeros(0, dtype=np.uint8)
    low, high = first >> 3, first + count - 1 >> 3
    piece = bits[low : high + 1].copy()
    # What is beside the range in the bytes at its ends stays.
    piece[0] &= 0xFF << (first & 7) & 0xFF
    piece[-1] &= 0xFF >> (7 - (first + count - 1 & 7))
    bits[low : high + 1] ^= piece
    shift = first & 7
    if shift:
        moved = piece >> np.uint8(shift)
        moved[:-1] |= piece[1:] << np.uint8(8 - shift)
        piece = moved
    return piece[: -(-count // 8)]


def _shifted_up(bits: Bits, shift: int) -> Bits:
    if not shift:
        return bits
    moved = np.zeros(len(bits) + 1, dtype=np.uint8)
    moved[:-1] = bits << np.uint8(shift)
    moved[1:] |= bits >> np.uint8(8 - shift)
    return moved
