"""What outlives a device that is closed, and what does not."""

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import RES, R, bring, expect_dead, read_some, saving_states
from precopy.vfio.uapi import Feature, LoggingRange

_PAGE = 4096


@check(13, 38, 42, severity=Severity.CONTRACT)
def a_device_that_is_closed(context: Context) -> None:
    """A file that outlives its device is dead; the device is RUNNING when it is opened again."""
    reopen = context.need_reopen()
    for state in (*saving_states(context), RES):
        file = bring(context, state)
        if file is not None and state is not RES:
            read_some(file, 8)
        context.step("close the device, open it again")
        context.device = reopen()
        context.expect(f"GET after an open, {state.name} before it", context.state(), R)
        if file is not None:
            expect_dead(context, f"the file of {state.name}", file, saving=state is not RES)


@check(93, severity=Severity.CONTRACT)
def a_log_ends_with_its_device(context: Context) -> None:
    """DMA logging ends when the device is closed."""
    context.need_feature(Feature.DMA_LOGGING_START)
    reopen = context.need_reopen()
    context.device.log_start([LoggingRange(0, _PAGE)], _PAGE)
    context.step("close the device, open it again")
    context.device = reopen()
    context.device.log_start([LoggingRange(0, _PAGE)], _PAGE)
    context.device.log_stop()


@check(42, severity=Severity.CONTRACT)
def a_driver_that_is_unbound(context: Context) -> None:
    """A file that outlives the driver's binding harms nothing."""
    raise NotApplicable(
        "a driver is not unbound from here; the lab does it (tests/lab/test_defects.py: unbound)"
    )
