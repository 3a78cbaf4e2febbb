"""Where a dissector stands in a stream.

A dissector is a generator that takes bytes from a :class:`Stream` by ``yield from`` and says what they
are. It is fed in pieces of any size, so that a stream that comes in pieces inside another one is
dissected by the same code as a file, in constant memory.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import xxhash

from precopy.stream.elsewhere import Elsewhere
from precopy.stream.item import Field, Item, Sink, Summary, Wrong
from precopy.stream.layout import Layout, Values

T = TypeVar("T")
#: What a dissector is: it yields when it needs more, and may return something.
Steps = Generator[None, None, T]

#: Dissects a stream from its first byte to its last.
Run = Callable[["Stream"], Steps[None]]

#: A field that a format has read by itself: name, first byte in its structure, bytes, value, text.
BitField = tuple[str, int, int, Any, str]

#: Most bytes that may be asked for in one piece. What is larger is passed over, not looked at.
MAX_PIECE = (1 << 20) + (64 << 10)

#: An offset in another file than the first has that file's number in the bits from here on.
FILE_SHIFT = 56

#: Most streams that one may carry.
MAX_CARRIED = 256


class Damage(Exception):
    """The first wrong byte: ``offset`` in the stream, what was expected, and what was found."""

    def __init__(self, offset: int, expected: str, found: str) -> None:
        super().__init__(f"byte {offset:#x}: expected {expected}, found {found}")
        self.offset, self.expected, self.found = offset, expected, found


class Cut(Damage):
    """The stream ends where more was expected; ``offset`` is its end."""


class Stream:
    """A stream as it comes in. ``name`` is empty for the file itself.

    ``digests``: items of bytes that nobody looks into get a digest. :attr:`memory` is for the format:
    what it has learnt outlives a wrong place.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        run: "Run",
        format: str = "",
        depth: int = 0,
        digests: bool = False,
    ) -> None:
        self.name, self._sink, self._digests = name, sink, digests
        self._depth = depth
        self._run = run
        self._data = memoryview(b"")
        self._at = 0
        #: Pieces that do not yet make up what was asked for.
        self._waiting: list[bytes] = []
        self._missing = 0
        #: Where pieces begin: offset here, offset in the file.
        self._origins: deque[tuple[int, int]] = deque()
        self._received = 0
        self._ended = self._left = False
        self._carried: list[Stream] = []
        #: Offset of the next byte.
        self.offset = 0
        self.memory: dict[str, Any] = {}
        #: The file that this is and those beside it, to be looked at elsewhere; None for a pipe.
        self.files: Sequence[Elsewhere | None] = ()
        self.summary = Summary(name, format)
        self._steps: Steps[None] | None = run(self)

    # --- From outside -------------------------------------------------------------------------

    def feed(self, piece: memoryview, file_offset: int) -> None:
        """The next bytes, which lie at ``file_offset``; they are the caller's again on return."""
        origins = self._origins
        if not origins or file_offset - origins[-1][1] != self._received - origins[-1][0]:
            origins.append((self._received, file_offset))
        self._received += len(piece)
        self.summary.bytes += len(piece)
        if len(piece) < self._missing:
            self._waiting.append(bytes(piece))
            self._missing -= len(piece)
            return
        if self._waiting or self._have():
            piece = memoryview(b"".join([self._data[self._at :], *self._waiting, piece]))
            self._waiting.clear()
        self._data, self._at, self._missing = piece, 0, 0
        self._go()
        self._data = memoryview(bytes(self._data[self._at :]))
        self._at = 0

    def finish(self) -> None:
        """Nothing more comes, for the streams that are carried in this one either."""
        if self._ended:
            return
        if self._waiting:
            self._data = memoryview(b"".join([self._data[self._at :], *self._waiting]))
            self._waiting.clear()
            self._at = 0
        self._missing, self._ended = 0, True
        self._go()
        for inner in self._carried:
            inner.finish()
        self._sink.over(self.summary)

    def leave(self, why: str) -> None:
        """It is over here but goes on where nobody looks, so that nobody says it is cut."""
        if not self._ended:
            self._left = True
            self.finish()
            self.say("goes on elsewhere", why)

    def _go(self) -> None:
        """Until the dissector needs more, or has come to its end."""
        if self._steps is not None and next(self._steps, True):
            self._steps = None

    # --- Bytes --------------------------------------------------------------------------------

    def _have(self) -> int:
        return len(self._data) - self._at

    def file_offset(self) -> int:
        """Where the next byte lies in the file."""
        origins = self._origins
        while len(origins) > 1 and origins[1][0] <= self.offset:
            origins.popleft()
        if not origins:
            return 0
        start, file_offset = origins[0]
        return file_offset + self.offset - start

    def _contiguous(self) -> int:
        """How many bytes lie together in the file from here."""
        self.file_offset()
        return self._origins[1][0] - self.offset if len(self._origins) > 1 else self._have()

    def advance(self, count: int) -> None:
        """Pass over bytes that a window has shown."""
        self._at += count
        self.offset += count

    def _wait(self, count: int) -> Steps[bool]:
        """Until ``count`` bytes are there; False where the stream ends before."""
        while self._have() < count:
            if self._ended:
                return False
            self._missing = count - self._have()
            yield
        return True

    def more(self) -> Steps[bool]:
        """Whether the stream goes on."""
        return (yield from self._wait(1))

    def window(self, count: int, what: str) -> Steps[memoryview]:
        """At least ``count`` bytes, and whatever else is there, not passed over. Cut."""
        assert count <= MAX_PIECE, "ask for less, or pass over it"
        if not (yield from self._wait(count)):
            raise Cut(
                self.offset + self._have(),
                f"{count - self._have()} more bytes of {what}",
                "the end of the stream",
            )
        return self._data[self._at :]

    def head(self, count: int) -> Steps[memoryview]:
        """The next ``count`` bytes, or as many as there are, not passed over."""
        yield from self._wait(count)
        return self._data[self._at : self._at + count]

    def take(self, count: int, what: str) -> Steps[bytes]:
        """The next ``count`` bytes. Cut."""
        found = bytes((yield from self.window(count, what))[:count])
        self.advance(count)
        return found

    def skip(self, count: int, what: str) -> Steps[str]:
        """Pass over ``count`` bytes; their digest where that is wanted. Cut."""
        digest = xxhash.xxh3_64() if self._digests else None
        start = self.offset
        while count:
            if not self._have() and not (yield from self._wait(1)):
                raise Cut(self.offset, f"{count} more bytes of {what}", "the end of the stream")
            step = min(count, self._have())
            if digest is not None:
                digest.update(self._data[self._at : self._at + step])
            self.advance(step)
            count -= step
        return digest.hexdigest() if digest is not None and self.offset > start else ""

    # --- What they are ------------------------------------------------------------------------

    def _item(self, name: str, size: int | None, text: str) -> Item:
        return Item(self.name, self.offset, self.file_offset(), self._depth, name, size, text)

    def look(self, layout: Layout, what: str) -> Steps[Values]:
        """The values of a structure that lies here, not passed over: for looking at it first. Cut."""
        return layout.values((yield from self.window(layout.size, what)))

    def struct(self, name: str, layout: Layout, text: str = "") -> Steps[Values]:
        """A structure: an item with its fields. Cut."""
        values = yield from self.look(layout, name)
        item = self._item(name, layout.size, text)
        item.fields = layout.fields(self.offset, values)
        self._sink.begin(item)
        self.advance(layout.size)
        self._sink.end(item)
        return values

    def bits(self, name: str, size: int, fields: Iterable[BitField], text: str = "") -> Steps[None]:
        """A structure whose fields the format has read by itself: first byte in it, bytes, value. Cut."""
        yield from self.window(size, name)
        item = self._item(name, size, text)
        item.fields = tuple(Field(each[0], self.offset + each[1], *each[2:]) for each in fields)
        self._sink.begin(item)
        self.advance(size)
        self._sink.end(item)

    def opaque(self, name: str, size: int, text: str = "") -> Steps[None]:
        """``size`` bytes that nobody looks into: an item. Cut."""
        # The place has to be known before the item is.
        if size:
            yield from self.more()
        item = self._item(name, size, text)
        self._sink.begin(item)
        start = self.offset
        try:
            item.digest = yield from self.skip(size, name)
        finally:
            item.size = self.offset - start
            self._sink.end(item)

    def rest(self, name: str, text: str = "") -> Steps[None]:
        """All that is left, looked at by nobody: an item, where there is anything."""
        if not (yield from self.more()):
            return
        digest = xxhash.xxh3_64() if self._digests else None
        with self.group(name, text=text) as item:
            while (yield from self.more()):
                if digest is not None:
                    digest.update(self._data[self._at :])
                self.advance(self._have())
            if digest is not None:
                item.digest = digest.hexdigest()

    def say(self, name: str, text: str = "") -> None:
        """An item of no bytes: a remark."""
        item = self._item(name, 0, text)
        self._sink.begin(item)
        self._sink.end(item)

    @contextlib.contextmanager
    def group(self, name: str, size: int | None = None, text: str = "") -> Iterator[Item]:
        """An item made of those that follow inside; its size may show at the end.

        To be opened where the first byte is there (after ``more``, ``look`` or ``window``).
        """
        item = self._item(name, size, text)
        self._sink.begin(item)
        self._depth += 1
        try:
            yield item
        finally:
            self._depth -= 1
            item.size = self.offset - item.offset
            self._sink.end(item)

    def recognised(self, format: str, title: str) -> None:
        """What the stream is."""
        self.summary.format, self.summary.title = format, title
        self._sink.recognised(self.summary, self._depth)

    def count(self, name: str, number: int = 1) -> None:
        """What the summary counts: records, images."""
        counts = self.summary.counts
        counts[name] = counts.get(name, 0) + number

    def phase(self, name: str, size: int) -> None:
        """Bytes of a phase of the migration, for the summary."""
        phases = self.summary.phases
        phases[name] = phases.get(name, 0) + size

    def wants(self, count: int) -> bool:
        """Whether whoever hears of it wants every item of the next ``count`` bytes, however many."""
        return self._digests or self._sink.wants(self.file_offset(), min(count, self._contiguous()))

    @property
    def digests(self) -> bool:
        """Whether items of bytes that nobody looks into get a digest."""
        return self._digests

    # --- What is wrong ------------------------------------------------------------------------

    def damage(self, expected: str, found: str, offset: int | None = None) -> Damage:
        """To be raised: the byte at ``offset`` (the next one) is the first wrong one."""
        return Damage(self.offset if offset is None else offset, expected, found)

    def tell_wrong(self, damage: Damage, file_offset: int | None = None) -> None:
        """Say so, without leaving. ``file_offset``: where the byte lies, for one far behind."""
        if self._left and damage.offset >= self._received:
            return
        self.summary.wrong += 1
        where = file_offset
        if where is None:
            where = self.file_offset() + damage.offset - self.offset
        self._sink.wrong(Wrong(self.name, damage.offset, where, damage.expected, damage.found))

    def hunt(
        self,
        patterns: Sequence[tuple[bytes, int]],
        count: int,
        test: Callable[[memoryview], bool],
    ) -> Steps[bool]:
        """Pass over bytes until a place that ``test`` takes; False where there is none.

        ``patterns``: bytes, and how far behind that place they stand; one of them is there. ``test``
        gets at least ``count`` bytes from the place. At least one byte is passed over.
        """
        if not (yield from self.more()):
            return False
        count = max(count, *(before + len(pattern) for pattern, before in patterns))
        with self.group("passed over", text="until something that is known"):
            self.advance(1)
            while (yield from self._wait(count)):
                data = self._data[self._at :]
                place = _first(bytes(data), patterns, len(data) - count, lambda at: test(data[at:]))  # noqa: B023
                if place is not None:
                    self.advance(place)
                    return True
                # Not here; the last bytes may be the beginning of it.
                self.advance(len(data) - count + 1)
            self.advance(self._have())
        return False

    # --- Streams in it ------------------------------------------------------------------------

    def carry(self, name: str, format: str = "") -> "Stream":
        """A stream that is carried in this one, fed by :meth:`pass_on`.

        It is over with :meth:`finish`, or with this one. ``format``: its name where it is known; else
        it shows by its first bytes. Damage where there are too many.
        """
        if len(self._carried) >= MAX_CARRIED:
            raise self.damage(f"at most {MAX_CARRIED} streams", "one more")
        inner = Stream(name, self._sink, self._run, format, self._depth + 1, self._digests)
        self._carried.append(inner)
        return inner

    def pass_on(self, inner: "Stream", count: int, what: str) -> Steps[None]:
        """The next ``count`` bytes are ``inner``'s. Cut."""
        while count:
            if not self._have() and not (yield from self._wait(1)):
                raise Cut(self.offset, f"{count} more bytes of {what}", "the end of the stream")
            step = min(count, self._have(), self._contiguous())
            piece = self._data[self._at : self._at + step]
            self._sink.piece(inner.name, inner._received, self.file_offset(), piece)
            inner.feed(piece, self.file_offset())
            self.advance(step)
            count -= step

    def bring(self, inner: "Stream", data: bytes, file: int, offset: int) -> None:
        """``data`` are ``inner``'s, from ``offset`` of :attr:`files` number ``file``."""
        where = (file << FILE_SHIFT) + offset
        self._sink.piece(inner.name, inner._received, where, memoryview(data))
        inner.feed(memoryview(data), where)


def _first(
    data: bytes,
    patterns: Sequence[tuple[bytes, int]],
    last: int,
    test: Callable[[int], bool],
) -> int | None:
    """The first place up to ``last`` with one of ``patterns`` (see :meth:`Stream.hunt`)."""

    def search(index: int, start: int) -> int:
        pattern, before = patterns[index]
        place = data.find(pattern, start + before, last + before + len(pattern))
        return place - before if place >= 0 else last + 1

    found = [search(index, 0) for index in range(len(patterns))]
    while True:
        place = min(found)
        if place > last:
            return None
        if test(place):
            return place
        found = [
            search(index, place + 1) if each == place else each for index, each in enumerate(found)
        ]
