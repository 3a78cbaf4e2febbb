"""A timeline's pictures as SVG: lanes of bars, curves of counters, the stages of the downtime.

They are whole as they stand. Each bar and curve also carries its times (``data-b``, ``data-e``,
``data-points``, in seconds from the first thing noted), from which the page's script draws it again
at another scale. Every text may come from a peer: it is escaped here, wherever it goes.
"""

import itertools
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape

from precopy.engine.report import human
from precopy.engine.timeline.events import COUNTERS, LANES, Notes, Span
from precopy.engine.timeline.timeline import Timeline, rows_of, series_of

#: Units of the drawing: all of it, what stands left of the bars, and the bars.
WIDTH, GUTTER = 1200, 150
PLOT = WIDTH - GUTTER - 14

_ROW, _HEAD, _CHART = 18, 24, 72
_AXIS = 22
#: Rows that a lane is given at most; what does not fit is drawn over the last.
_MOST_ROWS = 6
#: Of a letter, about.
_LETTER = 6.3
_LEAST = 1.5
_COLOURS = 8

#: The stages of a downtime, which stand beside each other.
_STAGES = (
    "suspend",
    "query and save",
    "dirty pages",
    "transfer",
    "validate",
    "load",
    "resume",
    "handover",
)

#: Bars of a row from which on neighbours are joined, and into how many the extent is cut then.
_MANY, _PARTS = 600, 3000

#: Curves that are drawn together: what the drawing is called, and the counters in it.
CHARTS: Sequence[tuple[str, Sequence[str]]] = (
    ("bytes", ("bytes",)),
    ("rate", ("rate",)),
    ("left", ("initial_bytes", "dirty_bytes", "memory_bytes")),
)


def span_text(seconds: float) -> str:
    """``1.25 ms``: three digits and the unit that fits."""
    if abs(seconds) < 1e-12:
        return "0"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if abs(seconds) * factor >= 1 or unit == "µs":
            value = seconds * factor
            return f"{value:.{max(0, 2 - int(math.log10(max(abs(value), 1))))}f} {unit}"
    raise AssertionError("unreachable")


def ticks(begin: float, end: float, most: int = 10) -> list[float]:
    """Round times from ``begin`` to ``end``, ``most`` of them at most."""
    span = end - begin
    if span <= 0:
        return [begin]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next((factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most), 10)
    first = math.ceil(begin / step - 1e-9)
    return [number * step for number in range(first, math.floor(end / step + 1e-9) + 1)]


def _colour(name: str) -> int:
    """The same for all names that differ in their numbers only; stages each have their own."""
    if name in _STAGES:
        return _STAGES.index(name)
    return zlib.crc32(re.sub(r"\d+", "", name).encode()) % _COLOURS


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _seconds(value: float) -> str:
    return f"{value:.9f}"


def joined(spans: Sequence[Span], apart: float) -> list[Span]:
    """Neighbours of one name that are less than ``apart`` from each other, as one span each.

    It says how many it stands for; its bytes are theirs together.
    """
    found: list[Span] = []
    for span in spans:
        last = found[-1] if found else None
        if last is None or last.name != span.name or span.begin - last.end >= apart:
            found.append(Span(span.lane, span.name, span.begin, span.end, dict(span.details)))
            continue
        both = dict(last.details)
        both["pieces"] = int(both.get("pieces", 1)) + 1
        if "bytes" in both or "bytes" in span.details:
            both["bytes"] = int(both.get("bytes", 0)) + int(span.details.get("bytes", 0))
        last.details, last.end = both, max(last.end, span.end)
    return found


