"""Two streams compared: record by record, image by image, by the names of what is in them."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from precopy.stream.dissect import dissect
from precopy.stream.item import Item, Silent, Summary, Wrong
from precopy.stream.registry import formats

#: Items of a stream that are compared; what comes behind them is not.
MAX_ITEMS = 1_000_000

#: Names from the outermost on.
Path = tuple[str, ...]


class Change(enum.Enum):
    """What became of an item from the first stream to the second."""

    GONE = "-"
    NEW = "+"
    CHANGED = "~"


@dataclass(frozen=True, slots=True)
class Difference:
    """``offset`` in the file that has the item (the first, where both have it); ``inside``: items in
    it, which are new or gone with it."""

    change: Change
    path: Path
    offset: int
    text: str
    inside: int = 0

    def __str__(self) -> str:
        more = f", with {self.inside} in it" if self.inside else ""
        return (
            f"{self.change.value} {self.offset:#010x}  {' / '.join(self.path)}: {self.text}{more}"
        )


@dataclass(slots=True)
class _Seen:
    """What is kept of an item."""

    offset: int
    size: int | None = None
    text: str = ""
    digest: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    #: Others are in it: then its size is only theirs.
    group: bool = False


class Inventory(Silent):
    """All that is in a stream, by path. An item with the path of an earlier one is numbered."""

    def __init__(self) -> None:
        self.items: dict[Path, _Seen] = {}
        self.wrongs: list[Wrong] = []
        #: Items beyond the limit.
        self.left_out = 0
        self._times: dict[Path, int] = {}
        #: For each stream: where it stands, as depths and paths.
        self._stacks: dict[str, list[tuple[int, Path]]] = {}
        self._open: dict[int, _Seen] = {}
        #: Streams that are there for those in them.
        self._carriers: set[str] = set()

    def begin(self, item: Item) -> None:
        if len(self.items) >= MAX_ITEMS:
            self.left_out += 1
            return
        stack = self._stacks.get(item.stream)
        if stack is None:
            stack = self._stacks[item.stream] = [(-1, self._root(item.stream))]
        while stack[-1][0] >= item.depth:
            stack.pop()
        parent = stack[-1][1]
        path = (*parent, item.name)
        times = self._times[path] = self._times.get(path, 0) + 1
        if times > 1:
            path = (*parent, f"{item.name} ({times})")
        if parent in self.items:
            self.items[parent].group = True
        stack.append((item.depth, path))
        self.items[path] = self._open[id(item)] = _Seen(item.file_offset)

    def end(self, item: Item) -> None:
        seen = self._open.pop(id(item), None)
        if seen is not None:
            seen.size, seen.text, seen.digest = item.size, item.text, item.digest
            seen.fields = tuple((each.name, each.text) for each in item.fields)

    def _root(self, stream: str) -> Path:
        if not stream or stream in self._carriers:
            return (stream,) if stream else ()
        # By its place among them: two devices of a kind have two names.
        others = sum(bool(each) for each in self._stacks if each not in self._carriers)
        return (f"stream {others + 1}",)

    def recognised(self, summary: Summary, depth: int) -> None:
        if formats()[summary.format].carries:
            self._carriers.add(summary.stream)

    def keep_carried(self) -> None:
        """Forget what is there only to carry other streams, where there are such others."""
        if not self._stacks.keys() - self._carriers:
            return
        roots = {stream: stack[0][1] for stream, stack in self._stacks.items()}
        gone = {roots[stream] for stream in self._carriers if stream in roots}
        kept = set(roots.values()) - gone
        self.items = {
            path: seen
            for path, seen in self.items.items()
            if path[:1] in kept or (() in kept and path[:1] not in gone)
        }

    def wrong(self, wrong: Wrong) -> None:
        self.wrongs.append(wrong)


def inventory(source: BinaryIO, format: str = "") -> Inventory:
    """What is in ``source``. OSError."""
    found = Inventory()
    dissect(source, found, format, digests=True)
    return found


def _changes(one: _Seen, other: _Seen) -> Iterator[str]:
    """What is not the same of an item that both have."""
    if one.size != other.size and not (one.group or other.group):
        yield f"{one.size} bytes -> {other.size} bytes"
    elif one.digest != other.digest:
        yield f"{one.size} bytes with another content"
    mine, theirs = dict(one.fields), dict(other.fields)
    for name in mine.keys() | theirs.keys():
        if mine.get(name) != theirs.get(name):
            yield f"{name} {mine.get(name, 'none')} -> {theirs.get(name, 'none')}"
    if one.text != other.text and not one.digest:
        yield f"{one.text or 'nothing'} -> {other.text or 'nothing'}"


def compare(one: Inventory, other: Inventory) -> Iterator[Difference]:
    """Their differences: in the order of the first, then what only the second has, in its order."""
    for path, seen in one.items.items():
        match = other.items.get(path)
        if match is not None:
            told = ", ".join(_changes(seen, match))
            if told:
                yield Difference(Change.CHANGED, path, seen.offset, told)
    yield from _only(one, other, Change.GONE)
    yield from _only(other, one, Change.NEW)


def _only(one: Inventory, other: Inventory, change: Change) -> Iterator[Difference]:
    """What ``one`` has and ``other`` has not: the outermost of it, with the number of items in it."""
    inside: dict[Path, int] = {}
    for path in one.items:
        if path in other.items:
            continue
        top = next(
            (path[:length] for length in range(1, len(path)) if path[:length] in inside), None
        )
        inside[top or path] = inside.get(top or path, -1) + 1
    for path, count in inside.items():
        seen = one.items[path]
        size = "" if seen.size is None else f"{seen.size} bytes"
        told = ", ".join(part for part in (size, seen.text) if part)
        yield Difference(change, path, seen.offset, told or "no size", count)
