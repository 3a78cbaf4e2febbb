"""A channel of multifd: migration/multifd.c and multifd-device-state.c, QEMU 11.1. Big-endian.

A channel begins by saying which it is; then packets, each with pages or a piece of a device's state.
The pieces of one device lie in all channels, in any order; each says its index.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from precopy.stream.cursor import FILE_SHIFT, Damage, Steps, Stream
from precopy.stream.elsewhere import Elsewhere
from precopy.stream.item import Silent
from precopy.stream.layout import Layout, flags, hexadecimal, printable, text
from precopy.stream.qemu.config import FLAG, pci_state

MAGIC = 0x11223344
VERSION = 1

#: How every packet begins.
_NEXT = MAGIC.to_bytes(4, "big") + VERSION.to_bytes(4, "big")

#: Bytes of a channel that are read at a time.
STEP = 1 << 20


class Flag(enum.IntFlag):
    """MULTIFD_FLAG_*."""

    SYNC = 1 << 0
    ZLIB = 1 << 1
    ZSTD = 2 << 1
    QPL = 4 << 1
    UADK = 8 << 1
    QATZIP = 16 << 1
    DEVICE_STATE = 32 << 1


_COMPRESSED = Flag.ZLIB | Flag.ZSTD | Flag.QPL | Flag.UADK | Flag.QATZIP

INIT = Layout(
    ">",
    ("magic", "I", hexadecimal),
    ("version", "I"),
    ("uuid", "16s"),
    ("id", "B"),
    ("unused", "39s", lambda _: ""),
)

_HEAD = (("magic", "I", hexadecimal), ("version", "I"), ("flags", "I", flags(Flag)))

HEAD = Layout(">", *_HEAD)
RAM = Layout(
    ">",
    *_HEAD,
    ("pages_alloc", "I"),
    ("normal_pages", "I"),
    ("next_packet_size", "I"),
    ("packet_num", "Q"),
    ("zero_pages", "I"),
    ("unused", "28s", lambda _: ""),
    ("ramblock", "256s", text),
)
DEVICE = Layout(">", *_HEAD, ("idstr", "256s", text), ("instance", "I"), ("next_packet_size", "I"))
#: In front of a piece of a VFIO device's state: hw/vfio/migration-multifd.c.
VFIO = Layout(">", ("version", "I"), ("index", "I"), ("flags", "I", hexadecimal))
VFIO_CONFIG = 1

#: Pages that a packet may tell of, by the target's page size: 512 KiB of them, and more than that.
_PAGES = (128, 32, 8, 64, 256, 16)
_MAX_PAGES = 1 << 12


@dataclass(frozen=True, slots=True)
class Packet:
    """A piece of a device's state: where it lies. ``file``: the number of the channel's."""

    file: int
    offset: int
    size: int
    config: bool


#: Pieces by index.
Pieces = dict[int, Packet]


@dataclass(slots=True)
class _Channel:
    #: Pages that each packet has room for; 0 as long as nobody knows.
    room: int = 0
    packets: int = 0
    syncs: int = 0
    runs: int = 0
    #: Pieces of devices, where somebody collects them.
    found: dict[tuple[str, int], Pieces] | None = None
    file: int = 0
    begun: bool = False


def _channel(stream: Stream) -> _Channel:
    found = stream.memory.setdefault("multifd", _Channel())
    assert isinstance(found, _Channel)
    return found


def recognise(head: bytes) -> int:
    if len(head) >= 8 and HEAD.size <= len(head):
        whole = HEAD.values(head)
        return 90 if whole["magic"] == MAGIC and whole["version"] == VERSION else 0
    return 30 if len(head) >= 4 and MAGIC.to_bytes(4, "big").startswith(head[:4]) else 0


def dissect(stream: Stream) -> Steps[None]:
    """The channel's beginning, then packets."""
    channel = _channel(stream)
    head = yield from stream.look(INIT, "the beginning of a channel")
    _check(stream, head["magic"], head["version"])
    yield from stream.struct("channel", INIT)
    channel.begun = True
    yield from _packets(stream, channel)


def resync(stream: Stream) -> Steps[None]:
    """On at the next packet."""
    if (yield from stream.hunt([(_NEXT, 0)], HEAD.size, lambda data: not data[8])):
        yield from _packets(stream, _channel(stream))


def _check(stream: Stream, magic: int, version: int) -> None:
    if magic != MAGIC:
        raise stream.damage(f"the magic of a packet, {MAGIC:#x}", f"{magic:#x}")
    if version != VERSION:
        raise stream.damage(f"version {VERSION}", str(version), stream.offset + 4)


