"""The file of a recorded migration, or of a saved device: what went over the channel, with its times.

    magic 8 bytes | version u32 | 0 u32                                        (little-endian)
    entries: kind u8 | 0 u8 u16 | length u32 | time u64 | checksum u64, then the payload

An entry's payload is a frame of the channel, header and all; ``time`` is in ns since the file's
beginning; the checksum is the xxh3 of the entry's header before it and the payload. The last entry closes the file: a JSON object with
the outcome and the xxh3-128 of all entries' headers before it, in their order, by which it is whole.
"""

import contextlib
import errno
import json
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

import xxhash

MAGIC = b"PRECOPYR"
VERSION = 1

FILE_HEADER = struct.Struct("<8sII")
ENTRY_HEADER = struct.Struct("<BBHIQQ")

_CHECKSUM_AT = ENTRY_HEADER.size - 8

#: Kinds of entries: a frame by its direction, and the end of the file.
TO_TARGET, TO_SOURCE, CLOSE = 1, 2, 3

#: Most bytes of an entry's payload: a frame of the channel.
MAX_PAYLOAD = (1 << 20) + 16

#: Added to a file's name until it is closed.
PARTIAL = ".partial"

#: The outcome of a migration that went through.
MOVED = "moved"


class RecordingError(Exception):
    """What is wrong with a file, and where; one line."""


class Entry(NamedTuple):
    """``time`` in ns since the file's beginning; ``payload`` is valid until the next entry."""

    kind: int
    time: int
    payload: memoryview
    offset: int


@dataclass(frozen=True, slots=True)
class Closing:
    """What the last entry says. ``outcome``: MOVED, else why not. ``began``: seconds since the epoch."""

    outcome: str
    began: float
    seconds: float
    entries: int
    payload_bytes: int
    digest: str

    @property
    def complete(self) -> bool:
        """Whether all of a device's state is in it."""
        return self.outcome == MOVED

    @classmethod
    def parse(cls, payload: bytes | memoryview) -> Self:
        """RecordingError for anything else."""
        try:
            found = json.loads(bytes(payload))
            made = cls(**found)
        except (ValueError, TypeError, RecursionError):
            raise RecordingError("its last entry is not what closes a recording") from None
        texts = (made.outcome, made.digest)
        numbers = (made.began, made.seconds, made.entries, made.payload_bytes)
        if not all(type(each) is str for each in texts) or not all(
            type(each) in (int, float) for each in numbers
        ):
            raise RecordingError("its last entry is not what closes a recording")
        return made


class Recorder:
    """Writes a recording to ``path``, or to its ``.partial`` neighbour until :meth:`close`.

    What fails while frames come (a full disk) ends the recording, not the migration: :attr:`error`
    keeps it. Frames may come from two threads. OSError where the file can't be begun.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "there is something that is no file")
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        self._clock = clock
        self._lock = threading.Lock()
        self._digest = xxhash.xxh3_128()
        self._start, self._began = clock(), time.time()
        self._entries = self._bytes = 0
        self.error: OSError | None = None
        # Unbuffered: a frame is written in one go, and an error belongs to its frame.
        self._file: BinaryIO | None = self.partial.open("wb", buffering=0)
        self._write(memoryview(FILE_HEADER.pack(MAGIC, VERSION, 0)))
        if self.error is not None:
            raise self.error

    def _write(self, *parts: memoryview) -> None:
        if self._file is None:
            return
        try:
            todo = [part for part in parts if part]
            while todo:
                count = os.writev(self._file.fileno(), todo)
                while todo and count >= len(todo[0]):
                    count -= len(todo.pop(0))
                if count:
                    todo[0] = todo[0][count:]
        except OSError as error:
            self.error = error
            self._file.close()
            self._file = None

    def frame(self, kind: int, header: bytes | memoryview, payload: bytes | memoryview) -> None:
        """A frame of the channel that goes in the direction ``kind``."""
        self._entry(kind, memoryview(header), memoryview(payload))

    def _entry(self, kind: int, header: memoryview, payload: memoryview) -> None:
        with self._lock:
            now = self._clock() - self._start
            head = _pack(kind, now, header, payload)
            self._digest.update(head)
            self._entries += 1
            self._bytes += len(header) + len(payload)
            self._write(memoryview(head), header, payload)

    def close(self, outcome: str) -> None:
        """Close the file with ``outcome`` and give it its name. OSError; then it stays ``.partial``."""
        closing = Closing(
            outcome,
            self._began,
            (self._clock() - self._start) / 1e9,
            self._entries,
            self._bytes,
            self._digest.hexdigest(),
        )
        payload = json.dumps(asdict(closing)).encode()
        self._entry(CLOSE, memoryview(b""), memoryview(payload))
        if self._file is None:
            assert self.error is not None
            raise self.error
        file, self._file = self._file, None
        with file:
            os.fsync(file.fileno())
        self.partial.replace(self.path)

    def discard(self) -> None:
        """Leave nothing of it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        with contextlib.suppress(OSError):
            self.partial.unlink(missing_ok=True)


