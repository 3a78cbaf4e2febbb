"""The messages of the channel, each a JSON object with a schema; nothing in them is believed.

What a message may hold is in one table. A peer's message with a field missing, unknown, of another
type or out of range raises ChannelError. Texts end up on terminals: signs that are not printable
come out as ``?``.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from precopy.engine.channel import CONTROL, Channel, ChannelError
from precopy.engine.timeline import events

#: Versions of the protocol that this program speaks.
#: 3 has the messages of a timeline besides those of 2.
VERSIONS = (2, 3)

_MAX_TEXT = 4096
_MAX_ITEMS = 4096
#: What is sent as a reason is cut to this.
_MAX_REASON = 1000

Check = Callable[[Any], bool]


def _count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e9


def _list(item: Check) -> Check:
    return lambda value: (
        isinstance(value, list) and len(value) <= _MAX_ITEMS and all(map(item, value))
    )


def _region(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_count, value))


def _details(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= 64
        and all(map(_text, value))
        and all(map(_text, value.values()))
    )


#: Every message: its fields and what each may be.
SCHEMAS: dict[str, dict[str, Check]] = {
    "hello": {"program": _text, "versions": _list(_count)},
    "manifest": {
        "name": _text,
        "vendor_id": _count,
        "device_id": _count,
        "driver": _text,
        "firmware": _text,
        "serial": _text,
        "stream": _text,
        "stream_version": _count,
        "needs": _list(_text),
        "flags": _count,
        "details": _details,
        "precopy": _flag,
        "guest": _flag,
        "memory": _list(_region),
    },
    "accept": {"name": _text, "driver": _text, "firmware": _text, "serial": _text},
    "refuse": {"reason": _text},
    # Target to source, now and then: bytes of the device's stream loaded, seconds that took.
    "loaded": {"bytes": _count, "seconds": _seconds},
    # Source to target: say when all that was sent before is loaded; and the answer.
    "sync": {},
    "synced": {},
    # Source to target: the device's stream is over; guest memory follows.
    "end": {"bytes": _count, "digest": _count},
    # Pages of the guest's memory, counted from ``first``: those whose content follows in frames of
    # their own, and those that are zeroes (masks, see ``engine.pages``).
    "pages": {"region": _count, "first": _count, "sent": _text, "zero": _text},
    # All guest memory has been sent; and, before that, the device stands still from now on.
    "switch": {"digest": _count},
    "final": {},
    "ready": {"load": _seconds, "memory": _seconds, "validate": _seconds},
    "run": {},
    "running": {"resume": _seconds},
    # The target took the right to run, and its device left STOP, but can't run.
    "stuck": {"reason": _text},
    "abort": {"reason": _text},
    # Nothing ran at the target, and nothing will.
    "failed": {"reason": _text},
    # From version 3 on, and only where the source wants a timeline (see ``timeline.exchange``): it
    # says so, before the manifest; asks for the target's time, and is told; asks, once the device
    # runs at the target, for what the target has noted, and is told in one or more messages.
    "timeline": {},
    "clock": {},
    "time": {"at": _seconds},
    "tell": {},
    "noted": {
        "rows": events.is_batch,
        "more": _flag,
        "left_out": events.is_left_out,
        "commands": _flag,
    },
}

#: Those that are about a timeline, and say nothing of the migration.
OF_TIMELINES = frozenset({"timeline", "clock", "time", "tell", "noted"})

Message = Mapping[str, Any]


def printable(text: str) -> str:
    """``text`` on one line, without what a terminal would take for orders."""
    return "".join(sign if sign.isprintable() else "?" for sign in " ".join(text.split()))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isprintable() else printable(value)
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(name): _clean(item) for name, item in value.items()}
    return value


def encode(kind: str, **fields: Any) -> bytes:
    """A message as it goes over the wire."""
    return json.dumps({"kind": kind, **fields}).encode()


def decode(payload: bytes | memoryview) -> tuple[str, Message]:
    """Kind and fields of a message. ChannelError for anything that no schema allows."""
    try:
        found = json.loads(bytes(payload))
    except (ValueError, RecursionError):
        raise ChannelError("a message is no JSON") from None
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        raise ChannelError("a message has no kind")
    kind = found.pop("kind")
    schema = SCHEMAS.get(kind)
    if schema is None:
        raise ChannelError(f"unknown message {kind[:40]!r}")
    if found.keys() != schema.keys():
        wrong = sorted(found.keys() ^ schema.keys())
        raise ChannelError(f"message {kind}: field {wrong[0][:40]!r} is missing or unknown")
    for name, check in schema.items():
        if not check(found[name]):
            raise ChannelError(f"message {kind}: field {name!r} has no valid value")
    return kind, {name: _clean(value) for name, value in found.items()}


def send(channel: Channel, kind: str, **fields: Any) -> None:
    channel.send_control(encode(kind, **fields))


def send_reason(channel: Channel, kind: str, reason: str) -> None:
    """A message that says why: at most as long as a peer takes."""
    send(channel, kind, reason=printable(reason)[:_MAX_REASON])


def expect(channel: Channel, *kinds: str) -> tuple[str, Message]:
    """The next message, which has to be one of ``kinds`` (the usual one first). ChannelError."""
    frame, payload = channel.receive()
    if frame != CONTROL:
        raise ChannelError(f"data where {kinds[0]} should come")
    kind, fields = decode(payload)
    if kind not in kinds:
        raise ChannelError(f"{kind} where {kinds[0]} should come")
    return kind, fields


def greet(channel: Channel, program: str) -> None:
    send(channel, "hello", program=program, versions=list(VERSIONS))


def agree(theirs: Message) -> int:
    """The version to speak with who said hello so. ChannelError where there is none in common."""
    common = set(VERSIONS) & set(theirs["versions"])
    if not common:
        raise ChannelError(
            f"no common version: here {list(VERSIONS)}, there {theirs['versions'][:8]}"
            f" ({theirs['program'][:80]})"
        )
    return max(common)
