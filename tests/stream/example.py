"""A format of tests: a magic, then blocks of a type, a size and bytes; blocks of type 1 carry a stream."""

import struct

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, text
from precopy.stream.registry import Format, begins_with

MAGIC = b"EXAMPLE!"
HEADER = Layout("<", ("mark", "2s", text), ("type", "B"), ("zero", "B"), ("size", "I"))
OPAQUE, CARRIED, GROUP = range(3)


def block(kind: int, content: bytes) -> bytes:
    return struct.pack("<2sBBI", b"Bl", kind, 0, len(content)) + content


def example(*blocks: bytes) -> bytes:
    return MAGIC + b"".join(blocks)


def dissect(stream: Stream) -> Steps[None]:
    yield from stream.opaque("magic", len(MAGIC))
    yield from _blocks(stream)


def _blocks(stream: Stream) -> Steps[None]:
    inner: Stream | None = stream.memory.get("inner")
    while (yield from stream.more()):
        head = yield from stream.look(HEADER, "block")
        if head["mark"] != b"Bl":
            raise stream.damage("the mark of a block", head["mark"].hex())
        if head["zero"]:
            raise stream.damage("0", str(head["zero"]), stream.offset + 3)
        stream.count("blocks")
        number = stream.summary.counts["blocks"]
        with stream.group(f"block {number}") as group:
            yield from stream.struct("header", HEADER)
            if head["type"] == CARRIED:
                if inner is None:
                    inner = stream.memory["inner"] = stream.carry("device")
                inner.phase("all", head["size"])
                yield from stream.pass_on(inner, head["size"], "a block")
            else:
                yield from stream.opaque("content", head["size"])
            group.text = "whole"


def _resync(stream: Stream) -> Steps[None]:
    def is_block(data: memoryview) -> bool:
        return bool(HEADER.values(data)["zero"] == 0)

    if (yield from stream.hunt([(b"Bl", 0)], HEADER.size, is_block)):
        yield from _blocks(stream)


EXAMPLE = Format("example", "a format of tests", begins_with(MAGIC), dissect, _resync)
