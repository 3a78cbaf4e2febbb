"""What a device that is RESUMING refuses: a state that is not whole, or not its own."""

import resource
import time
from functools import partial
from itertools import zip_longest

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import (
    ANY_ERROR,
    RES,
    SC,
    E,
    R,
    S,
    alike,
    expect_alike,
    load,
    read_some,
    refused,
    stopped_image,
    target,
)
from precopy.vfio.device import VfioDevice

#: A stream up to so many bytes is cut at every offset; a larger one at :func:`_offsets`.
_EVERY = 4096
#: Bytes from the start on of which every bit is flipped: as much as headers have.
HEADERS = 64
#: As much of an image as is kept to be cut, in bytes.
_START = 1 << 24
#: Seconds that cutting may take: what is left out then are offsets in the middle.
_SECONDS = 15.0
#: Formats that have a checksum or a magic at their first bytes; others have no integrity to check.
_MAGIC_BYTES = {"mtty": 8, "hisi_acc": 8, "qat": 4, "xe": 1, "mlx5": 8, "virtio": 8}

#: Fields that a driver compares before it loads: what, offset and length in bytes, in the stream's
#: first header (mtty.c, hisi_acc_vfio_pci.h, qat's adf_mstate_mgr.h; mlx5 and virtio: size and tag).
_COMPARED: dict[str, tuple[tuple[str, int, int], ...]] = {
    "mtty": (("magic", 0, 8), ("major_ver", 8, 4), ("minor_ver", 12, 4), ("nr_ports", 16, 4)),
    "hisi_acc": (("magic", 0, 8), ("qp_num", 8, 4), ("dev_id", 12, 4)),
    "qat": (("magic", 0, 4), ("version", 4, 2)),
    "xe": (("version", 0, 1),),
}
#: Formats whose records start with ``le64 size, le32 flags, le32 tag``.
_RECORDS = ("mlx5", "virtio")


