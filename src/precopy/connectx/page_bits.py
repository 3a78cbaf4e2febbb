"""A set of page numbers, as bits, anywhere in 64 bits of addresses: it costs what is in it."""

import numpy as np
from numpy.typing import NDArray

Pages = NDArray[np.uint64]

#: Pages of a block, as a power of two: 4 KiB of bits.
_LOG_BLOCK = 15
_BLOCK = 1 << _LOG_BLOCK
_WORD = np.dtype("<u8")


class Overflow(Exception):
    """There is no room for another block."""


class PageBits:
    """Page numbers in blocks, of which there are ``max_blocks`` at most. The caller locks."""

    def __init__(self, max_blocks: int) -> None:
        self._max_blocks = max_blocks
        #: By number, the words of each block and the same memory as single bytes.
        self._blocks: dict[int, tuple[NDArray[np.uint64], memoryview]] = {}

    def add(self, first: int, last: int) -> None:
        """Add the pages from ``first`` to ``last``. Overflow where there is no room."""
        number = first >> _LOG_BLOCK
        if first == last and number in self._blocks:
            bit = first & (_BLOCK - 1)
            self._blocks[number][1][bit >> 3] |= 1 << (bit & 7)
            return
        for block in range(number, (last >> _LOG_BLOCK) + 1):
            base = block << _LOG_BLOCK
            self._fill(block, max(first - base, 0), min(last - base, _BLOCK - 1))

    def _fill(self, number: int, first: int, last: int) -> None:
        if number not in self._blocks:
            if len(self._blocks) >= self._max_blocks:
                raise Overflow
            words = np.zeros(_BLOCK // 64, dtype=_WORD)
            self._blocks[number] = words, words.data.cast("B")
        cells = self._blocks[number][1]
        head, tail = first >> 3, last >> 3
        upwards, downwards = 0xFF << (first & 7) & 0xFF, 0xFF >> (7 - (last & 7))
        if head == tail:
            cells[head] |= upwards & downwards
        else:
            cells[head] |= upwards
            cells[head + 1 : tail] = b"\xff" * (tail - head - 1)
            cells[tail] |= downwards

    def __contains__(self, page: int) -> bool:
        block = self._blocks.get(page >> _LOG_BLOCK)
        bit = page & (_BLOCK - 1)
        return block is not None and bool(block[1][bit >> 3] >> (bit & 7) & 1)

    def blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        """The pages from ``first`` to ``last`` in pieces for :meth:`take`, without those that are empty."""
        low, high = first >> _LOG_BLOCK, last >> _LOG_BLOCK
        return [
            (max(first, number << _LOG_BLOCK), min(last, (number + 1 << _LOG_BLOCK) - 1))
            for number in sorted(self._blocks)
            if low <= number <= high
        ]

    def take(self, first: int, last: int) -> Pages:
        """Remove the pages from ``first`` to ``last``, of one block; those that were there, ascending."""
        number = first >> _LOG_BLOCK
        if number not in self._blocks:
            return np.empty(0, dtype=np.uint64)
        words = self._blocks[number][0]
        some = np.flatnonzero(words)
        rows = np.unpackbits(words[some].view(np.uint8), bitorder="little").reshape(-1, 64)
        at, bit = np.nonzero(rows)
        bits = some[at] * 64 + bit
        base = number << _LOG_BLOCK
        inside = (bits >= first - base) & (bits <= last - base)
        rows[at[inside], bit[inside]] = 0
        words[some] = np.packbits(rows, axis=1, bitorder="little").view(_WORD)[:, 0]
        if not words.any():
            del self._blocks[number]
        return bits[inside].astype(np.uint64) + np.uint64(base)
