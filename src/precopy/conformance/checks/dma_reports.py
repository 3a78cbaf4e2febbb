"""DMA_LOGGING_REPORT: which bits are set, which pages are forgotten, and what is refused."""

import errno
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import PC
from precopy.conformance.checks.log import PAGE, TOP, Log

#: A pattern that bitmaps hold before a report.
_BEFORE = 0xA4


def _working(context: Context) -> tuple[Log, set[int]]:
    """A log, and what was written since its start: two pages at least."""
    context.need_workload()
    log = Log.around_work(context)
    return log, log.work()


@check(91)
def what_is_written_is_reported(context: Context) -> None:
    """Exactly the pages that the device writes are reported, while RUNNING and while in PRE_COPY."""
    log, expected = _working(context)
    context.expect("pages reported", log.report(), expected)
    if PC in context.states():
        context.set_state(PC)
        expected = log.work()
        context.expect("pages reported in PRE_COPY", log.report(), expected)
    expected = log.work() | log.work() | log.work()
    context.expect("pages reported after three times", log.report(), expected)


@check(91)
def nothing_is_written_that_is_not_reported_as_well(context: Context) -> None:
    """A device that does nothing has no dirty page: the log is empty at first, and stays so."""
    log = Log.of(context, 1 << 40, 1 << 21)
    for _ in range(2):
        context.expect("pages reported", log.report(), set())


@check(87)
def which_bit_is_which_page(context: Context) -> None:
    """Bit n, in 64-bit words, stands for iova + n * page_size, wherever the window starts."""
    log, _ = _working(context)
    log.report()
    for before in (0, 1, 7, 8, 63, 64, 65, 127, 130):
        expected = log.work()
        page = min(expected)
        first = max(page - before, 0)
        count = min(before + 70, log.length // log.page_size - first)
        inside = {each - first for each in expected if each < first + count}
        context.expect(
            f"bits of a window from page {first} on", log.report(None, first, count), inside
        )
        log.report()


@check(88)
def only_bits_of_the_window_are_set(context: Context) -> None:
    """REPORT sets bits and clears none, and changes nothing behind the window's last bit."""
    log, _ = _working(context)
    log.report()
    for count in (1, 3, 8, 9, 63, 64, 65, 100):
        expected = log.work()
        first = min(expected)
        count = min(count, log.length // log.page_size - first)
        size = -(-count // 64) * 8
        bitmap = bytearray([_BEFORE]) * size
        context.step(f"DMA_LOGGING_REPORT of {count} pages, onto a pattern")
        iova, length = log.iova + first * log.page_size, count * log.page_size
        context.device.log_report(iova, length, log.page_size, memoryview(bitmap))
        bits = sum(1 << page - first for page in expected if page - first < count)
        wanted = int.from_bytes(bytes([_BEFORE]) * size, "little") | bits
        context.expect("the bitmap", hex(int.from_bytes(bitmap, "little")), hex(wanted))
        log.report()


@check(89)
def a_report_forgets_what_it_told(context: Context) -> None:
    """REPORT forgets the pages that it told, and no others."""
    log, expected = _working(context)
    context.expect("pages reported", log.report(), expected)
    context.expect("pages reported again", log.report(), set())
    expected = log.work()
    for page in sorted(expected)[:8]:
        context.expect(f"page {page} alone", log.report(None, page, 1), {0})
        context.expect(f"page {page} alone, again", log.report(None, page, 1), set())
    rest = set(sorted(expected)[8:])
    context.expect("all others", log.report(), rest)
    context.expect("all others again", log.report(), set())


@check(89)
def a_report_keeps_its_neighbours(context: Context) -> None:
    """REPORT of a window keeps what was written before it and behind it."""
    log, expected = _working(context)
    pages = sorted(expected)
    if len(pages) < 3:
        raise NotApplicable("the workload writes fewer than three pages at once")
    middle = pages[len(pages) // 2]
    context.expect("the page in the middle", log.report(None, middle, 1), {0})
    context.expect("the others", log.report(), expected - {middle})


@check(90)
def page_sizes_of_reports(context: Context) -> None:
    """A coarser report is the OR of finer ones, a finer one repeats; either forgets all that it told."""
    log, _ = _working(context)
    log.report()
    for size in (PAGE, 2 * PAGE, 4 * PAGE, 16 * PAGE, 128 * PAGE, 512 * PAGE):
        expected = log.work()
        context.expect(f"pages of {size}", log.report(size), log.fine(expected, size))
        context.expect(f"pages of {size}, again", log.report(size), set())
        context.expect("after it", log.report(), set())


@check(85, severity=Severity.CONTRACT)
def page_sizes_that_there_are_not(context: Context) -> None:
    """REPORT in pages below 4096 bytes, or no power of two, fails with EINVAL and sets no bit."""
    log = Log.of(context, 0, 64 * PAGE)
    for size in (1, 512, 2048, 6000, 3 * PAGE, 0, 3):
        _refused_report(context, f"pages of {size}", errno.EINVAL, log.iova, PAGE, size)


@check(86, severity=Severity.CONTRACT)
def windows_beyond_all_addresses(context: Context) -> None:
    """REPORT of a window that ends at 2^64 or beyond fails with EOVERFLOW."""
    Log.of(context, 0, 64 * PAGE)
    for length in (PAGE, 2 * PAGE, 64 * PAGE):
        what = f"{TOP - PAGE:#x}+{length:#x}"
        _refused_report(context, what, errno.EOVERFLOW, TOP - PAGE, length, PAGE)


def _refused_report(
    context: Context, what: str, code: int, iova: int, length: int, size: int
) -> None:
    bitmap = bytearray(64)
    call = partial(context.device.log_report, iova, length, size, memoryview(bitmap))
    context.expect_errno(f"REPORT of {what}", code, call)
    context.expect(f"the bitmap after {what}", bitmap, bytearray(64))


@check(92, severity=Severity.CONTRACT)
def bitmaps_that_cant_be_written(context: Context) -> None:
    """REPORT to a bitmap that is read-only or too small fails with EFAULT, and forgets nothing."""
    if context.workload is None:
        log, expected = Log.of(context, 0, 64 * PAGE), set[int]()
    else:
        log, expected = _working(context)
    report = context.device.log_report
    size = log.page_size
    read_only = memoryview(bytes(max(log.length // size // 8, 8)))
    small = memoryview(bytearray(1))
    for what, bitmap in (("read-only", read_only), ("of 8 bits", small)):
        call = partial(report, log.iova, log.length, size, bitmap)
        context.expect_errno(f"REPORT to a bitmap {what}", errno.EFAULT, call)
    context.expect("pages reported after it", log.report(), expected)


@check(94, severity=Severity.QUALITY)
def a_report_of_nothing(context: Context) -> None:
    """REPORT of length 0 sets no bit and forgets nothing."""
    if context.workload is None:
        log, expected = Log.of(context, 0, 64 * PAGE), set[int]()
    else:
        log, expected = _working(context)
    bitmap = bytearray(8)
    try:
        context.device.log_report(log.iova, 0, log.page_size, memoryview(bitmap))
    except OSError as error:
        context.step(f"REPORT of length 0: {error.strerror}")
    context.expect("the bitmap", bitmap, bytearray(8))
    context.expect("pages reported after it", log.report(), expected)