def checksum(*parts: bytes | memoryview) -> int:
    """The checksum of an entry, of which ``parts`` begin with its header."""
    digest = xxhash.xxh3_64(parts[0][:_CHECKSUM_AT])
    digest.update(parts[0][ENTRY_HEADER.size :])
    for part in parts[1:]:
        digest.update(part)
    return digest.intdigest()


def _pack(kind: int, now: int, *parts: memoryview) -> bytes:
    """The header of an entry with ``parts`` as its payload."""
    length = sum(map(len, parts))
    head = ENTRY_HEADER.pack(kind, 0, 0, length, now, 0)
    return ENTRY_HEADER.pack(kind, 0, 0, length, now, checksum(head, *parts))


def _exactly(file: BinaryIO, view: memoryview, at: int, what: str) -> None:
    got = 0
    while got < len(view):
        data = file.read(len(view) - got)
        if not data:
            raise RecordingError(f"it ends at byte {at + got:#x}, in {what}: it was cut")
        view[got : got + len(data)] = data
        got += len(data)


def read(file: BinaryIO) -> Iterator[Entry]:
    """The entries of a recording, each checked. RecordingError at the first wrong byte; OSError.

    The last one has the kind CLOSE, its digest is right, and nothing comes behind it.
    """
    head = memoryview(bytearray(FILE_HEADER.size))
    _exactly(file, head, 0, "its header")
    magic, version, zero = FILE_HEADER.unpack(head)
    if magic != MAGIC:
        raise RecordingError("it is no recording")
    if version != VERSION or zero:
        raise RecordingError(f"it has version {version}, this program reads version {VERSION}")
    buffer = memoryview(bytearray(MAX_PAYLOAD))
    entry = memoryview(bytearray(ENTRY_HEADER.size))
    digest, entries, total, at = xxhash.xxh3_128(), 0, 0, FILE_HEADER.size
    before = 0
    while True:
        _exactly(file, entry, at, "the header of an entry")
        kind, zero, zeroes, length, when, found = ENTRY_HEADER.unpack(entry)
        if kind not in (TO_TARGET, TO_SOURCE, CLOSE) or zero or zeroes or length > MAX_PAYLOAD:
            raise RecordingError(f"no entry at byte {at:#x}: it was altered")
        payload = buffer[:length]
        _exactly(file, payload, at + ENTRY_HEADER.size, "an entry")
        if checksum(entry, payload) != found or when < before:
            raise RecordingError(f"the entry at byte {at:#x} was altered (checksum)")
        if kind == CLOSE:
            _check_closing(Closing.parse(payload), digest.hexdigest(), entries, total)
            if file.read(1):
                end = at + ENTRY_HEADER.size + length
                raise RecordingError(f"more bytes behind its end (byte {end:#x})")
            yield Entry(kind, when, payload, at)
            return
        digest.update(entry)
        entries, total, before = entries + 1, total + length, when
        yield Entry(kind, when, payload, at)
        at += ENTRY_HEADER.size + length


def _check_closing(closing: Closing, digest: str, entries: int, total: int) -> None:
    if (closing.digest, closing.entries, closing.payload_bytes) != (digest, entries, total):
        raise RecordingError("its digest is not that of its entries: it was altered")


def verify(file: BinaryIO) -> Closing:
    """What closes ``file``, once all of it has been found to be whole. RecordingError; OSError."""
    closing = None
    for entry in read(file):
        if entry.kind == CLOSE:
            closing = Closing.parse(entry.payload)
    assert closing is not None
    return closing
