"""One direction of precopy's own channel (``precopy.engine.channel``): frames, as they went over the wire."""

import xxhash

from precopy.engine import messages
from precopy.engine.channel import (
    CONTROL,
    DATA,
    HEADER_BYTES,
    MAGIC,
    MAX_CONTROL,
    MAX_DATA,
    MEMORY,
    ChannelError,
)
from precopy.engine.messages import Message
from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, Values, hexadecimal
from precopy.stream.registry import formats, register

_KINDS = {DATA: "data", CONTROL: "message", MEMORY: "memory"}
_LIMITS = {DATA: MAX_DATA, CONTROL: MAX_CONTROL, MEMORY: MAX_DATA}

HEADER = Layout(
    "<",
    ("magic", "H", hexadecimal),
    ("kind", "B"),
    ("zero", "B"),
    ("length", "I"),
    ("checksum", "Q", hexadecimal),
)

#: Signs of a message's field that are shown.
_MAX_VALUE = 60


class _State:
    """What has been heard so far."""

    def __init__(self) -> None:
        self.device: Stream | None = None
        self.name, self.format = "device", ""
        self.phase = "PRE_COPY"
        #: Running digests of the streams; None where a frame may be missing, until the next begins.
        self.digests: dict[int, xxhash.xxh3_64 | None] = {
            DATA: xxhash.xxh3_64(),
            MEMORY: xxhash.xxh3_64(),
        }


def _state(stream: Stream) -> _State:
    return stream.memory.setdefault("channel", _State())  # type: ignore[no-any-return]


def _fault(head: Values) -> tuple[str, str, str] | None:
    """Field, expected, found: what no frame has."""
    kind, length = head["kind"], head["length"]
    if head["magic"] != MAGIC:
        return "magic", f"the magic of a frame, {MAGIC:#x}", f"{head['magic']:#x}"
    if kind not in _KINDS:
        return "kind", "a kind of frame, 1 to 3", str(kind)
    if head["zero"]:
        return "zero", "0", str(head["zero"])
    if not 0 < length <= _LIMITS[kind]:
        return "length", f"1 to {_LIMITS[kind]} bytes", str(length)
    return None


def _recognise(head: bytes) -> int:
    if len(head) < HEADER_BYTES:
        return 20 if len(head) >= 2 and head[:2] == MAGIC.to_bytes(2, "little") else 0
    return 0 if _fault(HEADER.values(head)) else 85


def _resync(stream: Stream) -> Steps[None]:
    """On to the next that looks like a frame's header."""

    def likely(data: memoryview) -> bool:
        return _fault(HEADER.values(data)) is None

    state = _state(stream)
    state.digests = {DATA: None, MEMORY: None}
    if (yield from stream.hunt([(MAGIC.to_bytes(2, "little"), 0)], HEADER.size, likely)):
        yield from dissect(stream)


@register("channel", "one direction of precopy's channel", _recognise, resync=_resync, carries=True)
def dissect(stream: Stream) -> Steps[None]:
    """Frames to the end; the device's state and what is in it are a stream of their own."""
    state = _state(stream)
    while (yield from stream.more()):
        yield from _frame(stream, state)


def _frame(stream: Stream, state: _State) -> Steps[None]:
    head = yield from stream.look(HEADER, "a frame's header")
    fault = _fault(head)
    if fault:
        raise stream.damage(fault[1], fault[2], stream.offset + HEADER.offset(fault[0]))
    kind, length = head["kind"], head["length"]
    whole = yield from stream.window(HEADER_BYTES + length, "a frame")
    payload = whole[HEADER_BYTES : HEADER_BYTES + length]
    at, digest = stream.offset + HEADER.offset("checksum"), _digest(state, kind, payload)
    if digest is not None and digest != head["checksum"]:
        stream.tell_wrong(
            stream.damage(f"the payload's checksum, {digest:#x}", f"{head['checksum']:#x}", at)
        )
        if kind != CONTROL:
            state.digests[kind] = None
    stream.count("frames")
    number = stream.summary.counts["frames"]
    with stream.group(f"frame {number}", HEADER_BYTES + length, _KINDS[kind]):
        content = bytes(payload) if kind == CONTROL else b""
        yield from stream.struct("header", HEADER)
        if kind == CONTROL:
            yield from _message(stream, state, content)
        elif kind == DATA:
            if state.device is None:
                state.device = stream.carry(state.name, state.format)
            state.device.phase(state.phase, length)
            yield from stream.pass_on(state.device, length, "the device's stream")
        else:
            stream.phase("guest memory", length)
            yield from stream.opaque("pages", length)


def _digest(state: _State, kind: int, payload: memoryview) -> int | None:
    """What the checksum of a frame should be; None where nobody can know."""
    if kind == CONTROL:
        return xxhash.xxh3_64_intdigest(payload)
    running = state.digests[kind]
    if running is None:
        return None
    running.update(payload)
    return running.intdigest()


def _message(stream: Stream, state: _State, content: bytes) -> Steps[None]:
    try:
        kind, fields = messages.decode(content)
    except ChannelError as error:
        yield from stream.opaque("message", len(content), "not one of the protocol")
        stream.tell_wrong(
            stream.damage("a message of the protocol", str(error), stream.offset - len(content))
        )
        return
    told = ", ".join(f"{name}: {_short(value)}" for name, value in fields.items())
    yield from stream.opaque(f"message {kind}", len(content), told)
    stream.count("messages")
    _heard(stream, state, kind, fields, content)


def _heard(stream: Stream, state: _State, kind: str, fields: Message, content: bytes) -> None:
    """What a message means for what follows."""
    if kind == "manifest":
        state.name = fields["name"][:100] or "device"
        state.format = fields["stream"] if fields["stream"] in formats() else ""
    elif kind == "final":
        state.phase = "STOP_COPY"
    elif kind == "pages":
        running = state.digests[MEMORY]
        if running is not None:
            running.update(content)
    elif kind in ("end", "switch"):
        which = DATA if kind == "end" else MEMORY
        running = state.digests[which]
        if running is not None and running.intdigest() != fields["digest"]:
            stream.tell_wrong(
                stream.damage(
                    f"the digest of the stream, {running.intdigest():#x}",
                    f"{fields['digest']:#x}",
                    stream.offset - len(content),
                )
            )
        state.digests[which] = xxhash.xxh3_64()
        if kind == "end" and state.device is not None:
            state.device.finish()
            state.device = None


def _short(value: object) -> str:
    told = str(value)
    return told if len(told) <= _MAX_VALUE else told[: _MAX_VALUE - 3] + "..."
