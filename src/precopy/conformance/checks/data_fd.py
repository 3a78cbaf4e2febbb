"""The file of a session: its direction, its ends, and its death."""

import errno
import fcntl
import os
import select
import time
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import (
    OVER,
    PATIENCE,
    PC,
    PCP,
    RES,
    RP,
    SC,
    R,
    S,
    bring,
    expect_dead,
    need_descriptor,
    need_precopy,
    read_some,
    read_until_temporary_end,
    readable,
    saving_states,
    stopped_image,
)
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import VFIO_TYPE

#: An ioctl of VFIO's that no file has.
_NO_IOCTL = VFIO_TYPE << 8 | 0xFE


@check(35, severity=Severity.CONTRACT)
def a_file_has_one_direction(context: Context) -> None:
    """A saving file can't be written (EBADF), a resuming file can't be read (EBADF)."""
    for state in saving_states(context):
        context.reset()
        file = context.enter(state)
        context.expect_errno(f"write in {state.name}", errno.EBADF, partial(file.write, b"x"))
        context.expect_that("read after it", bool(read_some(file, 8)), "data", "the end")
    context.reset()
    file = context.enter(RES)
    context.expect_errno("read in RESUMING", errno.EBADF, partial(read_some, file, 8))


@check(35, severity=Severity.CONTRACT)
def descriptor_flags(context: Context) -> None:
    """A data_fd has O_CLOEXEC, and O_RDONLY when saving, O_WRONLY when resuming."""
    for state, mode in ((SC, os.O_RDONLY), (RES, os.O_WRONLY)):
        context.reset()
        number = need_descriptor(context.enter(state))
        context.expect(f"FD_CLOEXEC in {state.name}", fcntl.fcntl(number, fcntl.F_GETFD) & 1, 1)
        found = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
        context.expect(f"access mode in {state.name}", found, mode)


@check(36, severity=Severity.CONTRACT)
def no_seeking(context: Context) -> None:
    """lseek, pread and pwrite on a data_fd fail with ESPIPE."""
    number = need_descriptor(context.enter(SC))
    context.expect_errno("lseek", errno.ESPIPE, lambda: os.lseek(number, 0, os.SEEK_SET))
    context.expect_errno("pread", errno.ESPIPE, lambda: os.pread(number, 8, 0))
    context.reset()
    writing = need_descriptor(context.enter(RES))
    context.expect_errno("lseek, resuming", errno.ESPIPE, lambda: os.lseek(writing, 0, os.SEEK_SET))
    context.expect_errno("pwrite", errno.ESPIPE, lambda: os.pwrite(writing, b"x", 0))


@check(37, severity=Severity.CONTRACT)
def ioctls_that_a_file_has_not(context: Context) -> None:
    """A resuming file has no GET_PRECOPY_INFO (ENOTTY), and no file has any other ioctl."""
    file = context.enter(RES)
    context.expect_errno("GET_PRECOPY_INFO in RESUMING", errno.ENOTTY, file.precopy_info)
    if file.fileno() is not None:
        number = need_descriptor(file)
        context.expect_errno("an ioctl", errno.ENOTTY, lambda: fcntl.ioctl(number, _NO_IOCTL))
        context.reset()
        saving = need_descriptor(context.enter(SC))
        context.expect_errno(
            "an ioctl in STOP_COPY", errno.ENOTTY, lambda: fcntl.ioctl(saving, _NO_IOCTL)
        )


#: A session, and a state that ends it.
_ENDS = ((SC, S), (SC, R), (PC, R), (PC, RP), (PC, S), (PCP, RP), (PCP, S), (RES, S), (RES, R))


@check(38)
def a_file_outlived_by_its_session(context: Context) -> None:
    """Once the session is over a kept data_fd gives EOF or an error, never data, and does not block."""
    stream = stopped_image(context)
    for origin, new in _ENDS:
        if origin not in context.states() or new not in context.states():
            continue
        file = bring(context, origin, stream)
        context.set_state(new)
        if file is not None:
            expect_dead(
                context, f"the file of {origin.name} in {new.name}", file, saving=origin is not RES
            )


@check(38, severity=Severity.CONTRACT)
def enodev_when_the_session_is_over(context: Context) -> None:
    """Once the session is over read and write fail with ENODEV, as in all drivers of the kernel."""
    stream = stopped_image(context)
    for origin, new in _ENDS:
        if origin not in context.states() or new not in context.states():
            continue
        file = bring(context, origin, stream)
        if file is None:
            continue
        context.set_state(new)
        call = partial(file.write, b"x") if origin is RES else partial(read_some, file)
        context.expect_errno(f"the file of {origin.name} in {new.name}", OVER, call)


@check(40, severity=Severity.CONTRACT)
def a_file_that_is_closed_early(context: Context) -> None:
    """A data_fd that is closed before its session ends breaks no SET after it."""
    for state, route in (
        (SC, (S, R)),
        (PC, (R,)),
        (PC, (SC, S, R)),
        (PCP, (RP, R)),
        (RES, ()),
    ):
        if not {state, *route} <= set(context.states()):
            continue
        file = bring(context, state)
        if file is not None:
            context.step("close the data_fd")
            file.close()
        for new in route:
            context.set_state(new)
            context.expect(f"GET after closing in {state.name}", context.state(), new)
        context.reset()
        context.expect("GET after RESET", context.state(), R)


