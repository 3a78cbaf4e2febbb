"""Streams of qat_vfio_pci: drivers/crypto/intel/qat/qat_common/adf_mstate_mgr.c, Linux 7.3.4.

Two preambles, each with sections of an id, a size and sections in it, in the driver's memory order
(little-endian here); the sections are those of adf_gen4_vf_mig.c. PRE_COPY moves the first preamble,
the setup that a target compares. All of it is known; the registers' meaning is the hardware's.
"""

import enum
from collections.abc import Mapping

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, Spec, Values, hexadecimal, named, printable, size, text
from precopy.stream.registry import register

MAGIC = 0xADF5CAEA
VERSION = 1
#: ``ADF_GEN4_VF_MSTATE_SIZE``: all that a target has room for, and what STOP_COPY gives.
LENGTH = 4096

PREAMBLE = Layout(
    "<",
    ("magic", "I", hexadecimal),
    ("version", "I"),
    ("preh_len", "H"),
    ("n_sects", "H"),
    ("size", "I", size),
)
SECTION = Layout("<", ("id", "8s", text), ("size", "I", size), ("sub_sects", "I"))

#: How deep sections lie in each other: ETRBAR, its banks, their registers.
_MAX_DEPTH = 3


class Service(enum.IntEnum):
    """``enum adf_base_services``."""

    SVC_ASYM = 0
    SVC_SYM = 1
    SVC_DC = 2
    SVC_DECOMP = 3


def _value(code: str) -> Layout:
    return Layout("<", ("value", code, hexadecimal))


def _rings() -> list[Spec]:
    fields = (("base", "Q"), ("config", "I"), ("head", "I"), ("tail", "I"), ("reserved0", "I"))
    return [
        (f"rings[{ring}].{name}", code, hexadecimal) for ring in range(16) for name, code in fields
    ]


#: ``struct adf_bank_state``.
BANK = Layout(
    "<",
    *(
        (name, "I", hexadecimal)
        for name in (
            *("ringstat0", "ringstat1", "ringuostat", "ringestat", "ringnestat", "ringnfstat"),
            *("ringfstat", "ringcstat0", "ringcstat1", "ringcstat2", "ringcstat3"),
            *("iaintflagen", "iaintflagreg", "iaintflagsrcsel0", "iaintflagsrcsel1"),
            *("iaintcolen", "iaintcolctl", "iaintflagandcolen"),
            *("ringexpstat", "ringexpintenable", "ringsrvarben", "reserved0"),
        )
    ),
    *_rings(),
)

#: ``struct mig_user_sla``: rate limits, one for each that covers a ring pair of the VF.
SLA = Layout(
    "<",
    ("srv", "I", named(Service)),
    ("gap", "I", hexadecimal),
    ("rp_mask", "Q", hexadecimal),
    ("cir", "I"),
    ("pir", "I"),
)

#: What is in the sections that have no others in them; of ``sla`` there may be several.
CONTENT: Mapping[str, Layout] = {
    "gencap": _value("I"),
    "svcmap": _value("H"),
    "extdc": _value("I"),
    "iovinit": _value("B"),
    "compver": _value("B"),
    "sla": SLA,
    "visrc": _value("I"),
    "vimsk": _value("I"),
    "vispv": _value("I"),
    "vimpv": _value("I"),
    "pf2vm": _value("I"),
    "vm2pf": _value("I"),
    "mregs": BANK,
}

#: Sections in which a target looks for others, and refuses a state without them.
NEEDED: Mapping[str, tuple[str, ...]] = {
    "CONFIG": ("gencap", "svcmap", "extdc"),
    "GENER": ("iovinit", "compver", "sla"),
    "MISCBAR": ("vimsk", "vimpv", "pf2vm", "vm2pf"),
    "ETRBAR": ("bnk0",),
}

#: The same for the whole of what a preamble has behind it.
_SETUP, _STATE = ("CONFIG",), ("GENER", "MISCBAR", "ETRBAR")


def _recognise(head: bytes) -> int:
    magic = MAGIC.to_bytes(4, "little")
    return 90 if head.startswith(magic) else 0


