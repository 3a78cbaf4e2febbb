"""A recording of a migration (``precopy.stream.recording``): both directions of the channel, with times."""

import enum

import xxhash

from precopy.engine.channel import MAGIC as FRAME_MAGIC
from precopy.stream import recording
from precopy.stream.cursor import Damage, Steps, Stream
from precopy.stream.layout import Layout, Values, hexadecimal, named, text
from precopy.stream.recording import (
    CLOSE,
    MAGIC,
    MAX_PAYLOAD,
    TO_SOURCE,
    TO_TARGET,
    VERSION,
    Closing,
    RecordingError,
)
from precopy.stream.registry import begins_with, register


class _Kind(enum.IntEnum):
    """What an entry is."""

    TO_TARGET = TO_TARGET
    TO_SOURCE = TO_SOURCE
    CLOSE = CLOSE


HEADER = Layout("<", ("magic", "8s", text), ("version", "I"), ("zero", "I"))

ENTRY = Layout(
    "<",
    ("kind", "B", named(_Kind)),
    ("zero", "B"),
    ("zeroes", "H"),
    ("length", "I"),
    ("time", "Q", lambda value: f"{value / 1e9:.6f} s"),
    ("checksum", "Q", hexadecimal),
)
assert (HEADER.size, ENTRY.size) == (recording.FILE_HEADER.size, recording.ENTRY_HEADER.size)

#: The streams in it, by the direction.
_DIRECTIONS = {TO_TARGET: "to target", TO_SOURCE: "to source"}


class _State:
    """What has been read so far; no digest where an entry may be missing."""

    def __init__(self) -> None:
        self.entries = self.bytes = 0
        self.digest: xxhash.xxh3_128 | None = xxhash.xxh3_128()
        self.streams: dict[int, Stream] = {}


def _fault(head: Values) -> tuple[str, str, str] | None:
    """Field, expected, found: what no entry has."""
    if head["kind"] not in (TO_TARGET, TO_SOURCE, CLOSE):
        return "kind", "a kind of entry, 1 to 3", str(head["kind"])
    for name in ("zero", "zeroes"):
        if head[name]:
            return name, "0", str(head[name])
    if head["length"] > MAX_PAYLOAD:
        return "length", f"at most {MAX_PAYLOAD} bytes", str(head["length"])
    return None


def _resync(stream: Stream) -> Steps[None]:
    """On to the next entry with a frame in it."""
    state: _State = stream.memory.setdefault("state", _State())
    state.digest = None

    def likely(data: memoryview) -> bool:
        return _fault(ENTRY.values(data)) is None

    pattern = (FRAME_MAGIC.to_bytes(2, "little"), ENTRY.size)
    if (yield from stream.hunt([pattern], ENTRY.size + 2, likely)):
        yield from _entries(stream, state)


@register(
    "recording", "a migration recorded by precopy", begins_with(MAGIC), resync=_resync, carries=True
)
def dissect(stream: Stream) -> Steps[None]:
    """A header, entries with frames of the channel, and what closes it."""
    state: _State = stream.memory.setdefault("state", _State())
    head = yield from stream.look(HEADER, "header")
    for name, allowed in (("magic", MAGIC), ("version", VERSION), ("zero", 0)):
        if head[name] != allowed:
            at = stream.offset + HEADER.offset(name)
            raise stream.damage(f"{name} {allowed!r}", repr(head[name]), at)
    yield from stream.struct("header", HEADER)
    yield from _entries(stream, state)


def _entries(stream: Stream, state: _State) -> Steps[None]:
    while not (yield from _entry(stream, state)):
        pass


def _entry(stream: Stream, state: _State) -> Steps[bool]:
    """One entry; whether it was the last."""
    head = yield from stream.look(ENTRY, "an entry's header, or of what closes the recording")
    fault = _fault(head)
    if fault:
        raise stream.damage(fault[1], fault[2], stream.offset + ENTRY.offset(fault[0]))
    kind, length = head["kind"], head["length"]
    whole = (yield from stream.window(ENTRY.size + length, "an entry"))[: ENTRY.size + length]
    if (found := recording.checksum(whole)) != head["checksum"]:
        at = stream.offset + ENTRY.offset("checksum")
        expected = f"the entry's checksum, {found:#x}"
        stream.tell_wrong(Damage(at, expected, f"{head['checksum']:#x}"))
    content = bytes(whole[ENTRY.size :]) if kind == CLOSE else b""
    if kind != CLOSE:
        state.entries, state.bytes = state.entries + 1, state.bytes + length
        if state.digest is not None:
            state.digest.update(whole[: ENTRY.size])
    stream.count("entries")
    told = f"{_DIRECTIONS.get(kind, 'the end')}, at {head['time'] / 1e9:.6f} s"
    number = stream.summary.counts["entries"]
    with stream.group(f"entry {number}", ENTRY.size + length, told):
        yield from stream.struct("header", ENTRY)
        if kind == CLOSE:
            yield from _close(stream, state, content)
        else:
            inner = state.streams.get(kind)
            if inner is None:
                inner = state.streams[kind] = stream.carry(_DIRECTIONS[kind], "channel")
            yield from stream.pass_on(inner, length, "an entry")
    return bool(kind == CLOSE)


def _close(stream: Stream, state: _State, content: bytes) -> Steps[None]:
    at = stream.offset
    try:
        closing = Closing.parse(content)
    except RecordingError as error:
        yield from stream.opaque("closing", len(content))
        stream.tell_wrong(stream.damage("what closes a recording", str(error), at))
        return
    told = f"{closing.outcome}, {closing.seconds:.3f} s, {closing.entries} entries"
    yield from stream.opaque("closing", len(content), told)
    if state.digest is None:
        return
    expected = (state.digest.hexdigest(), state.entries, state.bytes)
    found = (closing.digest, closing.entries, closing.payload_bytes)
    if found != expected:
        stream.tell_wrong(stream.damage(f"digest, entries, bytes {expected}", str(found), at))
