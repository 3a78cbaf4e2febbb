"""Dissects a stream from its first byte to its last, whatever is in it."""

import io
from collections.abc import Sequence
from typing import BinaryIO

from precopy.stream.cursor import Cut, Damage, Steps, Stream
from precopy.stream.elsewhere import elsewhere
from precopy.stream.item import Sink, Summary
from precopy.stream.registry import HEAD_BYTES, Format, formats, recognise

#: Wrong places after which nobody looks further.
MAX_WRONG = 100

#: Bytes read at a time.
PIECE = 1 << 20


def run(stream: Stream) -> Steps[None]:
    """Recognise the stream's format, dissect it, and go on behind what is wrong where that can be."""
    format = yield from _recognise(stream)
    if format is None:
        yield from stream.rest("unknown bytes", "no format here begins so")
        return
    summary = stream.summary
    stream.recognised(format.name, format.title)
    if stream.files[1:] and not format.beside:
        stream.tell_wrong(stream.damage("a format with parts in other files", format.name))
    steps = format.dissect(stream)
    while True:
        try:
            yield from steps
            if not (yield from stream.more()):
                return
            raise stream.damage("the end of the stream", "more bytes")
        except Damage as damage:
            stream.tell_wrong(damage)
            if isinstance(damage, Cut) or format.resync is None or summary.wrong >= MAX_WRONG:
                break
            steps = format.resync(stream)
    yield from stream.rest("rest", "not looked at")


def _recognise(stream: Stream) -> Steps[Format | None]:
    if stream.summary.format:
        return formats()[stream.summary.format]
    head = bytes((yield from stream.head(HEAD_BYTES)))
    if not head:
        stream.say("nothing", "the stream is empty")
        return None
    found = recognise(head)
    if found is None:
        stream.tell_wrong(stream.damage("a format that is known", f"{head[:16].hex(' ')}"))
    return found


def dissect(
    source: BinaryIO,
    sink: Sink,
    format: str = "",
    digests: bool = False,
    beside: Sequence[BinaryIO] = (),
) -> Summary:
    """Dissect all of ``source``, told to ``sink``; what it came to, of the stream itself.

    ``format``: the name of a format; else it shows by the first bytes. ``digests``: items of bytes
    that nobody looks into get a digest. ``beside``: files with parts of what ``source`` carries, such
    as QEMU's multifd channels. OSError where ``source`` can't be read.
    """
    stream = Stream("", sink, run, format, digests=digests)
    stream.files = [elsewhere(file) for file in (source, *beside)]
    buffer = memoryview(bytearray(PIECE))
    offset = 0
    while True:
        count = _read(source, buffer)
        if not count:
            break
        stream.feed(buffer[:count], offset)
        offset += count
    stream.finish()
    return stream.summary


def _read(source: BinaryIO, buffer: memoryview) -> int:
    if isinstance(source, io.RawIOBase | io.BufferedIOBase):
        return source.readinto(buffer) or 0
    data = source.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)