@check(41, severity=Severity.CONTRACT)
def an_old_file_stays_dead(context: Context) -> None:
    """The file of a session that is over stays dead when the next has begun."""
    codes = (errno.ENODEV, errno.EINVAL)
    for state in saving_states(context):
        context.reset()
        old = context.enter(state)
        context.set_state(R)
        new = context.enter(state)
        expect_dead(context, f"the old file of {state.name}", old)
        if state is not SC:
            context.expect_errno("GET_PRECOPY_INFO of the old file", codes, old.precopy_info)
        context.expect_that("read of the new file", bool(read_some(new, 8)), "data", "the end")
    context.reset()
    stream = stopped_image(context)
    context.reset()
    old = context.enter(RES)
    context.reset()
    new = context.enter(RES)
    expect_dead(context, "the old file of RESUMING", old, saving=False)
    context.write_all(new, stream)
    context.set_state(S)


@check(44, severity=Severity.CONTRACT)
def reads_that_do_not_block(context: Context) -> None:
    """With O_NONBLOCK a read gives data, or EAGAIN while that is being made; never another error."""
    for state in saving_states(context):
        context.reset()
        file = context.enter(state)
        file.set_nonblocking(True)
        ends = time.monotonic() + PATIENCE
        while True:
            try:
                context.expect_that(
                    f"read in {state.name}", bool(read_some(file, 64)), "data", "the end"
                )
                break
            except OSError as error:
                name = errno.errorcode.get(error.errno or 0, "?")
                context.expect(f"read in {state.name} with O_NONBLOCK", name, "EAGAIN")
                readable(context, file)
                context.expect_that("data", time.monotonic() < ends, "within 10 s", "EAGAIN only")


@check(45)
def the_temporary_end(context: Context) -> None:
    """At the temporary end of PRE_COPY a read fails with ENOMSG, again and again."""
    for state in (each for each in (PC, PCP) if each in context.states()):
        context.reset()
        file = context.enter(state)
        read_until_temporary_end(context, file)
        for nonblocking in (False, True):
            file.set_nonblocking(nonblocking)
            info = file.precopy_info()
            if not info.initial_bytes and not info.dirty_bytes:
                context.expect_errno(
                    f"read in {state.name}", errno.ENOMSG, partial(read_some, file, 8)
                )
    if PC not in context.states():
        raise NotApplicable("the device has no PRE_COPY")


def _drain(context: Context, state: DeviceState) -> None:
    """STOP_COPY by way of ``state``, read away to its end."""
    context.reset()
    file = context.enter(state)
    if state is not SC:
        read_until_temporary_end(context, file)
        context.set_state(SC)
    context.step("read STOP_COPY to its end")
    room = bytearray(1 << 20)
    try:
        while file.readinto(room):
            pass
        for _ in range(3):
            context.expect("read at the end of STOP_COPY", file.readinto(room), 0)
    except OSError as error:
        context.fail(
            "read in STOP_COPY", "data, then 0", errno.errorcode.get(error.errno or 0, "?")
        )
    came = file.poll(select.POLLIN, 0)
    context.expect_that("poll at the end", bool(came & select.POLLIN), "POLLIN", came)


@check(46, 47, 48, timeout=120)
def the_end_of_stop_copy(context: Context) -> None:
    """STOP_COPY ends with reads of 0 bytes, for ever, never with ENOMSG; poll says readable there."""
    for state in saving_states(context):
        _drain(context, state)


@check(48)
def poll_at_the_temporary_end(context: Context) -> None:
    """poll: readable where there is data, not at the temporary end, and again once STOP_COPY has more."""
    file = need_precopy(context)
    readable(context, file)
    read_until_temporary_end(context, file)
    info = file.precopy_info()
    if info.initial_bytes or info.dirty_bytes:
        raise NotApplicable("the device is at work: its temporary end does not last")
    for timeout in (0, 0.01):
        context.expect("poll at the temporary end", file.poll(select.POLLIN, timeout), 0)
    context.set_state(SC)
    readable(context, file)


@check(48, severity=Severity.CONTRACT)
def poll_when_the_session_is_over(context: Context) -> None:
    """poll answers POLLIN and POLLRDHUP once the session is over."""
    wanted = select.POLLIN | select.POLLRDHUP
    for state in saving_states(context):
        for ends in (R, None):
            context.reset()
            file = context.enter(state)
            if ends is None:
                context.reset()
            else:
                context.set_state(ends)
            came = file.poll(wanted, 0)
            context.expect(f"poll of the file of {state.name}", came & wanted, wanted)


@check(54)
def precopy_has_both_states(context: Context) -> None:
    """A device with PRE_COPY and P2P has PRE_COPY_P2P, and hands out a file on both ways in."""
    context.need(MigrationFlags.PRE_COPY)
    for state in (each for each in (PC, PCP) if each in context.states()):
        context.reset()
        file = context.enter(state)
        context.step(f"GET_PRECOPY_INFO in {state.name}")
        file.precopy_info()