@register("qat", "state of an Intel QAT VF", _recognise)
def dissect(stream: Stream) -> Steps[None]:
    """The setup, and behind it the state, if the stream goes on."""
    head = yield from stream.look(PREAMBLE, "preamble of the setup")
    _check(stream, head)
    setup = head["preh_len"] + head["size"]
    if setup > LENGTH:
        at = stream.offset + PREAMBLE.offset("size")
        raise stream.damage(f"a setup of at most {LENGTH} bytes in all", str(setup), at)
    yield from _part(stream, "setup", setup, "initial", _SETUP)
    if not (yield from stream.more()):
        return
    head = yield from stream.look(PREAMBLE, "preamble of the state")
    _check(stream, head)
    end = LENGTH - stream.offset
    if head["preh_len"] + head["size"] > end:
        at = stream.offset + PREAMBLE.offset("size")
        stream.tell_wrong(
            stream.damage(f"at most {end - head['preh_len']} bytes", str(head["size"]), at)
        )
    yield from _part(stream, "state", end, "final", _STATE)


def _check(stream: Stream, head: Values) -> None:
    """Raise Damage for a preamble that the driver refuses."""
    room, length = LENGTH - stream.offset, head["preh_len"]
    for name, good, expected in (
        ("magic", head["magic"] == MAGIC, f"magic {MAGIC:#x}"),
        ("version", head["version"] <= VERSION, f"version {VERSION} at most"),
        ("preh_len", PREAMBLE.size <= length <= room, f"a preamble of {PREAMBLE.size} to {room}"),
    ):
        if not good:
            at = stream.offset + PREAMBLE.offset(name)
            raise stream.damage(expected, f"{head[name]:#x}", at)


def _part(
    stream: Stream, name: str, count: int, phase: str, needed: tuple[str, ...]
) -> Steps[None]:
    """A preamble and all that is behind it, ``count`` bytes."""
    start = stream.offset
    try:
        with stream.group(name):
            head = yield from stream.struct("preamble", PREAMBLE)
            if head["preh_len"] > PREAMBLE.size:
                yield from stream.opaque("longer preamble", head["preh_len"] - PREAMBLE.size)
            left = start + count - stream.offset
            yield from _sections(stream, name, head["n_sects"], left, needed, 1)
            rest = start + count - stream.offset
            if rest:
                yield from stream.opaque("unused", rest, "behind the sections")
    finally:
        stream.phase(phase, stream.offset - start)


def _sections(
    stream: Stream, name: str, number: int, room: int, needed: tuple[str, ...], depth: int
) -> Steps[None]:
    """``number`` sections in ``room`` bytes. Damage, Cut."""
    end = stream.offset + room
    found: set[str] = set()
    for _ in range(number):
        if end - stream.offset < SECTION.size:
            raise stream.damage(f"{number} sections in {name}", "no room for the next of them")
        head = yield from stream.look(SECTION, "a section's header")
        left = end - stream.offset - SECTION.size
        if head["size"] > left:
            at = stream.offset + SECTION.offset("size")
            raise stream.damage(
                f"a section that ends in {name}: at most {left}", str(head["size"]), at
            )
        inner = yield from _section(stream, head["size"], head["sub_sects"], depth)
        found.add(inner)
    for each in needed:
        if each not in found:
            stream.tell_wrong(stream.damage(f"section {each} in {name}", "none"))


def _section(stream: Stream, count: int, number: int, depth: int) -> Steps[str]:
    raw = bytes((yield from stream.window(SECTION.size, "a section's header"))[:8])
    name = printable(raw.split(b"\0")[0])
    stream.count("sections")
    with stream.group(f"section {name}", SECTION.size + count):
        yield from stream.struct("header", SECTION)
        end = stream.offset + count
        if number and depth < _MAX_DEPTH:
            yield from _sections(stream, name, number, count, NEEDED.get(name, ()), depth + 1)
            if end > stream.offset:
                yield from stream.opaque("unused", end - stream.offset)
        else:
            yield from _content(stream, name, count)
    return name


def _content(stream: Stream, name: str, count: int) -> Steps[None]:
    layout = CONTENT.get(name)
    if layout is None or (count != layout.size and (name != "sla" or count % SLA.size)):
        told = "not known" if layout is None else f"{layout.size} bytes were expected"
        if count:
            yield from stream.opaque("content", count, told)
        return
    for index in range(count // layout.size):
        yield from stream.struct(name if name != "sla" else f"sla {index}", layout)