def _offsets(length: int) -> list[int]:
    """Where a stream is cut: everywhere, or close to its ends, by powers of two and evenly.

    The ends come first: they are where it is easy to be wrong.
    """
    if length <= _EVERY:
        return sorted(range(length), key=lambda each: min(each, length - each))
    found = {*range(33), *range(length - 17, length)}
    found |= {(1 << bit) + near for bit in range(5, length.bit_length()) for near in (-1, 0, 1)}
    found |= {length * part // 16 for part in range(16)}
    return sorted(
        (each for each in found if each < length), key=lambda each: min(each, length - each)
    )


def _expect_refused(context: Context, what: str, stream: bytes, where: VfioDevice) -> None:
    """That ``stream`` is refused, where the device is after it, and that a reset brings it back."""
    context.expect(f"{what}: refused", refused(context, stream, where), True)
    came = context.state(where)
    context.expect_that(f"GET after {what}", came in (RES, S, E), "RESUMING, STOP or ERROR", came)
    context.reset(where)
    context.expect(f"GET after {what} and RESET", context.state(where), R)


@check(65, 66, 20, timeout=120)
def streams_that_are_cut(context: Context) -> None:
    """A stream that ends early never loads: a write or the SET fails, and RESET makes good."""
    whole, complete = _start_of_image(context)
    where = target(context)
    ends = time.monotonic() + _SECONDS
    offsets = _offsets(len(whole))
    for count, cut in enumerate(offsets, 1):
        _expect_refused(context, f"a stream cut at {cut}", whole[:cut], where)
        if time.monotonic() > ends:
            context.step(f"{count} of {len(offsets)} cuts in {_SECONDS:g} s")
            break
    if complete:
        load(context, whole, where)
        context.expect("GET after a whole one", context.state(where), S)


def _start_of_image(context: Context) -> tuple[bytes, bool]:
    """An image, and whether it is all there: of a large one the first bytes do, as they can be cut."""
    file = context.enter(SC)
    context.step(f"read {_START >> 20} MiB of the stream at most")
    found = bytearray()
    while len(found) < _START:
        piece = read_some(file, 1 << 20)
        if not piece:
            break
        found += piece
    complete = len(found) < _START
    context.set_state(S)
    return bytes(found), complete


@check(65)
def an_empty_stream(context: Context) -> None:
    """RESUMING with nothing written leads nowhere: the SET fails."""
    where = target(context)
    for state in (each for each in context.states() if each is not RES):
        context.reset(where)
        context.enter(RES, where)
        what = f"SET {state.name} with nothing written"
        context.expect_errno(what, ANY_ERROR, partial(context.set_state, state, where))
        came = context.state(where)
        context.expect_that(
            f"GET after {what}", came in (RES, S, E), "RESUMING, STOP or ERROR", came
        )


# Dangerous as below: of a format of records the first bytes are a size.
@check(65, 66, 70, dangerous=True)
def a_wrong_magic(context: Context) -> None:
    """A stream whose first bytes are not those of its format never loads."""
    whole = stopped_image(context)
    size = _MAGIC_BYTES.get(context.device.identity.stream)
    if size is None:
        raise NotApplicable(
            f"{context.device.identity.stream} streams begin with nothing that is known"
        )
    where = target(context)
    for at in range(min(size, len(whole))):
        bad = bytearray(whole)
        bad[at] ^= 0xFF
        _expect_refused(context, f"a stream with byte {at} inverted", bytes(bad), where)
    _expect_refused(context, "64 bytes of 0xff", b"\xff" * 64, where)
    load(context, whole, where)


@check(70)
def a_stream_of_another_kind(context: Context) -> None:
    """A stream whose header names another version, or another shape of device, never loads."""
    name = context.device.identity.stream
    whole = stopped_image(context)
    where = target(context)
    if name in _RECORDS:
        unknown = whole[:8] + bytes(4) + b"\x55\x55\0\0" + whole[16:]
        _expect_refused(context, "a mandatory record of an unknown tag", unknown, where)
        return
    if name not in _COMPARED:
        raise NotApplicable(f"what a header of {name} holds is not known here")
    for what, offset, length in _COMPARED[name]:
        bad = bytearray(whole)
        bad[offset : offset + length] = bytes(each ^ 0x5A for each in bad[offset : offset + length])
        _expect_refused(context, f"another {what}", bytes(bad), where)


# Flipped, the size of a record may be gigabytes: mlx5_vfio_pci falls when memory runs out over it.
@check(65, severity=Severity.QUALITY, dangerous=True, timeout=120)
def bits_that_flip(context: Context) -> None:
    """With a bit flipped a stream is refused, or the state that it carries is the same all the same."""
    whole = stopped_image(context)
    where = target(context)
    load(context, whole, where)
    first = stopped_image(context, where)
    if not alike(context, stopped_image(context, where), first):
        raise NotApplicable("two images of this device differ: a wrong state could not be told")
    ends = time.monotonic() + _SECONDS
    headers = [(at, bit) for at in range(min(HEADERS, len(whole))) for bit in range(8)]
    others = [(at, at % 8) for at in _offsets(len(whole)) if at >= HEADERS]
    # In turn: of both something is tried, however slow the device is.
    pairs = [each for pair in zip_longest(headers, others) for each in pair if each is not None]
    for count, (at, bit) in enumerate(pairs, 1):
        context.reset(where)
        bad = bytearray(whole)
        bad[at] ^= 1 << bit
        if not refused(context, bytes(bad), where):
            found = stopped_image(context, where)
            what = f"the state loaded with bit {bit} of byte {at} flipped"
            expect_alike(context, what, found, first)
        if time.monotonic() > ends:
            context.step(f"{count} of {len(pairs)} bits in {_SECONDS:g} s")
            break


@check(65, severity=Severity.QUALITY)
def more_than_a_stream(context: Context) -> None:
    """Garbage behind a stream, or the stream twice, is refused, or changes nothing."""
    whole = stopped_image(context)
    where = target(context)
    load(context, whole, where)
    first = stopped_image(context, where)
    if not alike(context, stopped_image(context, where), first):
        raise NotApplicable("two images of this device differ: a wrong state could not be told")
    for what, stream in (
        ("a byte behind it", whole + b"\0"),
        ("garbage behind it", whole + b"\x5a" * 100),
        ("a stream twice", whole + whole),
    ):
        context.reset(where)
        if not refused(context, stream, where):
            found = stopped_image(context, where)
            expect_alike(context, f"the state after {what}", found, first)


@check(67, severity=Severity.QUALITY)
def errors_of_a_write_stay(context: Context) -> None:
    """Once a write has failed, writing on does not make a state that can be entered."""
    whole = stopped_image(context)
    where = target(context)
    seen = False
    bad = bytearray(whole)
    bad[: min(8, len(bad))] = b"\xff" * min(8, len(bad))
    for wrong in (bytes(bad), whole + b"\x5a" * 4096):
        context.reset(where)
        file = context.enter(RES, where)
        try:
            context.write_all(file, wrong)
            continue
        except OSError:
            seen = True
        for rest in (whole[8:], whole):
            try:
                context.write_all(file, rest)
            except OSError:
                continue
        context.expect_errno(
            "SET STOP after a write that failed",
            ANY_ERROR,
            partial(context.set_state, S, where),
        )
    if not seen:
        raise NotApplicable("no write of this device fails: it tells at SET")


@check(68, 66, timeout=60)
def a_second_session_checks_as_the_first(context: Context) -> None:
    """A second RESUMING, with and without a reset before it, refuses and accepts what the first does."""
    whole = stopped_image(context)
    where = target(context)
    for _ in range(2):
        load(context, whole, where)
        for cut in (0, 1, len(whole) // 2, len(whole) - 1):
            context.expect(f"cut at {cut}: refused", refused(context, whole[:cut], where), True)
            context.reset(where)
        load(context, whole, where)
        # What the first brought is no part of the second.
        file = context.enter(RES, where)
        context.write_all(file, whole[: len(whole) // 2])
        context.expect_errno(
            "SET STOP with half a stream after a whole one",
            ANY_ERROR,
            partial(context.set_state, S, where),
        )
        context.reset(where)


@check(71, severity=Severity.QUALITY, timeout=60)
def hostile_sizes(context: Context) -> None:
    """A stream that claims or brings more than there can be is refused, and takes no such memory."""
    whole = stopped_image(context)
    where = target(context)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claims = [b"\xff" * 16, b"\xff" * 7 + b"\x3f" + bytes(8) + b"x" * 64]
    claims += [b"\0\0\0\0\xff\0\0\0" + bytes(8) + b"x" * 64]
    for claim in claims:
        _expect_refused(context, f"a stream that starts {claim[:8].hex()}", claim, where)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    context.expect_that(
        "memory of this process", grown < 256 * 1024, "256 MiB more at most", f"{grown} KiB more"
    )
    load(context, whole, where)
