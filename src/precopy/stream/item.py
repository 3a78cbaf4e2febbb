"""What a dissector says of a stream: items, each a range of bytes with a name."""

from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a structure: ``offset`` and ``size`` in bytes in its stream, ``text`` for people."""

    name: str
    offset: int
    size: int
    value: Any
    text: str


@dataclass(slots=True)
class Item:
    """A range of a stream. ``name`` tells it apart from its neighbours, in another stream too.

    ``stream`` is empty for the file itself, else the name of the stream that is carried in it.
    ``offset`` is in that stream, ``file_offset`` is where its first byte lies in the file. ``size``
    is None as long as nobody knows.
    """

    stream: str
    offset: int
    file_offset: int
    depth: int
    name: str
    size: int | None = None
    text: str = ""
    fields: tuple[Field, ...] = ()
    #: xxh3 of the bytes that no field tells of, where it was asked for.
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Wrong:
    """The first wrong byte of a stream, what was expected there, and what was found."""

    stream: str
    offset: int
    file_offset: int
    expected: str
    found: str

    def __str__(self) -> str:
        where = f"byte {self.offset:#x}"
        if self.stream:
            where += f" of {self.stream} (byte {self.file_offset:#x} of the file)"
        return f"{where}: expected {self.expected}, found {self.found}"


@dataclass(slots=True)
class Summary:
    """What a stream came to: bytes by phase, and how many there were of what its format counts."""

    stream: str
    format: str = ""
    title: str = ""
    bytes: int = 0
    phases: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    wrong: int = 0


class Sink(Protocol):
    """Who hears of it, in the order of the stream."""

    def recognised(self, summary: Summary, depth: int) -> None:
        """A stream begins, ``depth`` deep, and its format is known; its counts are still to come."""

    def begin(self, item: Item) -> None:
        """An item; it has its size now or at :meth:`end`."""

    def end(self, item: Item) -> None:
        """What began is over, and has its size."""

    def wrong(self, wrong: Wrong) -> None: ...

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None:
        """Bytes of a stream that is carried in the file; ``data`` is valid until the return."""

    def over(self, summary: Summary) -> None:
        """A stream has ended."""

    def wants(self, file_offset: int, size: int) -> bool:
        """Whether to be told every item of these bytes, where a format would put many into one."""


class Silent:
    """Hears nothing; what other sinks start from."""

    def recognised(self, summary: Summary, depth: int) -> None: ...

    def begin(self, item: Item) -> None: ...

    def end(self, item: Item) -> None: ...

    def wrong(self, wrong: Wrong) -> None: ...

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None: ...

    def over(self, summary: Summary) -> None: ...

    def wants(self, file_offset: int, size: int) -> bool:
        return False


class Several:
    """Tells several sinks."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = sinks

    def recognised(self, summary: Summary, depth: int) -> None:
        for sink in self._sinks:
            sink.recognised(summary, depth)

    def begin(self, item: Item) -> None:
        for sink in self._sinks:
            sink.begin(item)

    def end(self, item: Item) -> None:
        for sink in self._sinks:
            sink.end(item)

    def wrong(self, wrong: Wrong) -> None:
        for sink in self._sinks:
            sink.wrong(wrong)

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None:
        for sink in self._sinks:
            sink.piece(stream, offset, file_offset, data)

    def over(self, summary: Summary) -> None:
        for sink in self._sinks:
            sink.over(summary)

    def wants(self, file_offset: int, size: int) -> bool:
        return any(sink.wants(file_offset, size) for sink in self._sinks)