def _packets(stream: Stream, channel: _Channel) -> Steps[None]:
    while (yield from stream.more()):
        head = yield from stream.look(HEAD, "a packet")
        _check(stream, head["magic"], head["version"])
        known = sum(Flag)
        if head["flags"] & ~known:
            raise stream.damage("a packet's flags", f"{head['flags']:#x}", stream.offset + 8)
        if head["flags"] & Flag.DEVICE_STATE:
            yield from _device(stream, channel)
        elif head["flags"] & Flag.SYNC:
            channel.syncs += 1
            stream.count("syncs")
            with stream.group(f"sync {channel.syncs}"):
                yield from _ram(stream, channel)
        else:
            channel.runs += 1
            yield from _run(stream, channel)


def _run(stream: Stream, channel: _Channel) -> Steps[None]:
    """Packets with pages, up to one of another kind; each an item only where it is wanted."""
    first = channel.packets
    with stream.group(f"pages {channel.runs}") as item:
        normal = zero = 0
        try:
            while (yield from stream.more()):
                head = yield from stream.look(HEAD, "a packet")
                others = Flag.DEVICE_STATE | Flag.SYNC
                if head["magic"] != MAGIC or head["flags"] & others or head["flags"] & ~sum(Flag):
                    break
                _check(stream, head["magic"], head["version"])
                more = yield from _ram(stream, channel)
                normal, zero = normal + more[0], zero + more[1]
        finally:
            packets = channel.packets - first
            item.text = f"{packets} packets, {normal} pages, {zero} zero pages"
            stream.count("pages", normal)
            stream.count("zero pages", zero)


def _ram(stream: Stream, channel: _Channel) -> Steps[tuple[int, int]]:
    """A packet with pages, or none: full pages and zero pages."""
    start = stream.offset
    head = yield from stream.look(RAM, "a packet of pages")
    normal, zero, room = head["normal_pages"], head["zero_pages"], head["pages_alloc"]
    if room > _MAX_PAGES:
        at = start + RAM.offset("pages_alloc")
        raise stream.damage(f"room for at most {_MAX_PAGES} pages", str(room), at)
    if normal > room or normal + zero > room:
        at = start + RAM.offset("normal_pages" if normal > room else "zero_pages")
        raise stream.damage(f"at most {room} pages", str(normal if normal > room else zero), at)
    if room:
        channel.room = room
    elif not channel.room:
        channel.room = yield from _room(stream)
    channel.packets += 1
    stream.count("packets")
    if normal or zero:
        block = text(head["ramblock"])
        stream.phase(f"RAM {block}", head["next_packet_size"])
    whole = RAM.size + 8 * channel.room
    if head["flags"] & Flag.SYNC or stream.wants(whole + head["next_packet_size"]):
        yield from _shown(stream, channel, normal, zero, head["next_packet_size"])
    else:
        yield from stream.skip(whole, "a packet of pages")
        yield from stream.skip(head["next_packet_size"], "pages")
    return normal, zero


def _shown(stream: Stream, channel: _Channel, normal: int, zero: int, data: int) -> Steps[None]:
    head = yield from stream.look(RAM, "a packet of pages")
    compressed = bool(head["flags"] & _COMPRESSED)
    with stream.group(f"packet {channel.packets - 1}", RAM.size + 8 * channel.room + data):
        yield from stream.struct("header", RAM)
        listed = yield from stream.window(8 * channel.room, "the pages' addresses")
        places = [int.from_bytes(listed[8 * n : 8 * n + 8], "big") for n in range(normal + zero)]
        fields = [
            (f"{'page' if n < normal else 'zero page'} {n}", 8 * n, 8, place, f"{place:#x}")
            for n, place in enumerate(places)
        ]
        yield from stream.bits("addresses", 8 * channel.room, fields)
        block = text(head["ramblock"])
        each = data // normal if normal and not compressed and data % normal == 0 else 0
        if each:
            for place in places[:normal]:
                yield from stream.opaque(f"page {place:#x} of {block}", each)
        elif data:
            yield from stream.opaque("pages", data, "compressed" if compressed else "")


def _room(stream: Stream) -> Steps[int]:
    """How many pages a packet has room for, by where the next one begins."""
    for room in _PAGES:
        whole = RAM.size + 8 * room
        found = bytes((yield from stream.head(whole + len(_NEXT))))
        if len(found) >= whole and _NEXT.startswith(found[whole:]):
            return room
    return _PAGES[0]


