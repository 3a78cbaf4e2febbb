"""Streams of virtio_vfio_pci: drivers/vfio/pci/virtio/{common.h,migrate.c}, Linux 7.3.4.

Records of device parts, each with all parts there are at that time. A part's header is that of
include/uapi/linux/virtio_pci.h; types and values of the common parts are those of the virtio
specification (Device parts). What is in a part of a device type of its own is not known here.
"""

import enum
from collections.abc import Mapping

from precopy.stream.cursor import Cut, Steps, Stream
from precopy.stream.formats import records
from precopy.stream.layout import Layout, Values, hexadecimal, named
from precopy.stream.registry import register


class Tag(enum.IntEnum):
    """``enum virtiovf_migf_header_tag``."""

    DEVICE_DATA = 0


class Part(enum.IntEnum):
    """``part_type`` of the common parts."""

    DEV_FEATURES = 0x100
    DRV_FEATURES = 0x101
    PCI_COMMON_CFG = 0x102
    DEVICE_STATUS = 0x103
    VQ_CFG = 0x104
    VQ_NOTIFY_CFG = 0x105


class PartFlags(enum.IntFlag):
    """``flags`` of a part."""

    OPTIONAL = 1


RECORD = records.header(Tag)

#: ``struct virtio_dev_part_hdr``; the selector is an offset or a virtqueue's index.
PART = Layout(
    "<",
    ("part_type", "H", named(Part)),
    ("flags", "B", hexadecimal),
    ("reserved", "B"),
    ("selector", "Q", hexadecimal),
    ("length", "I"),
)

FEATURES = Layout("<", ("feature_bits", "Q", hexadecimal))
STATUS = Layout("<", ("device_status", "B", hexadecimal))
VQ_CFG = Layout(
    "<",
    ("queue_size", "H"),
    ("vector", "H", hexadecimal),
    ("enabled", "H"),
    ("reserved", "H"),
    ("queue_desc", "Q", hexadecimal),
    ("queue_driver", "Q", hexadecimal),
    ("queue_device", "Q", hexadecimal),
)
VQ_NOTIFY = Layout(
    "<",
    ("queue_notify_off", "H"),
    ("queue_notif_config_data", "H", hexadecimal),
    ("reserved", "4s"),
)

_VALUES: Mapping[int, Layout] = {
    Part.DEV_FEATURES: FEATURES,
    Part.DRV_FEATURES: FEATURES,
    Part.DEVICE_STATUS: STATUS,
    Part.VQ_CFG: VQ_CFG,
    Part.VQ_NOTIFY_CFG: VQ_NOTIFY,
}

#: ``struct virtio_pci_common_cfg``: a field by its offset.
_COMMON: Mapping[int, tuple[str, str]] = {
    0x00: ("device_feature_select", "I"),
    0x04: ("device_feature", "I"),
    0x08: ("driver_feature_select", "I"),
    0x0C: ("driver_feature", "I"),
    0x10: ("config_msix_vector", "H"),
    0x12: ("num_queues", "H"),
    0x14: ("device_status", "B"),
    0x15: ("config_generation", "B"),
    0x16: ("queue_select", "H"),
    0x18: ("queue_size", "H"),
    0x1A: ("queue_msix_vector", "H"),
    0x1C: ("queue_enable", "H"),
    0x1E: ("queue_notify_off", "H"),
    0x20: ("queue_desc", "Q"),
    0x28: ("queue_driver", "Q"),
    0x30: ("queue_device", "Q"),
    0x38: ("queue_notify_data", "H"),
    0x3A: ("queue_reset", "H"),
    0x3C: ("admin_queue_index", "H"),
    0x3E: ("admin_queue_num", "H"),
}

#: Parts of device types; what lies above is reserved.
_DEVICE_TYPES = range(0x200, 0x600)

#: Parts of a record that are told singly; a device has some hundreds.
_MAX_PARTS = 10_000

#: Words of features that are told singly.
_MAX_WORDS = 16


class _State:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.records = 0
        self.phases = records.Phases()


def _likely_part(part: Values, room: int) -> bool:
    return (
        (part["part_type"] in _VALUES or part["part_type"] in (Part.PCI_COMMON_CFG, *_DEVICE_TYPES))
        and part["flags"] <= PartFlags.OPTIONAL
        and not part["reserved"]
        and part["length"] <= room
    )


def _likely(data: memoryview | bytes) -> bool:
    """A record that begins with a part."""
    head = RECORD.values(data)
    room = head["record_size"] - PART.size
    return (
        head["tag"] == Tag.DEVICE_DATA
        and not head["flags"]
        and 0 <= room <= records.MAX_RECORD
        and _likely_part(PART.values(data[RECORD.size :]), room)
    )


def _recognise(head: bytes) -> int:
    # mlx5 has the same header: only the part behind it speaks for virtio.
    return 60 if len(head) >= RECORD.size + PART.size and _likely(head) else 0


