"""Streams of xe-vfio-pci: packets of the Xe driver's SR-IOV migration, Linux 7.3.4.

drivers/gpu/drm/xe/xe_sriov_packet_types.h and xe_sriov_packet.c, keys in abi/xe_driver_klvs_abi.h.
The packets are known, and what the descriptor and the registers say. GuC state is that firmware's own;
GGTT entries belong to the hardware, and video memory is the guest's data.
"""

import enum

from precopy.stream.cursor import Cut, Steps, Stream
from precopy.stream.layout import Layout, Values, hexadecimal, named, size
from precopy.stream.registry import register

VERSION = 1


class Type(enum.IntEnum):
    """``enum xe_sriov_packet_type``."""

    DESCRIPTOR = 1
    TRAILER = 2
    GGTT = 3
    MMIO = 4
    GUC = 5
    VRAM = 6


class Key(enum.IntEnum):
    """Keys of a descriptor."""

    MIGRATION_KLV_DEVICE_DEVID = 0xF001
    MIGRATION_KLV_DEVICE_REVID = 0xF002


HEADER = Layout(
    "<",
    ("version", "B"),
    ("type", "B", named(Type)),
    ("tile_id", "B"),
    ("gt_id", "B"),
    ("flags", "I", hexadecimal),
    ("offset", "Q", hexadecimal),
    ("size", "Q", size),
)

#: Of a key-length-value: length in words of 32 bits, then the key.
KLV = Layout("<", ("len", "H"), ("key", "H", named(Key)))
WORD = Layout("<", ("value", "I", hexadecimal))
ENTRY = 8

#: What any packet of a device stays below: what is larger is not taken for one when looking for the next.
_LIKELY_SIZE = 1 << 40
_LIKELY_IDS = 16

#: Registers and keys that are told singly in a packet.
_MAX_TOLD = 64

_OPAQUE = {
    Type.GGTT: "entries of the GGTT, 8 bytes each; the hardware's own",
    Type.GUC: "opaque, the GuC firmware's own",
    Type.VRAM: "video memory, the guest's data",
}


def _fault(head: Values) -> tuple[str, str] | None:
    """The first field that the driver refuses, and what it expects there."""
    if head["version"] != VERSION:
        return "version", f"version {VERSION}"
    kind = head["type"]
    if not kind:
        return "type", "a type other than 0"
    whole = kind in (Type.DESCRIPTOR, Type.TRAILER)
    for name in ("tile_id", "gt_id"):
        if whole and head[name]:
            return name, f"0: a {Type(kind).name} belongs to no tile"
    if kind == Type.TRAILER:
        for name in ("offset", "size"):
            if head[name]:
                return name, "0 in a TRAILER"
    if kind == Type.DESCRIPTOR and head["size"] % WORD.size:
        return "size", f"a multiple of {WORD.size} in a DESCRIPTOR"
    if kind == Type.MMIO and head["size"] % WORD.size:
        return "size", f"a multiple of {WORD.size} in MMIO"
    return None


def _likely(data: memoryview | bytes) -> bool:
    # No flags are known: this alone rules out most places, and quickly.
    if any(data[4:8]):
        return False
    head = HEADER.values(data)
    return (
        _fault(head) is None
        and head["type"] in [kind.value for kind in Type]
        and head["size"] < _LIKELY_SIZE
        and head["offset"] < _LIKELY_SIZE
        and max(head["tile_id"], head["gt_id"]) < _LIKELY_IDS
    )


def _recognise(head: bytes) -> int:
    if len(head) < HEADER.size or not _likely(head):
        return 0
    first = HEADER.values(head)
    if first["type"] != Type.DESCRIPTOR:
        return 10
    # A descriptor comes first; its first key shows whose it is.
    known = len(head) >= HEADER.size + KLV.size and (
        KLV.values(head[HEADER.size :])["key"] in [key.value for key in Key]
    )
    return 90 if known else 30


def _resync(stream: Stream) -> Steps[None]:
    """On to what looks like a packet's header."""
    patterns = [(bytes((VERSION, kind)), 0) for kind in Type]
    if (yield from stream.hunt(patterns, HEADER.size, _likely)):
        yield from dissect(stream)


@register("xe", "packets of an Intel Xe VF's migration", _recognise, resync=_resync)
def dissect(stream: Stream) -> Steps[None]:
    """Packets up to the trailer."""
    while True:
        if not (yield from stream.more()):
            raise Cut(
                stream.offset, "a packet, the last of them a TRAILER", "the end of the stream"
            )
        head = yield from stream.look(HEADER, "a packet's header")
        fault = _fault(head)
        if fault is not None:
            name, expected = fault
            at = stream.offset + HEADER.offset(name)
            raise stream.damage(expected, f"{head[name]:#x}", at)
        start = stream.offset
        try:
            yield from _packet(stream, head)
        finally:
            # The driver has no PRE_COPY: all of it moves while the VF is stopped.
            stream.phase("final", stream.offset - start)
        if head["type"] == Type.TRAILER:
            return


def _packet(stream: Stream, head: Values) -> Steps[None]:
    stream.count("packets")
    number, kind, count = stream.summary.counts["packets"], head["type"], head["size"]
    name = named(Type)(kind)
    with stream.group(f"packet {number}", HEADER.size + count, name):
        yield from stream.struct("header", HEADER)
        if kind == Type.DESCRIPTOR:
            yield from _descriptor(stream, count)
        elif kind == Type.MMIO:
            yield from _registers(stream, count)
        elif count:
            text = "a type that the driver does not know: passed over"
            if kind in _OPAQUE:
                text = _OPAQUE[Type(kind)]
            if kind == Type.GGTT:
                text = f"{count // ENTRY} {text}"
            yield from stream.opaque("data", count, text)


def _descriptor(stream: Stream, left: int) -> Steps[None]:
    told = 0
    while left:
        klv = yield from stream.look(KLV, "a key")
        length = klv["len"] * WORD.size
        if length > left - KLV.size:
            expected = f"at most {(left - KLV.size) // WORD.size} words, which is all there is"
            damage = stream.damage(expected, str(klv["len"]))
            yield from stream.opaque("rest of the descriptor", left)
            stream.tell_wrong(damage)
            return
        if told < _MAX_TOLD:
            with stream.group(named(Key)(klv["key"]), KLV.size + length):
                yield from stream.struct("key", KLV)
                if length == WORD.size:
                    yield from stream.struct("value", WORD)
                else:
                    yield from stream.opaque("value", length, "passed over")
        else:
            yield from stream.skip(KLV.size + length, "keys")
        told += 1
        left -= KLV.size + length


def _registers(stream: Stream, count: int) -> Steps[None]:
    """VF_SW_FLAG, or MED_VF_SW_FLAG of a media GT, from the first."""
    singly = min(count // WORD.size, _MAX_TOLD)
    for number in range(singly):
        yield from stream.struct(f"VF_SW_FLAG({number})", WORD)
    if count > singly * WORD.size:
        yield from stream.opaque("more registers", count - singly * WORD.size)