def _device(stream: Stream, channel: _Channel) -> Steps[None]:
    """A piece of a device's state."""
    head = yield from stream.look(DEVICE, "a packet of a device's state")
    start, size = stream.offset, head["next_packet_size"]
    name = text(head["idstr"])
    if not name or name != printable(name.encode()) or not head["idstr"].rstrip(b"\0").isascii():
        raise stream.damage("a device's name", repr(name[:40]), start + HEAD.size)
    if size < VFIO.size:
        at = start + DEVICE.offset("next_packet_size")
        raise stream.damage(f"at least {VFIO.size} bytes of state", str(size), at)
    which = name if not head["instance"] else f"{name}#{head['instance']}"
    data = yield from stream.window(DEVICE.size + VFIO.size, "a packet of a device's state")
    own = VFIO.values(data[DEVICE.size :])
    if own["version"]:
        raise stream.damage("version 0", str(own["version"]), start + DEVICE.size)
    config, count = bool(own["flags"] & VFIO_CONFIG), size - VFIO.size
    channel.packets += 1
    stream.count("packets")
    stream.count("pieces of devices")
    stream.phase(f"{which} {'config' if config else 'stop-copy'}", count)
    label = "config" if config else "data"
    with stream.group(f"{which} {label} {own['index']}", DEVICE.size + size):
        yield from stream.struct("header", DEVICE)
        yield from stream.struct("piece", VFIO)
        if channel.found is not None:
            pieces = channel.found.setdefault((name, head["instance"]), {})
            if own["index"] in pieces:
                at = start + DEVICE.size + VFIO.offset("index")
                raise stream.damage(
                    "a piece that has not come yet", f"piece {own['index']} again", at
                )
            pieces[own["index"]] = Packet(channel.file, stream.offset, count, config)
        if config:
            yield from _config(stream, count)
        elif count:
            yield from stream.opaque("state", count, "see it whole with the main stream")


def _config(stream: Stream, count: int) -> Steps[None]:
    """As in the main stream, with a flag in front and one behind."""
    ends = 8
    if count < 2 * ends:
        yield from stream.opaque("state", count, "too short")
        return
    yield from stream.struct("flag", FLAG)
    if count > 2 * ends:
        yield from pci_state(stream, count - 2 * ends)
    yield from stream.struct("end", FLAG)


# --- Several channels together ------------------------------------------------------------------


@dataclass(slots=True)
class _Collected:
    pieces: dict[tuple[str, int], Pieces] = field(default_factory=dict)


def packets_of(stream: Stream) -> Mapping[tuple[str, int], Pieces]:
    """The pieces of devices in the files beside ``stream``, by the device's name and instance."""
    collected = stream.memory.setdefault("pieces", _Collected())
    assert isinstance(collected, _Collected)
    return collected.pieces


def collect(stream: Stream) -> None:
    """Look through the files beside ``stream`` for :func:`packets_of`. OSError."""
    found = stream.memory.setdefault("pieces", _Collected()).pieces
    for number, file in enumerate(stream.files):
        if not number:
            continue
        if file is None:
            stream.tell_wrong(
                stream.damage(f"a file that can be read twice as file {number}", "a pipe")
            )
        else:
            damage = _collect(file, number, found)
            if damage is not None:
                where = (number << FILE_SHIFT) + damage.offset
                expected = f"a multifd channel as file {number}; there {damage.expected}"
                stream.tell_wrong(Damage(damage.offset, expected, damage.found), where)


def _collect(file: Elsewhere, number: int, found: dict[tuple[str, int], Pieces]) -> Damage | None:
    """What is wrong in the channel, if anything is."""
    wrong: list[Damage] = []

    def run(stream: Stream) -> Steps[None]:
        stream.memory["multifd"] = _Channel(found=found, file=number)
        try:
            yield from dissect(stream)
        except Damage as damage:
            wrong.append(damage)

    channel, at = Stream("", Silent(), run), 0
    while not wrong and (data := file.read_at(at, STEP)):
        channel.feed(memoryview(data), at)
        at += len(data)
    channel.finish()
    return wrong[0] if wrong else None


def gap(pieces: Pieces) -> str:
    """What is missing in pieces that go from index 0 to the one with the config; empty: nothing."""
    if not pieces:
        return ""
    for expected, index in enumerate(sorted(pieces)):
        if index != expected:
            return f"piece {expected}"
    return "" if any(each.config for each in pieces.values()) else "the piece with the config"
