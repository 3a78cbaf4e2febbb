"""The faulty device's DMA log: a set of pages of 4096 bytes."""

import errno
import itertools
from collections.abc import Callable, Sequence

from precopy.vfio.device import DmaRange
from precopy.vfio.errors import refuse

PAGE, TOP = 4096, 1 << 64
_LARGEST = 1 << 16


class Log:
    """Ranges that are logged, in pages of ``page_size``; ``dirty``: numbers of pages of 4096 bytes."""

    def __init__(self, has: Callable[[str], bool]) -> None:
        self.has = has
        self.active, self.page_size, self.writes = False, PAGE, 0
        self.ranges: list[DmaRange] = []
        self.dirty: set[int] = set()

    def start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        has = self.has
        if not ranges and not has("a log of nothing is kept"):
            raise refuse(
                errno.ENOENT if has("a log of nothing is ENOENT") else errno.EINVAL, "none"
            )
        most = 255 if has("255 ranges at most") else 256
        if len(ranges) > most and not has("257 ranges are taken"):
            raise refuse(errno.EINVAL if has("257 ranges are EINVAL") else errno.E2BIG, "too many")
        good = page_size > 0 and not page_size & (page_size - 1)
        if not good and not (page_size == 3 and has("pages of 3 bytes are logged")):
            raise refuse(errno.EINVAL, "no page size")
        for each in ranges:
            self._check(each, page_size)
        self._check_apart(ranges)
        if self.active:
            if has("a second START clears"):
                self.dirty.clear()
            if not has("a second START is taken"):
                raise refuse(errno.EINVAL, "a log is kept")
            self.dirty.clear()
        if not has("a log lives on in the next"):
            self.dirty.clear()
        self.active, self.ranges = True, list(ranges)
        self.page_size = min(max(page_size, PAGE), _LARGEST)
        if has("a page size of 0"):
            return 0
        if has("the hint comes back"):
            return page_size
        return self.page_size

    def _check(self, each: DmaRange, page_size: int) -> None:
        iova, length = each
        has = self.has
        if not length and not has("an empty range is taken"):
            raise refuse(errno.EINVAL, "an empty range")
        if (iova % page_size and not has("parts of pages are logged")) or (
            length % page_size and not has("lengths are not looked at")
        ):
            raise refuse(errno.EINVAL, "a part of a page")
        if iova + length > TOP or (iova + length == TOP and not has("2^64 is no overflow")):
            raise refuse(
                errno.EINVAL if has("an overflow is EINVAL") else errno.EOVERFLOW, "beyond"
            )

    def _check_apart(self, ranges: Sequence[DmaRange]) -> None:
        has = self.has
        ordered = list(ranges) if has("only the order of the ranges counts") else sorted(ranges)
        for before, after in itertools.pairwise(ordered):
            end = before.iova + before.length + has("ranges that touch are refused")
            if end > after.iova and not has("ranges that overlap are taken"):
                raise refuse(errno.EINVAL, "ranges overlap")

    def stop(self) -> None:
        self.active = False

    def wrote(self, iova: int, length: int, *, precopy: bool) -> None:
        has = self.has
        self.writes += 1
        if not self.active or not length:
            return
        if (precopy and has("writes in PRE_COPY are not logged")) or (
            self.writes % 2 and has("every second write is logged")
        ):
            return
        last = iova + length - 1 + (PAGE if has("the neighbour page is dirty") else 0)
        if has("the last byte's page is not dirty") and length > 1:
            last = iova + length - 2
        size = self.page_size
        first, end = iova // size * size, last // size * size + size
        for low, count in self.ranges:
            inside = range(max(first, low) // PAGE, min(end, low + count) // PAGE)
            self.dirty |= set(inside)

    def report(self, iova: int, length: int, size: int, bitmap: memoryview) -> None:
        has = self.has
        if not self.active and not has("REPORT without a log"):
            raise refuse(errno.EINVAL, "no log is kept")
        odd = size < PAGE or bool(size & (size - 1))
        if odd:
            if (size == 2048 and has("pages of 2048 are reported")) or (
                size == 6000 and has("pages of 6000 are reported")
            ):
                return
            raise refuse(errno.EINVAL, "no page size")
        if iova + length >= TOP:
            if iova + length == TOP and has("the last page of all is reported"):
                return
            wrong = has("a window's overflow is EINVAL")
            raise refuse(errno.EINVAL if wrong else errno.EOVERFLOW, "beyond")
        window = {page for page in self.dirty if iova <= page * PAGE < iova + length}
        pages = -(-length // size)
        if bitmap.readonly or bitmap.nbytes * 8 < pages:
            if has("a refused REPORT forgets"):
                self.dirty -= window
            if bitmap.readonly and has("a read-only bitmap is no error"):
                return
            wrong = has("a small bitmap is EINVAL") and not bitmap.readonly
            raise refuse(errno.EINVAL if wrong else errno.EFAULT, "the bitmap")
        self._fill(window, iova, size, bitmap, pages)
        self._forget(window, iova, length, size)

    def _fill(self, window: set[int], iova: int, size: int, bitmap: memoryview, pages: int) -> None:
        has = self.has
        if has("REPORT clears bits"):
            bitmap[:] = bytes(bitmap.nbytes)
        for page in window:
            address = page * PAGE
            if size > PAGE and address % size and has("a coarse REPORT looks at one page"):
                continue
            bit = (address - iova) // size
            if has("bits by the absolute page"):
                bit = address // size % max(pages, 1)
            if has("bits in bytes from the top"):
                bit ^= 7
            if has("words of 32 bits"):
                bit ^= 32 * (bit % 64 < 64 and pages > 32)
            if bit // 8 < bitmap.nbytes:
                bitmap[bit // 8] |= 1 << bit % 8
        if has("REPORT fills the last byte") and pages % 8:
            bitmap[pages // 8] |= 0xFF << pages % 8 & 0xFF

    def _forget(self, window: set[int], iova: int, length: int, size: int) -> None:
        has = self.has
        if has("REPORT forgets nothing"):
            return
        if has("REPORT forgets everything") or (not length and has("a REPORT of nothing forgets")):
            self.dirty.clear()
        if has("REPORT forgets the page behind"):
            window = window | {(iova + length) // PAGE}
        if has("a coarse REPORT forgets one page") and size > PAGE:
            window = {page for page in window if page * PAGE % size == 0}
        self.dirty -= window
