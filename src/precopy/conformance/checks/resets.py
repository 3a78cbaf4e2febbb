"""VFIO_DEVICE_RESET, and a reset by config space: back to RUNNING from everywhere."""

import time
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import (
    ANY_ERROR,
    PC,
    PCP,
    RES,
    SC,
    E,
    R,
    bring,
    expect_dead,
    image,
    read_some,
    refused,
    stopped_image,
    target,
)
from precopy.conformance.checks.config_space import CAP_EXPRESS, find_capability, read_config
from precopy.vfio.face import RegionIndex

#: Bits of the PCI Express capability.
_DEVCAP_FLR, _DEVCTL_FLR = 1 << 28, 1 << 15
#: Seconds in which a function has to be back after an FLR (PCIe Base, 6.6.2: 100 ms), with room.
FLR_SECONDS = 5.0


@check(25)
def reset_from_every_state(context: Context) -> None:
    """RESET succeeds in every state, leads to RUNNING and ends the session: its data_fd is dead."""
    for state in context.states():
        file = bring(context, state)
        if file is not None and state is not RES:
            context.expect_that(
                f"read in {state.name}", bool(read_some(file, 8)), "data", "the end"
            )
        context.reset()
        context.expect(f"GET after RESET in {state.name}", context.state(), R)
        if file is not None:
            expect_dead(
                context, f"the data_fd of {state.name} after RESET", file, saving=state is not RES
            )


@check(25)
def a_session_after_a_reset_is_new(context: Context) -> None:
    """Nothing of a session survives RESET: the next gives a whole stream that loads."""
    for state in (each for each in (PC, PCP, SC) if each in context.states()):
        file = bring(context, state)
        if file is not None:
            read_some(file, 100)
        context.reset()
        stream = image(context)
        where = target(context)
        context.expect(
            f"a stream taken after RESET in {state.name} is refused",
            refused(context, stream, where),
            False,
        )
        context.reset()


@check(26)
def reset_aborts_resuming(context: Context) -> None:
    """RESET leaves RESUMING, with nothing, a part or all of a state written; RESUMING works again."""
    stream = stopped_image(context)
    for written in (0, min(len(stream) // 2, 1 << 20), len(stream)):
        context.reset()
        file = context.enter(RES)
        context.write_all(file, stream[:written])
        context.reset()
        context.expect(f"GET after RESET with {written} bytes written", context.state(), R)
        expect_dead(context, "a write after RESET", file, saving=False)
    context.expect(
        "a whole state after that is refused", refused(context, stream, context.device), False
    )


@check(24)
def only_a_reset_leaves_error(context: Context) -> None:
    """In ERROR every SET fails; RESET leads to RUNNING, where the device works."""
    stream = bytearray(stopped_image(context))
    for at in (len(stream) - 1, len(stream) // 2, 0):
        context.reset()
        bad = bytearray(stream)
        bad[at] ^= 0xFF
        refused(context, bytes(bad), context.device)
        if context.state() is E:
            break
    else:
        raise NotApplicable("nothing that can be written brought the device to ERROR")
    for new in context.states():
        context.expect_errno(f"SET {new.name} in ERROR", ANY_ERROR, partial(context.set_state, new))
        context.expect("GET after it", context.state(), E)
    context.reset()
    context.expect("GET after RESET", context.state(), R)
    context.expect(
        "a whole state after it is refused", refused(context, bytes(stream), context.device), False
    )


@check(27, severity=Severity.CONTRACT)
def function_level_reset(context: Context) -> None:
    """An FLR by config space leads to RUNNING and ends the session, as RESET does."""
    face = context.need_face()

    at = find_capability(face, CAP_EXPRESS)
    if not at or not read_config(face, at + 4, 4) & _DEVCAP_FLR:
        raise NotApplicable("the function has no FLR")
    for state in context.states():
        file = bring(context, state)
        context.step("FLR")
        control = read_config(face, at + 8, 2) | _DEVCTL_FLR
        face.region_write(RegionIndex.CONFIG, at + 8, control.to_bytes(2, "little"))
        ends = time.monotonic() + FLR_SECONDS
        while context.state() is not R and time.monotonic() < ends:
            time.sleep(0.01)
        context.expect(f"GET after FLR in {state.name}", context.state(), R)
        if file is not None:
            expect_dead(
                context, f"the data_fd of {state.name} after FLR", file, saving=state is not RES
            )
