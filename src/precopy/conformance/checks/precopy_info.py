"""VFIO_MIG_GET_PRECOPY_INFO: what is left to read, and when it may be asked."""

import errno
import fcntl
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import (
    PC,
    PCP,
    SC,
    R,
    need_descriptor,
    need_precopy,
    read_some,
    read_until_temporary_end,
    readable,
)
from precopy.vfio.states import MigrationFlags
from precopy.vfio.uapi import (
    PRECOPY_INFO_SIZE,
    VFIO_MIG_GET_PRECOPY_INFO,
    Feature,
    PrecopyInfoFlags,
    PrecopyInfoStruct,
)

#: Bytes that are read in turn while initial_bytes is followed, and how often.
_STEPS = (1, 7, 3, 16, 100, 4096)
_FOLLOWED = 200


@check(54, 55, 57)
def the_first_info(context: Context) -> None:
    """In PRE_COPY and PRE_COPY_P2P alike initial_bytes is above 0 at first, and dirty_bytes is 0."""
    context.need(MigrationFlags.PRE_COPY)
    for state in (each for each in (PC, PCP) if each in context.states()):
        context.reset()
        info = context.enter(state).precopy_info()
        context.expect_that(
            f"initial_bytes in {state.name}", info.initial_bytes > 0, "more than 0", 0
        )
        context.expect(f"dirty_bytes in {state.name}", info.dirty_bytes, 0)


@check(56, timeout=60)
def initial_bytes_fall_by_what_is_read(context: Context) -> None:
    """initial_bytes falls by exactly the bytes that are read until it is 0, and never grows."""
    file = need_precopy(context)
    left = file.precopy_info().initial_bytes
    for count in range(_FOLLOWED):
        if not left:
            break
        readable(context, file)
        read = len(read_some(file, min(_STEPS[count % len(_STEPS)], left)))
        info = file.precopy_info()
        if not info.flags & PrecopyInfoFlags.REINIT:
            context.expect(f"initial_bytes after {read} bytes", info.initial_bytes, left - read)
        left = info.initial_bytes
        # Told again, it is the same.
        again = file.precopy_info()
        if again.flags & PrecopyInfoFlags.REINIT:
            # It starts anew: who had the device before has asked for that, and it was not closed since.
            left = again.initial_bytes
            continue
        context.expect("initial_bytes asked twice", again.initial_bytes, left)
        if PCP in context.states() and count in (2, 3):
            context.set_state(PCP if count == 2 else PC)
            context.expect("initial_bytes after an arc", file.precopy_info().initial_bytes, left)
    while left:
        readable(context, file)
        left -= len(read_some(file, min(1 << 20, left)))
        info = file.precopy_info()
        if info.flags & PrecopyInfoFlags.REINIT:
            left = info.initial_bytes
        context.expect("initial_bytes", info.initial_bytes, left)
    read_until_temporary_end(context, file)
    context.expect("initial_bytes at the temporary end", file.precopy_info().initial_bytes, 0)


@check(62)
def nothing_left_is_the_temporary_end(context: Context) -> None:
    """Both counts are 0 at the temporary end, and where both are 0 the next read fails with ENOMSG."""
    file = need_precopy(context)
    context.step("read to ENOMSG, then ask")
    for _ in range(20):
        read_until_temporary_end(context, file)
        info = file.precopy_info()
        if not info.initial_bytes and not info.dirty_bytes:
            break
    else:
        if context.workload is not None:
            raise NotApplicable("the device is at work: it always has more")
        context.fail("info after ENOMSG", "initial_bytes 0 and dirty_bytes 0", repr(info))
    context.expect_errno("read", errno.ENOMSG, partial(read_some, file, 8))


@check(62)
def what_is_left_can_be_read(context: Context) -> None:
    """While initial_bytes or dirty_bytes is above 0 a read gives data, and none once both are 0."""
    file = need_precopy(context)
    for count in range(_FOLLOWED):
        info = file.precopy_info()
        if not info.initial_bytes and not info.dirty_bytes:
            context.expect_errno(f"read with {info}", errno.ENOMSG, partial(read_some, file, 8))
            return
        size = 16 if count < _FOLLOWED // 4 else 1 << 16
        context.expect_that(f"read with {info}", bool(read_some(file, size)), "data", "the end")


