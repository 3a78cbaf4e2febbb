"""What is read from a saving file: whole, however it is cut, and whenever it was taken."""

import ctypes
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import (
    ANY_ERROR,
    MIB,
    PC,
    PCP,
    RES,
    SC,
    R,
    S,
    alike,
    expect_alike,
    image,
    is_still,
    load,
    need_descriptor,
    read_limited,
    read_some,
    saving_states,
    stopped_image,
    target,
)
from precopy.conformance.checks.memory import NONE, PAGE, Pages, libc
from precopy.vfio.states import DeviceState, MigrationFlags

#: Sizes of reads, in turn: single bytes, primes, and more than a page. None divides another.
_SIZES = (1, 1, 1, 3, 7, 61, 509, 4093, 1, 8191, 65521)
#: How many small reads or writes are made of one image; the rest goes at once.
_SMALL = 1 << 12


@check(43, timeout=120)
def read_segmentation(context: Context) -> None:
    """How a stream is cut into reads never matters: the bytes are the same, and they load."""
    whole = stopped_image(context)
    again = stopped_image(context)
    large = len(whole) // 64 | 1
    for sizes in (_SIZES, (max(large, 13),), (1,)):
        file = context.enter(SC)
        context.step(f"read in pieces of {sizes[:8]} bytes")
        found = bytearray()
        for count in range(_SMALL):
            piece = read_some(file, sizes[count % len(sizes)])
            if not piece:
                break
            found += piece
        found += read_limited(file)
        context.set_state(S)
        context.expect(
            f"length of a stream read {sizes[:4]} bytes at a time", len(found), len(whole)
        )
        if alike(context, whole, again):
            expect_alike(
                context, f"the stream read {sizes[:4]} bytes at a time", bytes(found), whole
            )
    load(context, bytes(found), target(context))


#: How many reads fault, and how many bytes of each one's buffer are there, in turn.
_FAULTS, _THERE = 60, (96, 8, 40, 24)


@check(49, severity=Severity.QUALITY)
def a_buffer_that_is_partly_there(context: Context) -> None:
    """A read into a buffer of which a part can't be written loses no bytes."""
    whole = stopped_image(context)
    if not alike(context, stopped_image(context), whole):
        raise NotApplicable("two images of this device differ: a loss could not be told")
    file = context.enter(SC)
    number = need_descriptor(file)
    found = bytearray()
    context.step(f"{_FAULTS} reads of 4096 bytes into buffers whose last part is not there")
    with Pages(2) as pages:
        pages.protect(1, NONE)
        for turn in range(_FAULTS):
            there = _THERE[turn % len(_THERE)]
            at = PAGE - there
            count = libc.read(number, ctypes.c_void_p(pages.address + at), 4096)
            # After a fault a byte goes as usual, so that the next begins elsewhere.
            found += pages[at : at + count] if count > 0 else read_some(file, 1)
    room = bytearray(MIB)
    while got := file.readinto(room):
        found += room[:got]
    expect_alike(context, "the stream with reads that failed in it", bytes(found), whole)


@check(29, severity=Severity.QUALITY)
def images_of_a_stopped_device(context: Context) -> None:
    """Two images with only STOP between them are the same."""
    first = stopped_image(context)
    expect_alike(context, "the second image", stopped_image(context), first)


#: How much is read in PRE_COPY before STOP_COPY: nothing, some, all.
_TAKEN = ("nothing", "8 bytes", "all")


def _taken(context: Context, state: DeviceState, how: str) -> bytes:
    """A stream by way of ``state``, of which ``how`` much was read there."""
    file = context.enter(state)
    found = b""
    if how == "8 bytes":
        found = read_some(file, 8)
    elif how == "all":
        found = read_limited(file)
    context.set_state(SC)
    return found + read_limited(file)


@check(50, 69, timeout=120)
def streams_taken_at_any_point(context: Context) -> None:
    """A stream loads whatever part of it was read in PRE_COPY: nothing, some, all."""
    context.need(MigrationFlags.PRE_COPY)
    for state in (each for each in (PC, PCP) if each in context.states()):
        for how in _TAKEN:
            context.reset()
            still = is_still(context)
            before = image(context) if still else b""
            context.set_state(R)
            stream = _taken(context, state, how)
            where = target(context)
            load(context, stream, where)
            if still:
                after = image(context, where)
                expect_alike(
                    context, f"the image after a load of {state.name}, {how} read", after, before
                )


@check(69, severity=Severity.QUALITY, timeout=120)
def a_restored_device_is_the_same(context: Context) -> None:
    """The image of a restored device equals the one that it was restored from, and it goes on."""
    whole = stopped_image(context)
    if not alike(context, stopped_image(context), whole):
        raise NotApplicable("two images of this device differ")
    where = target(context)
    load(context, whole, where)
    expect_alike(context, "image after the load", stopped_image(context, where), whole)
    context.set_state(R, where)
    context.expect("GET", context.state(where), R)


@check(64, timeout=120)
def write_segmentation(context: Context) -> None:
    """How a stream is cut into writes never matters: the state that is loaded is the same."""
    whole = stopped_image(context)
    where = target(context)
    load(context, whole, where)
    first = stopped_image(context, where)
    same = alike(context, stopped_image(context, where), first)
    for sizes in (_SIZES, (1,), (24,), (len(whole),)):
        context.reset(where)
        file = context.enter(RES, where)
        context.step(f"write in pieces of {sizes[:8]} bytes")
        view, count = memoryview(whole), 0
        while view:
            size = sizes[count % len(sizes)] if count < _SMALL else MIB
            view = view[file.write(view[:size]) :]
            count += 1
        context.set_state(S, where)
        if same:
            found = stopped_image(context, where)
            expect_alike(context, f"the image after writes of {sizes[:4]} bytes", found, first)


@check(68)
def the_end_of_a_stream_is_the_end_of_its_image(context: Context) -> None:
    """A device loads one image after another in one open, and each SET out of RESUMING is its own."""
    whole = stopped_image(context)
    for _ in range(2):
        load(context, whole, context.device)
        context.enter(RES)
        context.expect_errno(
            "RESUMING to STOP with nothing written", ANY_ERROR, partial(context.set_state, S)
        )
        context.reset()
    for state in saving_states(context):
        context.reset()
        context.expect_that("read", bool(read_some(context.enter(state), 8)), "data", "the end")
