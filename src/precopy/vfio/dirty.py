"""DMA logging: what ranges may be logged, and bitmaps of the pages that were written.

What vfio_main.c and iova_bitmap.c of Linux 7.3 do around a driver. Addresses have up to 64 bits;
the end of anything is its last byte, so that none is beyond them. The bits themselves are
``dirty_bits``' affair.
"""

import errno
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from precopy.vfio.dirty_bits import set_runs
from precopy.vfio.errors import refuse
from precopy.vfio.uapi import MAX_LOGGING_RANGES, LoggingRange

#: Bytes from a first to a last one.
Interval = tuple[int, int]
Addresses = NDArray[np.uint64]

#: The smallest page that a report may be asked in.
MIN_REPORT_PAGE = 4096


def _power_of_two(value: int) -> bool:
    return value > 0 and not value & (value - 1)


# --- Ranges -----------------------------------------------------------------------------------


def check_ranges(ranges: Sequence[LoggingRange], page_size: int) -> list[LoggingRange]:
    """The ranges of DMA_LOGGING_START in ascending order, found good.

    OSError: EINVAL (no range; ``page_size`` no power of two; one that is empty, not aligned to
    ``page_size`` or overlaps another), E2BIG (more than 256), EOVERFLOW (beyond 64 bits).
    """
    if not ranges:
        raise refuse(errno.EINVAL, "DMA logging needs at least one range")
    if len(ranges) > MAX_LOGGING_RANGES:
        what = f"{len(ranges)} ranges to log: at most {MAX_LOGGING_RANGES} can be"
        raise refuse(errno.E2BIG, what)
    if not _power_of_two(page_size):
        raise refuse(errno.EINVAL, f"page size {page_size} is no power of two")
    found: list[LoggingRange] = []
    for iova, length in ranges:
        what = f"range {iova:#x}+{length:#x}"
        if not length or iova % page_size or length % page_size:
            raise refuse(errno.EINVAL, f"{what} is not made of whole pages of {page_size:#x}")
        if iova + length >= 1 << 64:
            raise refuse(errno.EOVERFLOW, f"{what} ends beyond 64 bits")
        found.append(LoggingRange(iova, length))
    found.sort()
    for before, after in itertools.pairwise(found):
        if before.iova + before.length > after.iova:
            raise refuse(errno.EINVAL, f"ranges overlap at {after.iova:#x}")
    return found


def merge_ranges(ranges: Sequence[LoggingRange], limit: int) -> list[LoggingRange]:
    """Ascending ``ranges`` made ``limit`` at most, by closing the smallest gaps (the lowest of equals).

    The outcome of vfio_combine_iova_ranges of vfio_main.c: it closes one gap at a time, which leaves
    all others as they were, so that all can be chosen at once.
    """
    surplus = len(ranges) - limit
    if surplus <= 0:
        return list(ranges)
    gaps = [after.iova - sum(before) for before, after in itertools.pairwise(ranges)]
    closed = set(sorted(range(len(gaps)), key=gaps.__getitem__)[:surplus])
    merged: list[LoggingRange] = []
    for index, each in enumerate(ranges):
        if index - 1 in closed:
            iova = merged.pop().iova
            each = LoggingRange(iova, sum(each) - iova)
        merged.append(each)
    return merged


# --- Bitmaps ----------------------------------------------------------------------------------


class DirtyBitmap:
    """The bitmap of one DMA_LOGGING_REPORT: bit n stands for ``iova + n * page_size``.

    Bits are only ever set. OSError: EINVAL for a ``page_size`` below 4096 or no power of two,
    EOVERFLOW for a window beyond 64 bits, EFAULT where ``bitmap`` is read-only or has not a bit for
    every page.
    """

    def __init__(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        if page_size < MIN_REPORT_PAGE or not _power_of_two(page_size):
            what = f"report page size {page_size} is no power of two from {MIN_REPORT_PAGE} on"
            raise refuse(errno.EINVAL, what)
        if iova + length >= 1 << 64:
            raise refuse(errno.EOVERFLOW, f"report of {iova:#x}+{length:#x} ends beyond 64 bits")
        pages = -(-length // page_size)
        if bitmap.readonly or bitmap.nbytes * 8 < pages:
            what = f"the bitmap is read-only or smaller than {pages} bits"
            raise refuse(errno.EFAULT, what)
        #: The window's first byte and its last, which is before the first where there is none.
        self.first, self.last = iova, iova + length - 1
        self._shift = page_size.bit_length() - 1
        self._bits = np.frombuffer(bitmap.cast("B") if pages else bytearray(1), dtype=np.uint8)

    def add(self, intervals: Iterable[Interval]) -> None:
        """Set the bits of every page that holds a byte of one of the ``intervals``, some maybe empty."""
        cut = [(max(first, self.first), min(last, self.last)) for first, last in intervals]
        inside = [each for each in cut if each[0] <= each[1]]
        if inside:
            ends = np.array(inside, dtype=np.uint64)
            self._set(ends[:, 0], ends[:, 1])

    def add_pages(self, pages: Addresses, size: int, ranges: Iterable[Interval]) -> None:
        """Set the bits of what is both in one of ``pages`` (of ``size`` bytes) and in one of ``ranges``.

        ``pages`` are addresses, multiples of ``size``, ascending; ``ranges`` do not overlap.
        """
        ends = pages + np.uint64(size - 1)
        for first, last in ranges:
            first, last = max(first, self.first), min(last, self.last)
            if first <= last:
                low = np.searchsorted(ends, np.uint64(first))
                high = np.searchsorted(pages, np.uint64(last), side="right")
                self._set(
                    np.maximum(pages[low:high], np.uint64(first)),
                    np.minimum(ends[low:high], np.uint64(last)),
                )

    def _set(self, first: Addresses, last: Addresses) -> None:
        base, shift = np.uint64(self.first), np.uint64(self._shift)
        set_runs(
            self._bits,
            ((first - base) >> shift).astype(np.int64),
            ((last - base) >> shift).astype(np.int64),
        )


class Intervals:
    """A set of bytes, as intervals that neither overlap nor touch, ascending."""

    def __init__(self) -> None:
        self._all: list[Interval] = []

    def __iter__(self) -> Iterator[Interval]:
        return iter(self._all)

    def add(self, first: int, last: int) -> None:
        """Add the bytes from ``first`` to ``last``."""
        apart = [each for each in self._all if each[1] + 1 < first or last + 1 < each[0]]
        joined = [each for each in self._all if not (each[1] + 1 < first or last + 1 < each[0])]
        first = min([first, *(each[0] for each in joined)])
        last = max([last, *(each[1] for each in joined)])
        self._all = sorted([*apart, (first, last)])

    def take(self, first: int, last: int) -> list[Interval]:
        """Remove the bytes from ``first`` to ``last``; those of them that were there."""
        taken: list[Interval] = []
        kept: list[Interval] = []
        for low, high in self._all:
            if last < low or high < first:
                kept.append((low, high))
                continue
            taken.append((max(low, first), min(high, last)))
            if low < first:
                kept.append((low, first - 1))
            if high > last:
                kept.append((last + 1, high))
        self._all = kept
        return taken
