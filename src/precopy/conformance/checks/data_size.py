"""MIG_DATA_SIZE: how much a STOP_COPY would give."""

from precopy.conformance.check import Context, Severity, check
from precopy.conformance.checks.common import (
    SC,
    bring,
    need_precopy,
    read_until_temporary_end,
    stopped_image,
)
from precopy.vfio.uapi import Feature

#: How far an estimate may be from what is read: this factor, and so many bytes of headers beside it.
FACTOR, BESIDE = 4, 1 << 16


def _expect_near(context: Context, what: str, told: int, read: int) -> None:
    near = told <= FACTOR * read + BESIDE and read <= FACTOR * told + BESIDE
    context.expect_that(
        what, near, f"within a factor of {FACTOR} (and {BESIDE} bytes) of {read}", told
    )


@check(72)
def data_size_in_every_state(context: Context) -> None:
    """MIG_DATA_SIZE answers in every state, and leaves that state and its session alone."""
    context.need_feature(Feature.MIG_DATA_SIZE)
    stream = stopped_image(context)
    for state in context.states():
        bring(context, state, stream)
        context.step(f"MIG_DATA_SIZE in {state.name}")
        told = context.device.data_size()
        context.expect_that(f"size in {state.name}", 0 <= told < 1 << 63, "below 2^63", told)
        context.expect("GET after it", context.state(), state)


@check(73, severity=Severity.QUALITY, timeout=60)
def data_size_is_near(context: Context) -> None:
    """MIG_DATA_SIZE is near what STOP_COPY then gives, and below 2^63."""
    context.need_feature(Feature.MIG_DATA_SIZE)
    told = context.device.data_size()
    context.expect_that("size", 0 < told < 1 << 63, "above 0 and below 2^63", told)
    file = context.enter(SC)
    room, read = bytearray(1 << 20), 0
    context.step("read the whole stream")
    while count := file.readinto(room):
        read += count
    _expect_near(context, "size while RUNNING", told, read)


@check(73, severity=Severity.QUALITY)
def data_size_in_precopy(context: Context) -> None:
    """MIG_DATA_SIZE in PRE_COPY stays below 2^63, however much was read."""
    context.need_feature(Feature.MIG_DATA_SIZE)
    file = need_precopy(context)
    read_until_temporary_end(context, file)
    told = context.device.data_size()
    context.expect_that("size", 0 <= told < 1 << 63, "below 2^63", told)
