"""Streams of mlx5_vfio_pci: drivers/vfio/pci/mlx5/{cmd.h,main.c}, Linux 7.3.4 (records since 6.2).

Records of images that belong to the firmware: a real one's is opaque, the software adapter's is
looked into (``connectx_image``).
"""

from precopy.connectx import image as adapter
from precopy.mlx5_abi.records import Tag, size_record
from precopy.stream.cursor import Cut, Steps, Stream
from precopy.stream.formats import connectx_image as images
from precopy.stream.formats import records
from precopy.stream.layout import Layout, Values, size
from precopy.stream.registry import register

RECORD = records.header(Tag)
STOP_COPY_SIZE = Layout("<", ("stop_copy_size", "Q", size))

_SIZE_HEADER = size_record(0)[: RECORD.size]
#: A record's header and what shows whether the adapter's image is behind it.
_AHEAD = RECORD.size + images.HEADER.size


class _State:
    """What has been seen so far."""

    def __init__(self) -> None:
        self.records = 0
        self.phases = records.Phases()
        self.chain = images.Chain()


def _state(stream: Stream) -> _State:
    return stream.memory.setdefault("mlx5", _State())  # type: ignore[no-any-return]


def _is_image(head: Values) -> bool:
    return head["tag"] == Tag.FW_DATA and not head["flags"] and 0 < head["record_size"]


def _recognise(head: bytes) -> int:
    if len(head) < RECORD.size:
        return 30 if len(head) >= 4 and _SIZE_HEADER.startswith(head) else 0
    first = RECORD.values(head)
    if head.startswith(_SIZE_HEADER):
        return 95
    if not _is_image(first) or first["record_size"] > records.MAX_RECORD:
        return 0
    # Without either, virtio's record looks the same: a guess.
    return 95 if head[RECORD.size :].startswith(adapter.MAGIC) else 20


def _resync(stream: Stream) -> Steps[None]:
    """On to a size record, or to an image of the adapter in a record whose size agrees."""

    def likely(data: memoryview) -> bool:
        if data[: RECORD.size] == _SIZE_HEADER:
            return True
        inside = images.behind(data[RECORD.size :])
        head = RECORD.values(data)
        return (
            _is_image(head)
            and inside is not None
            and inside["length"] == head["record_size"] == adapter.image_bytes(inside["page_count"])
        )

    state = _state(stream)
    state.chain.lost()
    patterns = [(_SIZE_HEADER, 0), (adapter.MAGIC, RECORD.size)]
    if (yield from stream.hunt(patterns, _AHEAD, likely)):
        yield from dissect(stream)
    else:
        _over(stream, state)


@register("mlx5", "records of mlx5_vfio_pci", _recognise, resync=_resync)
def dissect(stream: Stream) -> Steps[None]:
    """Records to the end, and then whether the state is whole."""
    state = _state(stream)
    if not state.records and not stream.offset:
        yield from _first(stream)
    try:
        while (yield from stream.more()):
            yield from _record(stream, state)
    except Cut:
        _over(stream, state)
        raise
    _over(stream, state)
    if stream.summary.wrong:
        return
    missing = ""
    if not state.phases.images:
        missing = "a record with an image (tag 0)"
    elif state.chain.known and not state.chain.complete:
        missing = "the final image"
    if missing:
        raise Cut(stream.offset, missing, "the end of the stream")


def _first(stream: Stream) -> Steps[None]:
    """Say where the first bytes don't tell whose stream it is."""
    head = bytes((yield from stream.head(_AHEAD)))
    if 0 < _recognise(head) < 90:
        stream.say(
            "a guess", "nothing in its first record tells mlx5_vfio_pci from virtio_vfio_pci"
        )


def _over(stream: Stream, state: _State) -> None:
    last = "final"
    if state.chain.known and not state.chain.complete:
        last = "initial" if state.phases.images == 1 else "middle"
    state.phases.over(stream, last)


def _record(stream: Stream, state: _State) -> Steps[None]:
    head = yield from stream.look(RECORD, "a record's header")
    count, tag = head["record_size"], head["tag"]
    known = tag in (Tag.FW_DATA, Tag.STOP_COPY_SIZE)
    inside = None
    if tag == Tag.FW_DATA or not records.optional(head):
        ahead = yield from stream.head(_AHEAD)
        inside = images.behind(ahead[RECORD.size :], count)
    if inside is not None and images.agrees(inside) and inside["length"] != count:
        expected = f"a record of {inside['length']} bytes, the length of the image in it"
        stream.tell_wrong(stream.damage(expected, str(count)))
        count = inside["length"]
    if count > records.MAX_RECORD:
        raise records.too_large(stream, head)
    if tag == Tag.FW_DATA and not count:
        raise stream.damage("an image in a record of tag 0", "no bytes")
    if tag == Tag.STOP_COPY_SIZE and inside is None:
        count = yield from _size_of_size(stream, count)
    if inside is not None and tag != Tag.FW_DATA:
        at = stream.offset + RECORD.offset("tag")
        stream.tell_wrong(stream.damage("tag 0, of an image", f"{tag:#x}", at))
    elif not known and not records.optional(head):
        records.unknown_tag(stream, RECORD, head, "tag 0 or 1")
    state.records += 1
    stream.count("records")
    number = state.phases.image(stream) if tag == Tag.FW_DATA or inside is not None else 0
    text = Tag(tag).name if known else "optional" if records.optional(head) else ""
    with stream.group(f"record {state.records}", RECORD.size + count, text):
        yield from stream.struct("header", RECORD)
        if number:
            stream.count("images")
            yield from _image(stream, state, number, count, inside)
        elif tag == Tag.STOP_COPY_SIZE:
            yield from _announced(stream, count)
        else:
            yield from stream.opaque("unknown", count, "a tag that nobody here knows: passed over")


def _image(
    stream: Stream, state: _State, number: int, count: int, inside: Values | None
) -> Steps[None]:
    if inside is not None:
        yield from images.image(stream, f"image {number}", count, state.chain)
        return
    # The size record is there in both cases: it does not tell whether the device was in PRE_COPY.
    text = "initial, or all there is if it is the only one"
    if number > 1:
        text = "middle, or final if it is the last"
    yield from stream.opaque(f"image {number}", count, f"{text}; opaque, the firmware's own")


def _size_of_size(stream: Stream, count: int) -> Steps[int]:
    """How large a STOP_COPY_SIZE is: the driver writes 8 bytes, and passes over what is behind them."""
    whole = RECORD.size + STOP_COPY_SIZE.size
    if count == STOP_COPY_SIZE.size:
        return count
    ahead = yield from stream.head(whole + RECORD.size)
    follows = False
    if len(ahead) == whole + RECORD.size:
        head = RECORD.values(ahead[whole:])
        follows = _is_image(head) and head["record_size"] <= records.MAX_RECORD
    if count < STOP_COPY_SIZE.size or follows:
        expected = f"{STOP_COPY_SIZE.size} bytes of a STOP_COPY_SIZE"
        stream.tell_wrong(stream.damage(expected, str(count)))
    return STOP_COPY_SIZE.size if follows else count


def _announced(stream: Stream, count: int) -> Steps[None]:
    if count < STOP_COPY_SIZE.size:
        yield from stream.opaque("unknown", count)
        return
    yield from stream.struct("expected", STOP_COPY_SIZE, "what a target may make room for")
    if count > STOP_COPY_SIZE.size:
        yield from stream.opaque("unknown", count - STOP_COPY_SIZE.size, "behind what is known")
