"""DMA_LOGGING_START and STOP: what may be logged, and how long a log lives."""

import errno
from functools import partial

from precopy.conformance.check import Context, Severity, check
from precopy.conformance.checks.common import ANY_ERROR, PC, PCP, RP, SC, R, S
from precopy.conformance.checks.log import PAGE, TOP, Log, is_power_of_two
from precopy.conformance.checks.memory import NOWHERE, READ_ONLY, Pages
from precopy.vfio.uapi import (
    MAX_LOGGING_RANGES,
    Feature,
    FeatureFlags,
    LoggingControl,
    LoggingRange,
    feature_header,
)

Pairs = list[tuple[int, int]]


def _start(context: Context, ranges: Pairs, page_size: int = PAGE) -> int:
    context.need_feature(Feature.DMA_LOGGING_START)
    context.step(f"DMA_LOGGING_START {len(ranges)} ranges, pages of {page_size}")
    return context.device.log_start([LoggingRange(*each) for each in ranges], page_size)


def _refused(context: Context, what: str, code: int, ranges: Pairs, page_size: int = PAGE) -> None:
    """That START fails with ``code``, and that no log is kept after it."""
    context.expect_errno(what, code, partial(_start, context, ranges, page_size))
    context.step("DMA_LOGGING_START of one page")
    _start(context, [(0, PAGE)])
    context.device.log_stop()


@check(74, severity=Severity.CONTRACT)
def a_log_of_nothing(context: Context) -> None:
    """START without a range fails with EINVAL."""
    _refused(context, "no range", errno.EINVAL, [])


@check(75)
def as_many_ranges_as_there_can_be(context: Context) -> None:
    """START takes 256 ranges; more fail with E2BIG."""
    ranges = [(page * 2 * PAGE, PAGE) for page in range(MAX_LOGGING_RANGES + 1)]
    _start(context, ranges[:-1])
    context.device.log_stop()
    _refused(context, "257 ranges", errno.E2BIG, ranges)


@check(77, severity=Severity.CONTRACT)
def ranges_of_parts_of_pages(context: Context) -> None:
    """START of a range whose iova or length is not made of whole pages fails with EINVAL."""
    for iova, length, page_size in (
        (1, PAGE, PAGE),
        (PAGE - 1, PAGE, PAGE),
        (0, PAGE + 1, PAGE),
        (0, 100, PAGE),
        (PAGE, 2 * PAGE, 2 * PAGE),
        (0, 3 * PAGE, 2 * PAGE),
    ):
        what = f"{iova:#x}+{length:#x} in pages of {page_size}"
        _refused(context, what, errno.EINVAL, [(iova, length)], page_size)
        _refused(
            context,
            f"a good one and {what}",
            errno.EINVAL,
            [(1 << 30, 1 << 20), (iova, length)],
            page_size,
        )


@check(78, severity=Severity.CONTRACT)
def ranges_beyond_all_addresses(context: Context) -> None:
    """START of a range that ends at 2^64 or beyond fails with EOVERFLOW."""
    for iova, length in ((TOP - PAGE, PAGE), (TOP - PAGE, 2 * PAGE), (TOP - 2 * PAGE, 1 << 30)):
        _refused(context, f"{iova:#x}+{length:#x}", errno.EOVERFLOW, [(iova, length)])


@check(79, severity=Severity.CONTRACT)
def ranges_that_overlap(context: Context) -> None:
    """START of ranges that overlap fails with EINVAL; those that touch, in any order, are taken."""
    for ranges in (
        [(0, 2 * PAGE), (PAGE, PAGE)],
        [(8 * PAGE, PAGE), (0, PAGE), (8 * PAGE, PAGE)],
        [(4 * PAGE, 2 * PAGE), (0, 16 * PAGE)],
    ):
        _refused(context, f"ranges {ranges}", errno.EINVAL, ranges)
    for ranges in (
        [(0, PAGE), (PAGE, PAGE)],
        [(8 * PAGE, PAGE), (0, PAGE), (7 * PAGE, PAGE), (PAGE, PAGE)],
    ):
        _start(context, ranges)
        context.device.log_stop()


@check(80)
def the_page_size_that_was_chosen(context: Context) -> None:
    """The page size of START is a hint; what comes back is the power of two that is tracked."""
    for hint in (PAGE, 2 * PAGE, 1 << 16, 1 << 21):
        chosen = _start(context, [(1 << 30, 1 << 23)], hint)
        context.expect_that(
            f"page size for {hint}", is_power_of_two(chosen), "a power of two", chosen
        )
        context.device.log_stop()


@check(80, 91)
def what_is_tracked_is_what_was_chosen(context: Context) -> None:
    """Pages of the chosen size are reported whole, whatever the hint was."""
    context.need_workload()
    for hint in (PAGE, 1 << 14, 1 << 16, 1 << 21):
        log = Log.around_work(context, hint)
        expected = log.work()
        context.expect(f"pages reported, hint {hint}", log.report(PAGE), log.fine(expected))
        log.stop()


