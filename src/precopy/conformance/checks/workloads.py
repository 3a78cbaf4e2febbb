"""A device at work: what it may do in which state."""

from typing import Protocol, runtime_checkable

from precopy.conformance.check import Context, NotApplicable, check
from precopy.conformance.checks.common import (
    PC,
    PCP,
    RP,
    SC,
    R,
    S,
    alike,
    bring,
    expect_alike,
    load,
    read_limited,
    stopped_image,
    target,
)
from precopy.conformance.checks.config_space import CAP_MSIX, find_capability, read_config
from precopy.vfio.face import RegionIndex
from precopy.vfio.states import MigrationFlags


@runtime_checkable
class PeerWorkload(Protocol):
    """A workload that can also let the device write to another device."""

    def work_on_peer(self) -> list[tuple[int, int]]:
        """Let it; address and length in bytes of all that reached the other device."""


@runtime_checkable
class InterruptWorkload(Protocol):
    """A workload that hears the device's interrupts."""

    @property
    def interrupts(self) -> int:
        """How many came so far."""


@check(32)
def running_and_precopy_work(context: Context) -> None:
    """In RUNNING and PRE_COPY the device works, also after a session, and again after STOP."""
    workload = context.need_workload()
    route = (R, *((PC, R, PC) if PC in context.states() else ()), S, R)
    for state in route:
        context.set_state(state)
        if state is not S:
            context.step("the device works")
            context.expect_that(f"DMA in {state.name}", bool(workload.work()), "some", "none")


@check(29)
def a_stopped_device_writes_nothing(context: Context) -> None:
    """In STOP and STOP_COPY there is no DMA, whatever the device is asked for, and no state changes."""
    workload = context.need_workload()
    workload.work()
    before = stopped_image(context)
    for state in (S, SC):
        context.set_state(state)
        context.step("the device is asked to work")
        context.expect(f"DMA in {state.name}", workload.work(), [])
    context.set_state(S)
    expect_alike(context, "the image after it", stopped_image(context), before)


@check(29)
def a_stopped_device_raises_no_interrupt(context: Context) -> None:
    """In STOP and STOP_COPY no interrupt comes, whatever the device is asked for; in RUNNING they do."""
    workload = context.need_workload()
    if not isinstance(workload, InterruptWorkload):
        raise NotApplicable("the workload hears no interrupts")
    workload.work()
    if not workload.interrupts:
        raise NotApplicable("the workload makes the device raise no interrupt")
    for state in (S, SC):
        context.set_state(state)
        before = workload.interrupts
        context.step("the device is asked to work")
        workload.work()
        context.expect(f"interrupts in {state.name}", workload.interrupts - before, 0)


@check(29)
def a_stopped_device_marks_nothing(context: Context) -> None:
    """What STOP_COPY reads is what the device was when it stopped: asking it to work changes nothing."""
    workload = context.need_workload()
    workload.work()
    whole = stopped_image(context)
    file = context.enter(SC)
    workload.work()
    expect_alike(context, "the stream", read_limited(file, (64, 1 << 16)), whole)


@check(31)
def no_dma_to_other_devices(context: Context) -> None:
    """In RUNNING_P2P and PRE_COPY_P2P the device starts no DMA to other devices; in RUNNING it does."""
    context.need(MigrationFlags.P2P)
    workload = context.need_workload()
    if not isinstance(workload, PeerWorkload):
        raise NotApplicable("the workload has no other device to write to")
    context.expect_that(
        "DMA to another device in RUNNING", bool(workload.work_on_peer()), "some", "none"
    )
    for state in (each for each in (RP, PCP) if each in context.states()):
        context.reset()
        context.set_state(state)
        context.expect(f"DMA to another device in {state.name}", workload.work_on_peer(), [])


@check(32, 69)
def a_device_works_after_a_load(context: Context) -> None:
    """A device that was loaded is what its source was, and works on."""
    workload = context.need_workload()
    workload.work()
    whole = stopped_image(context)
    still = alike(context, stopped_image(context), whole)
    where = target(context)
    load(context, whole, where)
    if still:
        expect_alike(context, "the image after the load", stopped_image(context, where), whole)
    context.set_state(R, where)
    if where is context.device:
        context.expect_that("DMA after a load", bool(workload.work()), "some", "none")


@check(30)
def config_space_answers_in_stop(context: Context) -> None:
    """Config space answers in STOP and STOP_COPY, and says what it said before."""
    face = context.need_face()
    before = face.region_read(RegionIndex.CONFIG, 0, 64)
    for state in (S, SC):
        bring(context, state)
        context.step(f"read config space in {state.name}")
        context.expect("vendor and device", face.region_read(RegionIndex.CONFIG, 0, 4), before[:4])
        context.expect("GET after it", context.state(), state)


@check(30)
def msix_answers_in_stop(context: Context) -> None:
    """The MSI-X capability and the table's first entry can be read in STOP and STOP_COPY, as before."""
    face = context.need_face()
    at = find_capability(face, CAP_MSIX)
    if not at:
        raise NotApplicable("the function has no MSI-X")
    where = read_config(face, at + 4, 4)
    table, offset = where & 7, where & ~7

    def read() -> tuple[bytes, bytes]:
        context.step(f"read the MSI-X capability at {at:#x}, BAR {table} at {offset:#x}")
        capability = face.region_read(RegionIndex.CONFIG, at, 12)
        return capability, face.region_read(table, offset, 16)

    before = read()
    for state in (S, SC):
        context.set_state(state)
        context.expect(f"MSI-X in {state.name}", read(), before)
        context.expect("GET after it", context.state(), state)


@check(30, dangerous=True)
def registers_answer_in_stop(context: Context) -> None:
    """Registers can be read and written in STOP and STOP_COPY: nothing faults, and no state changes."""
    face = context.need_face()
    for state in (S, SC):
        bring(context, state)
        for index, region in enumerate(face.regions[: RegionIndex.ROM]):
            for offset in {0, max(region.size - 4, 0)} if region.size >= 4 else set[int]():
                context.step(f"read and write BAR {index} at {offset:#x} in {state.name}")
                found = face.region_read(index, offset, 4)
                context.expect("bytes read", len(found), 4)
                face.region_write(index, offset, b"\xff" * 4)
        context.expect("GET after it", context.state(), state)
    context.reset()
    context.expect("GET after RESET", context.state(), R)
