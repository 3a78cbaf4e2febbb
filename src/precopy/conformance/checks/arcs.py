"""The arcs between states: which are taken, what they hand out, and where one that fails leaves the device."""

import errno
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import (
    ANY_ERROR,
    PC,
    PCP,
    RES,
    RP,
    SC,
    E,
    R,
    S,
    bring,
    need_precopy,
    read_some,
    read_until_temporary_end,
    stopped_image,
)
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags


def _walk(context: Context, origin: DeviceState) -> None:
    """Every arc and combination of arcs from ``origin``, with what it hands out."""
    try:
        stream = stopped_image(context) if origin is RES else None
    except NotApplicable:
        raise NotApplicable("a state as large as this device's is not loaded once an arc") from None
    for new in context.states():
        if origin is SC and new in (PC, PCP):
            continue
        bring(context, origin, stream)
        steps = (origin, *context.path(origin, new))
        file = context.set_state(new)
        what = f"{origin.name} to {new.name}"
        context.expect(f"GET after {what}", context.state(), new)
        wanted = len(steps) > 1 and (steps[-2], new) in DATA_FD_ARCS
        came = "a data_fd" if file is not None else "none"
        context.expect(f"data_fd of {what}", came, "a data_fd" if wanted else "none")


@check(19, 33, timeout=120)
def arcs_from_running(context: Context) -> None:
    """From RUNNING each other state is reached when SET returns, with a data_fd where the last arc has one."""
    _walk(context, R)


@check(19, 33, timeout=120)
def arcs_from_stop(context: Context) -> None:
    """From STOP each other state is reached when SET returns, with a data_fd where the last arc has one."""
    _walk(context, S)


@check(19, 33, timeout=120)
def arcs_from_stop_copy(context: Context) -> None:
    """From STOP_COPY each state but PRE_COPY and PRE_COPY_P2P is reached when SET returns."""
    _walk(context, SC)


@check(19, 33, timeout=120)
def arcs_from_resuming(context: Context) -> None:
    """From RESUMING with a whole state written each state is reached when SET returns."""
    _walk(context, RES)


@check(19, 33, timeout=120)
def arcs_from_running_p2p(context: Context) -> None:
    """From RUNNING_P2P each other state is reached when SET returns, with a data_fd where the last arc has one."""
    context.need(MigrationFlags.P2P)
    _walk(context, RP)


@check(19, 33, timeout=120)
def arcs_from_pre_copy(context: Context) -> None:
    """From PRE_COPY each other state is reached when SET returns; no arc to STOP_COPY hands out a data_fd."""
    context.need(MigrationFlags.PRE_COPY)
    _walk(context, PC)


@check(19, 33, timeout=120)
def arcs_from_pre_copy_p2p(context: Context) -> None:
    """From PRE_COPY_P2P each other state is reached when SET returns; no arc to STOP_COPY hands out a data_fd."""
    context.need(MigrationFlags.PRE_COPY)
    context.need(MigrationFlags.P2P)
    _walk(context, PCP)


@check(18)
def no_way_back_to_precopy(context: Context) -> None:
    """From STOP_COPY to PRE_COPY fails with EINVAL; the device stays in STOP_COPY, its data_fd readable."""
    context.need(MigrationFlags.PRE_COPY)
    for new in (each for each in (PC, PCP) if each in context.states()):
        context.reset()
        file = context.enter(SC)
        what = f"STOP_COPY to {new.name}"
        context.expect_errno(what, errno.EINVAL, partial(context.set_state, new))
        context.expect(f"GET after {what}", context.state(), SC)
        context.expect_that(f"read after {what}", bool(read_some(file, 8)), "data", "the end")
        context.read_all(file)
        context.expect(f"read at the end after {what}", len(read_some(file)), 0)


@check(20)
def where_a_failed_set_leaves_the_device(context: Context) -> None:
    """A SET that fails leaves the device where it was, on the way to the target, or in ERROR."""
    # Leaving RESUMING with nothing written is what no device can do.
    for new in (each for each in context.states() if each is not RES):
        context.reset()
        context.enter(RES)
        context.expect_errno(
            f"RESUMING with no data to {new.name}", ANY_ERROR, partial(context.set_state, new)
        )
        allowed = {RES, E, *context.path(RES, new)} - {new}
        context.expect_that(
            "GET after it",
            context.state() in allowed,
            " or ".join(sorted(each.name for each in allowed)),
            context.state(),
        )
        if new is not S:
            # What follows STOP is not reached: the state never was whole.
            came = context.state()
            context.expect_that(
                "GET after it", came in (RES, S, E), "RESUMING, STOP or ERROR", came
            )


@check(22, severity=Severity.CONTRACT)
def set_of_the_present_state(context: Context) -> None:
    """SET of the state that the device is in succeeds, hands out nothing and leaves the session alone."""
    for state in context.states():
        file = bring(context, state)
        for _ in range(2):
            context.expect(f"data_fd of {state.name} to itself", context.set_state(state), None)
            context.expect(f"GET after {state.name} to itself", context.state(), state)
        if state in (SC, PC, PCP) and file is not None:
            context.expect_that("read after it", bool(read_some(file)), "data", "the end")
        elif state is RES and file is not None:
            context.expect("write of nothing after it", file.write(b""), 0)


@check(34)
def one_session_to_the_end(context: Context) -> None:
    """PRE_COPY to PRE_COPY_P2P and back, and on to STOP_COPY, is one session on one data_fd."""
    file = need_precopy(context)
    read = 0
    for state in (*([PCP, PC] if PCP in context.states() else []), SC):
        context.expect(f"data_fd on the way to {state.name}", context.set_state(state), None)
        if state is not SC:
            context.expect_that(
                "info of the same file", file.precopy_info().initial_bytes > 0, "initial_bytes"
            )
            read += len(read_some(file, 8))
    context.expect_that(
        "read of the same file in STOP_COPY", bool(read_some(file)), "data", "the end"
    )


@check(34)
def one_session_from_precopy_p2p(context: Context) -> None:
    """PRE_COPY_P2P from RUNNING_P2P, on to STOP_COPY, is one session, and what PRE_COPY gave is not lost."""
    if PCP not in context.states():
        raise NotApplicable("the device has no PRE_COPY_P2P")
    context.set_state(RP)
    file: MigrationFile = context.enter(PCP)
    read_until_temporary_end(context, file)
    context.expect("data_fd of STOP_COPY", context.set_state(SC), None)
    context.expect("GET", context.state(), SC)
    read_some(file)
