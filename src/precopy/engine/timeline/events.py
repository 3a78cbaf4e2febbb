"""What one side of a migration notes: spans, moments and counters, in bounded memory.

Times are seconds of that side's own monotonic clock. Of every lane the first spans and the last ones
are kept, so that the beginning and the downtime stay whole; what lies between is counted. A counter
that has too many points keeps every second one, again and again.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Detail = str | int | float
Details = Mapping[str, Detail]

#: Every lane, in the order in which they are shown, and what it is called.
LANES: dict[str, str] = {
    "phases": "phases",
    "images": "images",
    "memory": "guest memory",
    "read": "read",
    "sent": "sent",
    "loaded": "loaded",
    "arcs": "arcs",
    "firmware": "firmware commands",
    "downtime": "downtime",
    "moments": "moments",
}

#: Every counter, and its unit.
COUNTERS: dict[str, str] = {
    "bytes": "B",
    "rate": "B/s",
    "initial_bytes": "B",
    "dirty_bytes": "B",
    "memory_bytes": "B",
}

#: Spans of a lane that are kept at most, half of them from its beginning; points of a counter.
MAX_SPANS = 4096
MAX_POINTS = 2048

#: Signs of a name or a text, and details of a span.
MAX_TEXT = 200
MAX_DETAILS = 8

NO_DETAILS: Details = {}


@dataclass(slots=True)
class Span:
    """From ``begin`` to ``end``, which are the same for a moment."""

    lane: str
    name: str
    begin: float
    end: float
    details: Details = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.end - self.begin


class _Lane:
    def __init__(self) -> None:
        self.first: list[Span] = []
        self.last: deque[Span] = deque(maxlen=MAX_SPANS // 2)
        self.left_out = 0

    def add(self, span: Span) -> None:
        if len(self.first) < MAX_SPANS // 2:
            self.first.append(span)
            return
        if len(self.last) == self.last.maxlen:
            self.left_out += 1
        self.last.append(span)

    def __iter__(self) -> Iterator[Span]:
        yield from self.first
        yield from self.last


class Counter:
    """A value over time. Of points closer together than ``_apart`` seconds the last is kept."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self._apart = 0.0
        self._last: tuple[float, float] | None = None

    def add(self, at: float, value: float) -> None:
        points = self.points
        if points and at - points[-1][0] < self._apart:
            self._last = at, value
            return
        points.append((at, value))
        self._last = None
        if len(points) >= MAX_POINTS:
            self._apart = 2 * max(self._apart, (at - points[0][0]) / MAX_POINTS)
            del points[1::2]

    def __iter__(self) -> Iterator[tuple[float, float]]:
        yield from self.points
        if self._last is not None:
            yield self._last


class Notes:
    """What one side has noted. Calls may come from any thread.

    ``now``: the clock, in seconds. ``commands``: whether the firmware's commands can be seen here.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.commands = False
        self._lanes = {name: _Lane() for name in LANES}
        self._counters = {name: Counter() for name in COUNTERS}
        self._lock = threading.Lock()
        self._phase: tuple[str, float] | None = None

    # --- Noting -------------------------------------------------------------------------------

    def span(self, lane: str, name: str, begin: float, end: float, **details: Detail) -> None:
        with self._lock:
            self._lanes[lane].add(Span(lane, name, begin, end, details))

    def moment(self, name: str, **details: Detail) -> None:
        """Something that happens now."""
        at = self.now()
        self.span("moments", name, at, at, **details)

    def count(self, counter: str, value: float, at: float | None = None) -> None:
        with self._lock:
            self._counters[counter].add(self.now() if at is None else at, value)

    def phase(self, name: str | None) -> None:
        """The engine's phase from now on, which ends the one before; None: there is no other."""
        before = self._phase
        if before is not None and before[0] == name:
            return
        at = self.now()
        if before is not None:
            self.span("phases", before[0], before[1], at)
        self._phase = None if name is None else (name, at)

    def take(self, span: Span) -> None:
        """A span that was noted elsewhere."""
        self.span(span.lane, span.name, span.begin, span.end, **span.details)

    # --- Reading ------------------------------------------------------------------------------

    def spans(self, lane: str | None = None) -> list[Span]:
        """Of ``lane``, or of all: by their beginnings, longer ones first."""
        with self._lock:
            found = [
                span for name, each in self._lanes.items() if lane in (None, name) for span in each
            ]
        return sorted(found, key=lambda span: (span.begin, -span.end))

    def points(self, counter: str) -> list[tuple[float, float]]:
        """Times and values."""
        with self._lock:
            return list(self._counters[counter])

    @property
    def left_out(self) -> dict[str, int]:
        """By lane: the spans that there was no room for."""
        with self._lock:
            return {name: each.left_out for name, each in self._lanes.items() if each.left_out}

    def leave_out(self, lane: str, count: int) -> None:
        """``count`` spans of ``lane`` were left out elsewhere."""
        self._lanes[lane].left_out += count


# --- As rows of JSON, for a peer or from one ----------------------------------------------------


def _time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1e9


def _short(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _detail(value: Any) -> bool:
    if type(value) in (int, float):
        return math.isfinite(value) and abs(value) < 1 << 64
    return _short(value)


def _details(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) <= MAX_DETAILS
        and all(_short(name) and _detail(each) for name, each in value.items())
    )


def _span(row: list[Any]) -> bool:
    lane, name, begin, end, details = row
    known = isinstance(lane, str) and lane in LANES
    times = _time(begin) and _time(end) and begin <= end
    return known and _short(name) and times and _details(details)


def _point(row: list[Any]) -> bool:
    counter, at, value = row
    known = isinstance(counter, str) and counter in COUNTERS
    return known and _time(at) and type(value) in (int, float) and 0 <= value < 1 << 64


#: Rows of one message.
MAX_BATCH = 512


def is_batch(value: Any) -> bool:
    """Whether this is a list of rows as :func:`rows` gives them."""
    return isinstance(value, list) and len(value) <= MAX_BATCH and all(map(is_row, value))


def is_left_out(value: Any) -> bool:
    """Whether this is a count by lane."""
    return isinstance(value, dict) and all(
        name in LANES and type(count) is int and 0 <= count < 1 << 64
        for name, count in value.items()
    )


def is_row(value: Any) -> bool:
    """Whether this is a row as :func:`rows` gives them."""
    if not isinstance(value, list):
        return False
    if len(value) == 5:
        return _span(value)
    return len(value) == 3 and _point(value)


def rows(notes: Notes) -> Iterator[list[Any]]:
    """``[lane, name, begin, end, details]`` of every span, ``[counter, time, value]`` of every point."""
    for span in notes.spans():
        details = {
            key[:MAX_TEXT]: value[:MAX_TEXT] if isinstance(value, str) else value
            for key, value in list(span.details.items())[:MAX_DETAILS]
        }
        yield [span.lane, span.name[:MAX_TEXT], span.begin, span.end, details]
    for name in COUNTERS:
        for at, value in notes.points(name):
            yield [name, at, value]


def take_row(notes: Notes, row: list[Any], moved: Callable[[float], float]) -> None:
    """Note a row, for which :func:`is_row` has held, with its times ``moved`` to the clock here."""
    if len(row) == 5:
        lane, name, begin, end, details = row
        notes.take(Span(lane, name, moved(begin), moved(end), details))
    else:
        counter, at, value = row
        notes.count(counter, value, moved(at))