@check(81)
def a_second_start(context: Context) -> None:
    """START while a log is kept fails, and leaves that log alone."""
    if context.workload is None:
        _start(context, [(0, 8 * PAGE)])
        for ranges in ([(0, 8 * PAGE)], [(1 << 30, PAGE)]):
            context.expect_errno("a second START", ANY_ERROR, partial(_start, context, ranges))
        context.device.log_report(0, 8 * PAGE, PAGE, memoryview(bytearray(8)))
        return
    log = Log.around_work(context)
    before = log.work()
    context.expect_errno(
        "a second START", ANY_ERROR, partial(_start, context, [(log.iova, log.length)])
    )
    context.expect("what the first log has", log.report(), before)
    expected = log.work()
    context.expect("what it has then", log.report(), expected)


@check(83, severity=Severity.CONTRACT)
def stop_without_a_log(context: Context) -> None:
    """STOP where no log is kept succeeds, before a first one, twice after it."""
    context.need_feature(Feature.DMA_LOGGING_STOP)
    context.device.log_stop()
    _start(context, [(0, PAGE)])
    for _ in range(3):
        context.step("DMA_LOGGING_STOP")
        context.device.log_stop()
    _start(context, [(0, PAGE)])


@check(84)
def report_without_a_log(context: Context) -> None:
    """REPORT where no log is kept fails, before a first one and after it, and sets no bit."""
    context.need_feature(Feature.DMA_LOGGING_REPORT)
    for what in ("before a log", "after a log"):
        bitmap = bytearray(8)
        report = partial(context.device.log_report, 0, PAGE, PAGE, memoryview(bitmap))
        context.expect_errno(f"REPORT {what}", ANY_ERROR, report)
        context.expect(f"the bitmap {what}", bitmap, bytearray(8))
        _start(context, [(0, PAGE)])
        context.device.log_stop()


@check(84, 89)
def a_log_starts_empty(context: Context) -> None:
    """What one log has does not live on in the next."""
    context.need_workload()
    log = Log.around_work(context)
    log.work()
    log.stop()
    log = Log.around_work(context)
    context.expect("what a new log has", log.report(), set())


@check(93, timeout=60)
def a_log_outlives_states(context: Context) -> None:
    """A log, and what it has, outlives every SET of a migration."""
    context.need_feature(Feature.DMA_LOGGING_START)
    context.need_feature(Feature.DMA_LOGGING_REPORT)
    working = context.workload is not None
    log = Log.around_work(context) if working else Log.of(context, 0, 64 * PAGE)
    for state in (each for each in (PC, PCP, SC, S, RP, R, S, R) if each in context.states()):
        expected = log.work() if working and context.state() in (R, PC) else set()
        context.set_state(state)
        context.expect(f"pages reported in {state.name}", log.report(), expected)
    if working:
        expected = log.work()
        context.expect("pages reported after all of them", log.report(), expected)


@check(94, severity=Severity.QUALITY)
def sizes_that_make_no_sense(context: Context) -> None:
    """START of an empty range, or in pages of 0 or 3 bytes, fails with EINVAL."""
    _refused(context, "an empty range", errno.EINVAL, [(0, 0)])
    for page_size in (0, 3):
        _refused(context, f"pages of {page_size} bytes", errno.EINVAL, [(0, PAGE * 3)], page_size)


@check(82, severity=Severity.CONTRACT)
def a_control_structure_that_is_read_only(context: Context) -> None:
    """START with a structure that can't be written fails with EFAULT, and logging is stopped."""
    context.need_feature(Feature.DMA_LOGGING_START)
    call = context.need_raw_addresses().feature_at
    with (
        Pages(1, LoggingRange(0, PAGE).pack()) as ranges,
        Pages(1, _control(ranges.address)) as pages,
    ):
        pages.protect(0, READ_ONLY)
        for _ in range(2):
            context.step("DMA_LOGGING_START with a structure in a page that is read-only")
            context.expect_errno("START", errno.EFAULT, partial(call, pages.address))
    context.step("DMA_LOGGING_START of one page")
    _start(context, [(0, PAGE)])
    context.device.log_stop()


@check(76, severity=Severity.CONTRACT)
def ranges_that_are_nowhere(context: Context) -> None:
    """START with ranges that can't be read fails with EFAULT, and logs nothing."""
    context.need_feature(Feature.DMA_LOGGING_START)
    call = context.need_raw_addresses().feature_at
    for what, address in (("at address 16", NOWHERE), ("at the end of all addresses", TOP - 16)):
        with Pages(1, _control(address)) as pages:
            context.expect_errno(f"ranges {what}", errno.EFAULT, partial(call, pages.address))
    _start(context, [(0, PAGE)])
    context.device.log_stop()


def _control(ranges: int) -> bytes:
    """A DMA_LOGGING_START of the one range that is at address ``ranges``, header and payload."""
    control = LoggingControl(PAGE, 1, ranges).pack()
    return feature_header(Feature.DMA_LOGGING_START, FeatureFlags.SET, len(control)) + control
