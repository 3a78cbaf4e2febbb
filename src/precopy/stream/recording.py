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
from collections import deque
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

#: Frames that wait to be written, at most; and bytes from which on one has a buffer of its own.
MOST_WAITING = 32
_SMALL = 64 << 10

#: Seconds after which a disk that takes nothing ends the recording.
_PATIENCE = 10.0

#: Added to a file's name until it is closed.
PARTIAL = ".partial"

#: The outcome of a migration that went through.
MOVED = "moved"


class RecordingError(ValueError):
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

    A thread hashes and writes; who brings a frame pays for a copy of it, and waits only where
    :data:`MOST_WAITING` of them are not written yet. What fails while frames come (a full disk) ends
    the recording, not the migration: :attr:`error` keeps it. Frames may come from two threads.
    OSError where the file can't be begun.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.monotonic_ns) -> None:
        if path.exists() and not path.is_file():
            raise OSError(errno.EINVAL, "there is something that is no file")
        self.path = path
        self.partial = path.with_name(path.name + PARTIAL)
        self._clock = clock
        self._digest = xxhash.xxh3_128()
        self._start, self._began = clock(), time.time()
        self._entries = self._bytes = 0
        self.error: OSError | None = None
        # It holds a guest's memory: nobody else's business. Unbuffered: an entry is written in one go.
        fd = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._file: BinaryIO | None = open(fd, "wb", buffering=0)  # noqa: SIM115
        self._write(memoryview(FILE_HEADER.pack(MAGIC, VERSION, 0)))
        if self.error is not None:
            self._file.close()
            raise self.error
        self._changed = threading.Condition()
        #: Frames that are not written yet (kind, time, payload), the one that is being written first.
        self._waiting: deque[tuple[int, int, memoryview]] = deque()
        #: Buffers for large frames, written to once: new memory costs more than the copy.
        self._spare = [memoryview(bytearray(b"\1") * MAX_PAYLOAD) for _ in range(MOST_WAITING)]
        self._over = False
        self._writer = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._writer.start()

    # --- Who brings frames --------------------------------------------------------------------

    def frame(self, kind: int, header: bytes | memoryview, payload: bytes | memoryview) -> None:
        """A frame of the channel that goes in the direction ``kind``."""
        with self._changed:
            if not self._changed.wait_for(self._has_room, _PATIENCE):
                self.error = OSError(errno.ETIMEDOUT, "the disk takes nothing")
            if self.error is not None:
                return
            now = self._clock() - self._start
            self._waiting.append((kind, now, self._copy(header, payload)))
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return len(self._waiting) < MOST_WAITING or self.error is not None

    def _copy(self, header: bytes | memoryview, payload: bytes | memoryview) -> memoryview:
        size = len(header) + len(payload)
        if size < _SMALL:
            return memoryview(b"".join((header, payload)))
        room = self._spare.pop()
        room[: len(header)] = header
        room[len(header) : size] = payload
        return room[:size]

    # --- The thread that writes ---------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._over)
                if not self._waiting:
                    return
                kind, now, payload = self._waiting[0]
            self._entry(kind, now, payload)
            with self._changed:
                self._waiting.popleft()
                whole = payload.obj
                if isinstance(whole, bytearray):
                    self._spare.append(memoryview(whole))
                self._changed.notify_all()

    def _entry(self, kind: int, now: int, payload: memoryview) -> None:
        head = _pack(kind, now, payload)
        self._digest.update(head)
        self._entries += 1
        self._bytes += len(payload)
        self._write(memoryview(head), payload)

    def _write(self, *parts: memoryview) -> None:
        if self._file is None or self.error is not None:
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

    # --- Its end ------------------------------------------------------------------------------

    def catch_up(self) -> None:
        """Wait until all frames are written, or can't be."""
        with self._changed:
            if not self._changed.wait_for(self._is_idle, _PATIENCE):
                self.error = OSError(errno.ETIMEDOUT, "the disk takes nothing")

    def _is_idle(self) -> bool:
        return not self._waiting or self.error is not None

    def _end(self) -> None:
        """No frame comes any more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        # A disk that takes nothing keeps the thread; it ends with the process.
        self._writer.join(_PATIENCE)

    def close(self, outcome: str) -> None:
        """Close the file with ``outcome`` and give it its name. OSError; then it stays ``.partial``."""
        self._end()
        closing = Closing(
            outcome,
            self._began,
            (self._clock() - self._start) / 1e9,
            self._entries,
            self._bytes,
            self._digest.hexdigest(),
        )
        payload = json.dumps(asdict(closing)).encode()
        self._entry(CLOSE, self._clock() - self._start, memoryview(payload))
        assert self._file is not None
        file, self._file = self._file, None
        with file:
            if self.error is not None:
                raise self.error
            os.fsync(file.fileno())
        self.partial.replace(self.path)
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        # Not every file system can; the file itself is whole.
        with contextlib.suppress(OSError):
            os.fsync(folder)
        os.close(folder)

    def discard(self) -> None:
        """Leave nothing of it."""
        self._end()
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


def _pack(kind: int, now: int, payload: memoryview) -> bytes:
    """The header of an entry with ``payload``."""
    head = ENTRY_HEADER.pack(kind, 0, 0, len(payload), now, 0)
    return ENTRY_HEADER.pack(kind, 0, 0, len(payload), now, checksum(head, payload))


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
