"""Writes found by comparing checksums: nothing of the kernel is needed.

A block of 2 MiB is read from the memfd and its XXH3 compared; where it differs, so are those of its
pages. What was never written is not read. All sums of a block are of one copy of it: a block that
went to and fro between two looks at it could otherwise hide a page.

What it is not: it sees writes by others (devices, other processes) as well, and a page that has again
what it is compared with counts as clean. That is what it had at the last look, or, where who copies
pages has told what it got (:meth:`ChecksumTracker.copied`), that: a page can be written after the
look, copied, and written back before the next. Two contents with the same 64 bits would be taken for
one; among 10^12 comparisons that happens with a probability of 10^-7.

Cost, measured for 1 GiB on 2 cores (``python -m benchmarks dirty``): collect takes 0.18 s where all is
clean and 0.33 s where 1 % of the pages, scattered, is dirty, since then every block has one; start
0.37 s. Sums take 8 bytes for a page.
"""

import errno
import os

import numpy as np
import xxhash
from numpy.typing import NDArray

from precopy.memory.common import check_bitmap
from precopy.pci.memory import PAGE_SIZE, GuestMemory, Region
from precopy.vfio.dirty_bits import set_runs
from precopy.vfio.errors import refuse

_BLOCK = 2 << 20
_PAGES = _BLOCK // PAGE_SIZE

Sums = NDArray[np.uint64]


def _page_sums(data: memoryview) -> Sums:
    sum_of = xxhash.xxh3_64_intdigest
    return np.array(
        [sum_of(data[at : at + PAGE_SIZE]) for at in range(0, len(data), PAGE_SIZE)],
        dtype=np.uint64,
    )


class _Block:
    """What a block is compared with: what it held when it was last looked at, or copied."""

    __slots__ = ("pages", "whole")

    def __init__(self, data: memoryview) -> None:
        #: None where its pages are of different moments.
        self.whole: int | None = xxhash.xxh3_64_intdigest(data)
        self.pages = _page_sums(data)

    def put(self, pages: NDArray[np.int64], sums: Sums) -> None:
        """Compare these ``pages``, counted from its beginning, with ``sums`` from now on."""
        if (self.pages[pages] != sums).any():
            self.pages[pages] = sums
            self.whole = None


class ChecksumTracker:
    """A :class:`~precopy.memory.tracker.WriteTracker`, to be had everywhere."""

    name = "checksums"

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._buffer = memoryview(bytearray(_BLOCK))
        #: What zeroes give, by the block's length in bytes.
        self._zeroes: dict[int, _Block] = {}
        #: By region, the blocks that were not all zeroes, by number. Empty while stopped.
        self._blocks: list[dict[int, _Block]] = []

    def start(self) -> None:
        self._blocks = [{} for _ in self._memory.regions]
        for index, region in enumerate(self._memory.regions):
            for number in self._numbers(index):
                self._changed(region, self._blocks[index], number)

    def _numbers(self, index: int) -> list[int]:
        """Numbers of the blocks that hold data or did at the last look."""
        numbers = set(self._blocks[index])
        for extent in self._memory.extents(index):
            end = extent.offset + extent.length
            numbers.update(range(extent.offset // _BLOCK, -(-end // _BLOCK)))
        return sorted(numbers)

    def _changed(self, region: Region, blocks: dict[int, _Block], number: int) -> NDArray[np.int64]:
        """Look at a block: numbers of its pages that are not what they were."""
        start = number * _BLOCK
        data = self._buffer[: min(_BLOCK, region.spec.length - start)]
        done = 0
        # By the file: a hole that is read through a mapping is filled.
        while done < len(data):
            count = os.preadv(region.fd, [data[done:]], start + done)
            if not count:
                raise refuse(errno.EIO, f"guest memory {region.spec} ends at {start + done:#x}")
            done += count
        before = blocks.get(number) or self._zero(len(data))
        if xxhash.xxh3_64_intdigest(data) == before.whole:
            return np.empty(0, dtype=np.int64)
        blocks[number] = after = _Block(data)
        return np.flatnonzero(after.pages != before.pages) + number * _PAGES

    def _zero(self, length: int) -> _Block:
        if length not in self._zeroes:
            self._zeroes[length] = _Block(memoryview(bytes(length)))
        return self._zeroes[length]

    def collect(self, region: int, dirty: NDArray[np.uint8]) -> None:
        if not self._blocks:
            raise refuse(errno.EINVAL, "the write tracker is not started")
        there, blocks = self._memory.regions[region], self._blocks[region]
        check_bitmap(there, dirty)
        for number in self._numbers(region):
            pages = self._changed(there, blocks, number)
            set_runs(dirty, pages, pages)

    def copied(self, region: int, pages: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        if not self._blocks or not len(pages):
            return
        blocks, length = self._blocks[region], self._memory.regions[region].spec.length
        sums = _page_sums(content.data.cast("B"))
        numbers = pages // _PAGES
        for number in np.unique(numbers).tolist():
            some = numbers == number
            block = blocks.get(number)
            if block is None:
                # Zeroes so far, of which every block of that kind has the same sums.
                size = min(_BLOCK, length - number * _BLOCK)
                block = blocks[number] = _Block(memoryview(bytes(size)))
            block.put(pages[some] - number * _PAGES, sums[some])

    def stop(self) -> None:
        self._blocks = []