@check(53)
def info_outside_precopy(context: Context) -> None:
    """Outside PRE_COPY GET_PRECOPY_INFO fails with EINVAL, in STOP_COPY, or once that is over."""
    file = need_precopy(context)
    context.set_state(SC)
    context.expect_errno("GET_PRECOPY_INFO in STOP_COPY", errno.EINVAL, file.precopy_info)
    context.expect_that("read after it", bool(read_some(file, 8)), "data", "the end")
    context.set_state(R)
    codes = (errno.EINVAL, errno.ENODEV)
    context.expect_errno("GET_PRECOPY_INFO after the session", codes, file.precopy_info)
    context.reset()
    codes = (errno.EINVAL, errno.ENOTTY)
    context.expect_errno(
        "GET_PRECOPY_INFO of STOP_COPY alone", codes, context.enter(SC).precopy_info
    )


@check(59)
def no_flags_unless_asked_for(context: Context) -> None:
    """Without MIG_PRECOPY_INFO_V2 initial_bytes is never set anew: REINIT can't be told."""
    context.need(MigrationFlags.PRE_COPY)
    reopen = context.need_reopen()
    context.device = reopen()
    file = context.enter(PC)
    left = file.precopy_info().initial_bytes
    while left:
        left -= len(read_some(file, min(left, 1 << 16)))
        context.expect("initial_bytes", file.precopy_info().initial_bytes, left)
    for _ in range(3):
        read_until_temporary_end(context, file)
        context.expect("initial_bytes after the first data", file.precopy_info().initial_bytes, 0)


@check(60, 61)
def info_v2(context: Context) -> None:
    """With MIG_PRECOPY_INFO_V2 flags are 0 or REINIT; REINIT comes with initial_bytes and no dirty_bytes."""
    context.need(MigrationFlags.PRE_COPY)
    context.need_feature(Feature.MIG_PRECOPY_INFO_V2)
    context.device.enable_precopy_info_v2()
    file = context.enter(PC)
    left = None
    for _ in range(_FOLLOWED):
        info = file.precopy_info()
        context.expect_that(
            "flags", info.flags in (0, PrecopyInfoFlags.REINIT), "0 or REINIT", info
        )
        if info.flags:
            context.expect_that(
                "with REINIT",
                info.initial_bytes > 0 and not info.dirty_bytes,
                "initial_bytes only",
                info,
            )
        elif left is not None:
            context.expect_that(
                "initial_bytes without REINIT", info.initial_bytes <= left, f"{left} at most", info
            )
        left = info.initial_bytes
        try:
            left -= min(left, len(read_some(file, 1 << 16)))
        except OSError as error:
            context.expect("the end", error.errno, errno.ENOMSG)
            return


@check(51, severity=Severity.CONTRACT)
def a_structure_that_is_too_short(context: Context) -> None:
    """GET_PRECOPY_INFO with argsz below 24 fails with EINVAL."""
    number = need_descriptor(need_precopy(context))
    for argsz in range(0, PRECOPY_INFO_SIZE, 4):
        argument = bytearray(PrecopyInfoStruct(argsz, 0, 0, 0).pack())
        context.expect_errno(
            f"argsz {argsz}",
            errno.EINVAL,
            partial(fcntl.ioctl, number, VFIO_MIG_GET_PRECOPY_INFO, argument),
        )


@check(52, severity=Severity.CONTRACT)
def info_to_a_bad_pointer(context: Context) -> None:
    """GET_PRECOPY_INFO with a pointer to nowhere fails with EFAULT."""
    number = need_descriptor(need_precopy(context))
    context.expect_errno(
        "pointer 16", errno.EFAULT, lambda: fcntl.ioctl(number, VFIO_MIG_GET_PRECOPY_INFO, 16)
    )


@check(58, severity=Severity.CONTRACT)
def info_ignores_what_was_there(context: Context) -> None:
    """What initial_bytes and dirty_bytes held before the call has no effect."""
    file = need_precopy(context)
    number = need_descriptor(file)
    info = file.precopy_info()
    garbage = 0xA5A5_A5A5_A5A5_A5A5
    argument = bytearray(PrecopyInfoStruct(PRECOPY_INFO_SIZE, 0, garbage, garbage).pack())
    fcntl.ioctl(number, VFIO_MIG_GET_PRECOPY_INFO, argument)
    found = PrecopyInfoStruct.parse(bytes(argument))
    context.expect("initial_bytes", found.initial_bytes, info.initial_bytes)
    context.expect("dirty_bytes", found.dirty_bytes, info.dirty_bytes)