class Picture:
    """Lanes and curves between two times, which are seconds on the timeline's clock."""

    def __init__(
        self, timeline: Timeline, name: str, begin: float, end: float, *, charts: bool
    ) -> None:
        self._timeline, self._name, self._charts = timeline, name, charts
        self._zero, _ = timeline.extent()
        self._begin, self._end = begin, max(end, begin + 1e-6)
        self._y = _AXIS
        self._parts: list[str] = []

    def svg(self) -> str:
        for side, notes in self._timeline.sides():
            self._side(side, notes)
        if self._charts:
            for title, counters in CHARTS:
                self._chart(title, counters)
        height = self._y + 6
        name = escape(self._name)
        # What is left and right of the bars' part is cut off.
        clip = f'<clipPath id="clip-{name}"><rect x="{GUTTER}" y="0" width="{PLOT}" height="{height}"/></clipPath>'
        times = f'data-begin="{_seconds(self._begin - self._zero)}" data-end="{_seconds(self._end - self._zero)}"'
        place = f'data-gutter="{GUTTER}" data-plot="{PLOT}" data-height="{height}"'
        return (
            f'<svg class="picture" id="{name}" viewBox="0 0 {WIDTH} {height}" {times} {place}'
            f' role="img" aria-label="{name}"><defs>{clip}</defs>'
            f'<g class="axis">{"".join(self._axis(height))}</g>{"".join(self._parts)}</svg>'
        )

    def _x(self, at: float) -> float:
        return GUTTER + (at - self._begin) / (self._end - self._begin) * PLOT

    def _axis(self, height: float) -> Iterator[str]:
        for at in ticks(self._begin - self._zero, self._end - self._zero):
            x = _number(self._x(at + self._zero))
            yield f'<line x1="{x}" x2="{x}" y1="{_AXIS - 4}" y2="{height}"/>'
            yield f'<text x="{x}" y="12">{escape(span_text(at))}</text>'

    def _side(self, side: str, notes: Notes) -> None:
        self._y += _HEAD
        self._parts.append(f'<text class="side" x="4" y="{self._y - 8}">{side}</text>')
        self._parts.append(
            f'<line class="rule" x1="0" x2="{WIDTH}" y1="{self._y - 4}" y2="{self._y - 4}"/>'
        )
        for lane, title in LANES.items():
            spans = [
                span
                for span in notes.spans(lane)
                if span.end >= self._begin and span.begin <= self._end
            ]
            if spans:
                self._lane(side, lane, title, spans)

    def _lane(self, side: str, lane: str, title: str, spans: Sequence[Span]) -> None:
        top = self._y
        self._parts.append(f'<text class="lane" x="10" y="{top + 13}">{escape(title)}</text>')
        clip = f'clip-path="url(#clip-{escape(self._name)})"'
        self._parts.append(f'<g class="bars" data-side="{side}" data-lane="{lane}" {clip}>')
        rows = rows_of(spans) if lane != "moments" else [list(spans)]
        for number, row in enumerate(rows):
            y = top + min(number, _MOST_ROWS - 1) * _ROW
            if len(row) > _MANY and lane != "moments":
                row = joined(row, (self._end - self._begin) / _PARTS)
            self._parts += [self._bar(span, y) for span in row]
        self._parts.append("</g>")
        self._y = top + min(len(rows), _MOST_ROWS) * _ROW + 3

    def _bar(self, span: Span, y: float) -> str:
        x, right = self._x(span.begin), self._x(span.end)
        moment = span.lane == "moments"
        width = 3.0 if moment else max(right - x, _LEAST)
        shown = f'x="{_number(x)}" width="{_number(width)}"'
        told = escape(span.name)
        left = max(x, GUTTER)
        room = min(x + width, GUTTER + PLOT) - left
        hidden = "" if len(span.name) * _LETTER + 6 <= room else ' display="none"'
        label = (
            "" if moment else f'<text x="{_number(left + 3)}" y="{y + 12}"{hidden}>{told}</text>'
        )
        return (
            f'<g class="bar c{_colour(span.name)}{" moment" if moment else ""}"'
            f' data-b="{_seconds(span.begin - self._zero)}" data-e="{_seconds(span.end - self._zero)}">'
            f"<title>{escape(self._told(span))}</title>"
            f'<rect {shown} y="{y}" height="{_ROW - 3}"/>{label}</g>'
        )

    def _told(self, span: Span) -> str:
        found = f"{span.name}\nat {span_text(span.begin - self._zero)}"
        if span.lane != "moments":
            found += f", took {span_text(span.seconds)}"
        for key, value in span.details.items():
            if key == "bytes" and isinstance(value, int | float):
                told = f"{human(value)}"
            elif key.endswith("_seconds") and isinstance(value, int | float):
                key, told = key.removesuffix("_seconds"), span_text(value)
            else:
                told = str(value)
            found += f"\n{key}: {told}"
        return found

    # --- Curves -------------------------------------------------------------------------------

    def _chart(self, title: str, counters: Sequence[str]) -> None:
        curves = [
            (f"{counter.replace('_', ' ')}, {side}", series[counter], counter)
            for side, notes in self._timeline.sides()
            for series in [series_of(notes)]
            for counter in counters
            if any(value for _, value in series.get(counter, []))
        ]
        if not curves:
            return
        top = self._y + 8
        most = max(value for _, points, _ in curves for _, value in points)
        unit = "/s" if COUNTERS[counters[0]] == "B/s" else ""
        part = self._parts.append
        part(f'<text class="lane" x="10" y="{top + 12}">{escape(title)}</text>')
        part(f'<text class="most" x="10" y="{top + 26}">up to {human(most)}{unit}</text>')
        for number, (name, _, _) in enumerate(curves):
            at = f'x="10" y="{top + 40 + 13 * number}"'
            part(f'<text class="legend line{number}" {at}>{escape(name)}</text>')
        height = max(_CHART, 40 + 13 * len(curves))
        part(
            f'<rect class="paper" x="{GUTTER}" y="{top}" width="{PLOT}" height="{height}"/>'
            f'<g class="curves" clip-path="url(#clip-{escape(self._name)})">'
        )
        for number, (name, points, counter) in enumerate(curves):
            places = [(at, top + height - 2 - value / most * (height - 6)) for at, value in points]
            times = " ".join(f"{at - self._zero:.6f},{_number(y)}" for at, y in places)
            part(
                f'<path class="curve line{number}" data-counter="{counter}" data-points="{times}"'
                f' d="{self._path(places)}"><title>{escape(name)}</title></path>'
            )
        part("</g>")
        self._y = top + height

    def _path(self, places: Sequence[tuple[float, float]]) -> str:
        steps = []
        for (at, y), before in zip(places, itertools.chain([None], places), strict=False):
            if before is not None:
                steps.append(f"H{_number(self._x(at))}")
                steps.append(f"V{_number(y)}")
            else:
                steps.append(f"M{_number(self._x(at))} {_number(y)}")
        return "".join(steps)


def stages(found: Mapping[str, float]) -> str:
    """The stages of a downtime, one behind the other, as wide as they are long; with their sum."""
    whole = sum(found.values())
    if whole <= 0:
        return ""
    parts, x = [], 0.0
    for name, seconds in found.items():
        width = seconds / whole * WIDTH
        shown = len(name) * _LETTER + 6 <= width
        label = f'<text x="{_number(x + 3)}" y="20">{escape(name)}</text>' if shown else ""
        parts.append(
            f'<g class="stage c{_colour(name)}" data-seconds="{seconds:.9f}">'
            f"<title>{escape(name)}: {span_text(seconds)}, {seconds / whole:.0%}</title>"
            f'<rect x="{_number(x)}" y="0" width="{_number(width)}" height="30"/>{label}</g>'
        )
        x += width
    return (
        f'<svg id="stages" viewBox="0 0 {WIDTH} 30" role="img" aria-label="stages of the downtime"'
        f' data-downtime="{whole:.9f}">{"".join(parts)}</svg>'
    )
