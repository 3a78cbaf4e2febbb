"""A DMA log of a check: around what a workload writes, and reports of it with canaries around them."""

from dataclasses import dataclass

from precopy.conformance.check import Context, NotApplicable
from precopy.vfio.uapi import Feature, LoggingRange

PAGE = 4096
TOP = 1 << 64
#: What starts and ends on it is made of whole pages of any size that is asked for here.
_ALIGNED = 1 << 21
#: The most that is logged, in bytes: a bitmap of 32 KiB.
_MOST = 1 << 30

_CANARY = b"\x5a\xa5" * 8


def is_power_of_two(value: int) -> bool:
    return value > 0 and not value & (value - 1)


@dataclass(slots=True)
class Log:
    """A log that is kept of ``length`` bytes from ``iova`` on, in pages of ``page_size`` bytes."""

    context: Context
    iova: int
    length: int
    page_size: int

    @classmethod
    def of(cls, context: Context, iova: int, length: int, hint: int = PAGE) -> "Log":
        """Start it."""
        context.need_feature(Feature.DMA_LOGGING_START)
        context.need_feature(Feature.DMA_LOGGING_REPORT)
        context.step(f"DMA_LOGGING_START {iova:#x}+{length:#x}, pages of {hint}")
        chosen = context.device.log_start([LoggingRange(iova, length)], hint)
        context.expect_that("page size", is_power_of_two(chosen), "a power of two", chosen)
        return cls(context, iova, length, chosen)

    @classmethod
    def around_work(cls, context: Context, hint: int = PAGE) -> "Log":
        """Start one around all that the workload writes."""
        written = [each for each in context.need_workload().work() if each[1]]
        if not written:
            raise NotApplicable("the workload makes the device write nothing")
        first = min(iova for iova, _ in written) // _ALIGNED * _ALIGNED
        last = -(-max(iova + length for iova, length in written) // _ALIGNED) * _ALIGNED
        if last - first > _MOST:
            raise NotApplicable(f"the workload writes to {last - first:#x} bytes of addresses")
        return cls.of(context, first, last - first, hint)

    def work(self) -> set[int]:
        """Let the device write; the numbers of the pages of the log, from its start on, that it wrote."""
        self.context.step("the device works")
        pages: set[int] = set()
        for iova, length in self.context.need_workload().work():
            if length:
                first = (iova - self.iova) // self.page_size
                pages |= set(range(first, (iova + length - 1 - self.iova) // self.page_size + 1))
        inside = self.length // self.page_size
        if any(not 0 <= page < inside for page in pages):
            raise NotApplicable("the workload does not write to the same place twice")
        return pages

    def fine(self, pages: set[int], page_size: int = PAGE) -> set[int]:
        """The same in pages of ``page_size`` bytes: repeated where finer, joined where coarser."""
        if page_size >= self.page_size:
            return {page * self.page_size // page_size for page in pages}
        each = self.page_size // page_size
        return {page * each + part for page in pages for part in range(each)}

    def report(
        self, page_size: int | None = None, first: int = 0, count: int | None = None
    ) -> set[int]:
        """REPORT from the log's page ``first`` on (in pages of ``page_size``): the bits that are set.

        Failed where a bit beyond the last, or a byte around the bitmap, is changed.
        """
        size = page_size or self.page_size
        pages = self.length // size - first if count is None else count
        bytes_needed = -(-pages // 64) * 8
        room = bytearray(_CANARY + bytes(bytes_needed) + _CANARY)
        iova = self.iova + first * size
        self.context.step(f"DMA_LOGGING_REPORT {iova:#x}, {pages} pages of {size}")
        window = memoryview(room)[len(_CANARY) : len(_CANARY) + bytes_needed]
        self.context.device.log_report(iova, pages * size, size, window)
        around = bytes(room[: len(_CANARY)] + room[-len(_CANARY) :])
        self.context.expect("memory around the bitmap", around, _CANARY * 2)
        bits = int.from_bytes(window, "little")
        self.context.expect("bits beyond the last page", bits >> pages, 0)
        found = set()
        while bits:
            low = bits & -bits
            found.add(low.bit_length() - 1)
            bits ^= low
        return found

    def stop(self) -> None:
        self.context.step("DMA_LOGGING_STOP")
        self.context.device.log_stop()