def _resync(stream: Stream) -> Steps[None]:
    """On to a record that begins with one of the common parts."""
    patterns = [
        (part.to_bytes(2, "little") + bytes([flags, 0]), RECORD.size)
        for part in Part
        for flags in (0, 1)
    ]
    if (yield from stream.hunt(patterns, RECORD.size + PART.size, _likely)):
        yield from dissect(stream)
    else:
        _state(stream).phases.over(stream, "final")


def _state(stream: Stream) -> _State:
    return stream.memory.setdefault("virtio", _State())  # type: ignore[no-any-return]


@register("virtio", "records of virtio_vfio_pci (device parts)", _recognise, resync=_resync)
def dissect(stream: Stream) -> Steps[None]:
    """Records to the end."""
    state = _state(stream)
    try:
        while (yield from stream.more()):
            yield from _record(stream, state)
    except Cut:
        state.phases.over(stream, "final")
        raise
    state.phases.over(stream, "final")
    if not state.phases.images and not stream.summary.wrong:
        raise Cut(stream.offset, "a record with device parts (tag 0)", "the end of the stream")


def _record(stream: Stream, state: _State) -> Steps[None]:
    head = yield from stream.look(RECORD, "a record's header")
    count, tag = head["record_size"], head["tag"]
    if count > records.MAX_RECORD:
        raise records.too_large(stream, head)
    if tag == Tag.DEVICE_DATA and not count:
        raise stream.damage("device parts in a record of tag 0", "no bytes")
    if tag != Tag.DEVICE_DATA and not records.optional(head):
        records.unknown_tag(stream, RECORD, head, "tag 0")
    state.records += 1
    stream.count("records")
    if tag == Tag.DEVICE_DATA:
        state.phases.image(stream)
    text = Tag(tag).name if tag == Tag.DEVICE_DATA else "a tag that no driver knows"
    with stream.group(f"record {state.records}", RECORD.size + count, text):
        yield from stream.struct("header", RECORD)
        if tag == Tag.DEVICE_DATA:
            yield from _parts(stream, count)
        else:
            yield from stream.opaque("unknown", count, "passed over")


def _parts(stream: Stream, left: int) -> Steps[None]:
    """Parts, as the device gave them. Only it checks them; what is no part is told."""
    end, told = stream.offset + left, 0
    while stream.offset < end:
        if told == _MAX_PARTS:
            yield from stream.opaque("more parts", end - stream.offset, "not told singly")
            return
        told += 1
        room = end - stream.offset - PART.size
        if room < 0:
            stream.tell_wrong(
                stream.damage(f"a part's header, {PART.size} bytes", f"{room + PART.size} bytes")
            )
            yield from stream.opaque("rest of the record", end - stream.offset)
            return
        part = yield from stream.look(PART, "a part's header")
        if part["length"] > room:
            at = stream.offset + PART.offset("length")
            expected = f"a part that ends in its record: at most {room} bytes"
            stream.tell_wrong(stream.damage(expected, str(part["length"]), at))
            yield from stream.opaque("rest of the record", end - stream.offset)
            return
        if part["reserved"]:
            at = stream.offset + PART.offset("reserved")
            stream.tell_wrong(stream.damage("reserved 0", str(part["reserved"]), at))
        yield from _part(stream, part)


def _name(part: Values) -> str:
    kind, selector = part["part_type"], part["selector"]
    if kind in (Part.VQ_CFG, Part.VQ_NOTIFY_CFG):
        return f"part {Part(kind).name}[{selector & 0xFFFF}]"
    if kind == Part.PCI_COMMON_CFG:
        return f"part PCI_COMMON_CFG[{selector & 0xFFFF_FFFF:#x}]"
    if kind in _VALUES:
        return f"part {Part(kind).name}"
    return f"part {kind:#x}[{selector:#x}]"


def _part(stream: Stream, part: Values) -> Steps[None]:
    kind, length = part["part_type"], part["length"]
    stream.count("parts")
    with stream.group(
        _name(part), PART.size + length, "optional" if part["flags"] & PartFlags.OPTIONAL else ""
    ):
        yield from stream.struct("header", PART)
        layout = _VALUES.get(kind)
        if kind == Part.PCI_COMMON_CFG:
            name, code = _COMMON.get(part["selector"] & 0xFFFF_FFFF, ("", "B"))
            layout = Layout("<", (name, code, hexadecimal)) if name else None
        if layout is FEATURES and not length % FEATURES.size and length:
            words = min(length // FEATURES.size, _MAX_WORDS)
            for number in range(words):
                yield from stream.struct(f"feature bits {64 * number}-{64 * number + 63}", FEATURES)
            length -= words * FEATURES.size
        elif layout is not None and length == layout.size:
            yield from stream.struct("value", layout)
            length = 0
        if length:
            text = "of a device type of its own" if kind in _DEVICE_TYPES else "not known"
            yield from stream.opaque("value", length, f"opaque, {text}")
