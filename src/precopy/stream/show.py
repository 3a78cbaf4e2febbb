"""What was dissected, as a tree for people or as JSON, a line each, while it goes on."""

import abc
import json
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from precopy.engine.report import human
from precopy.stream.item import Item, Silent, Summary, Wrong

#: Items that wait for the size of one before them; then it is told without its size.
MAX_WAITING = 10_000

#: Signs of a text or a value in the tree.
_MAX_TEXT = 200


class Teller(Silent, abc.ABC):
    """Writes lines; at the end, by :meth:`close`, one for each stream, by name."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._over: list[Summary] = []

    def over(self, summary: Summary) -> None:
        self._over.append(summary)

    def close(self) -> None:
        """Tell what is left, and the summaries."""
        for summary in sorted(self._over, key=lambda each: each.stream):
            self._write(self._summary(summary) + "\n")

    def _summary(self, summary: Summary) -> str:
        return _summary_line(summary)


class _Ordered(Teller):
    """Tells in the order of the stream, each item when its size is known."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__(write)
        self._waiting: deque[tuple[Item | None, str]] = deque()

    @abc.abstractmethod
    def _line_of(self, item: Item) -> str: ...

    def _tell(self, line: str) -> None:
        if self._waiting:
            self._waiting.append((None, line))
        else:
            self._write(line + "\n")

    def begin(self, item: Item) -> None:
        self._waiting.append((item, ""))
        self._flush()
        if len(self._waiting) > MAX_WAITING:
            self._tell_first()

    def end(self, item: Item) -> None:
        self._flush()

    def _tell_first(self) -> None:
        item, line = self._waiting.popleft()
        self._write((self._line_of(item) if item is not None else line) + "\n")

    def _flush(self) -> None:
        while self._waiting:
            item, _ = self._waiting[0]
            if item is not None and item.size is None:
                break
            self._tell_first()

    def close(self) -> None:
        while self._waiting:
            self._tell_first()
        super().close()


class Tree(_Ordered):
    """A tree: place in the file, place in the stream that is carried in it, size, what it is."""

    def recognised(self, summary: Summary, depth: int) -> None:
        name = f"{summary.stream}: {summary.format}" if summary.stream else summary.format
        self._tell(f"{'':32}{'  ' * depth}{name}, {summary.title}")

    def _line_of(self, item: Item) -> str:
        inner = f"+{item.offset:#x}" if item.stream else ""
        size = f"{item.size}" if item.size is not None else "?"
        told = [item.name]
        if item.text:
            told.append(_short(item.text))
        told += [f"{each.name}={_short(each.text)}" for each in item.fields]
        return (
            f"{item.file_offset:#010x} {inner:>10} {size:>10}{'  ' * item.depth}  {'  '.join(told)}"
        )

    def wrong(self, wrong: Wrong) -> None:
        self._tell(f"{wrong.file_offset:#010x} WRONG: {wrong}")


class Brief(Teller):
    """Only the summaries, and what is wrong."""

    def wrong(self, wrong: Wrong) -> None:
        self._write(f"WRONG: {wrong}\n")


def _short(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 3] + "..."


def _summary_line(summary: Summary) -> str:
    told = [f"{summary.stream or 'whole'}: {summary.format or 'unknown'}", human(summary.bytes)]
    told += [f"{count} {name}" for name, count in summary.counts.items()]
    told += [f"{name} {human(size)}" for name, size in summary.phases.items()]
    if summary.wrong:
        told.append(f"{summary.wrong} wrong")
    return ", ".join(told)


class Lines(_Ordered):
    """A JSON object a line: ``what`` is item, wrong or stream; a number is as it is in the stream."""

    def _line_of(self, item: Item) -> str:
        return json.dumps(
            {
                "what": "item",
                "stream": item.stream,
                "offset": item.offset,
                "file_offset": item.file_offset,
                "size": item.size,
                "depth": item.depth,
                "name": item.name,
                "text": item.text,
                "fields": [
                    {
                        "name": each.name,
                        "offset": each.offset,
                        "size": each.size,
                        "value": _value(each.value),
                        "text": each.text,
                    }
                    for each in item.fields
                ],
            }
        )

    def wrong(self, wrong: Wrong) -> None:
        self._tell(
            json.dumps(
                {
                    "what": "wrong",
                    "stream": wrong.stream,
                    "offset": wrong.offset,
                    "file_offset": wrong.file_offset,
                    "expected": wrong.expected,
                    "found": wrong.found,
                }
            )
        )

    def _summary(self, summary: Summary) -> str:
        return json.dumps({"what": "stream", **asdict(summary)})


def _value(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value
