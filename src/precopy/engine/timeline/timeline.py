"""Both sides of one migration together, on the source's clock."""

from collections.abc import Sequence
from typing import Any

from precopy.engine.timeline.clock import Clock
from precopy.engine.timeline.events import COUNTERS, MAX_SPANS, Notes, Span

#: The sides, in the order in which they are shown.
SIDES = ("source", "target")

#: Seconds that a time may lose in a trace: spans that follow each other there still do.
ROUNDING = 2e-9

#: Points of a rate are no closer than this, in seconds.
_RATE_APART = 0.002


class Timeline:
    """What the ``source`` and the ``target`` have noted, None where nobody could tell.

    All times are of the source's clock, except where there is no source: then of the target's own.
    ``clock`` says how the target's times came to it. ``report``: ``Report.to_dict``.
    """

    def __init__(self, source: Notes | None = None, target: Notes | None = None) -> None:
        self.source, self.target = source, target
        self.clock: Clock | None = None
        self.report: dict[str, Any] = {}
        #: In one line: how it ended.
        self.outcome = ""
        #: Told to people: what is not here, and why.
        self.remarks: list[str] = []

    def sides(self) -> list[tuple[str, Notes]]:
        """Those that are here, with their names."""
        both = zip(SIDES, (self.source, self.target), strict=True)
        return [(name, notes) for name, notes in both if notes is not None]

    def end(self, outcome: str, report: dict[str, Any] | None = None) -> None:
        """It is over, and there is nothing more to note."""
        self.outcome = outcome
        self.report = report or {}
        for _, notes in self.sides():
            notes.phase(None)

    def all_remarks(self) -> list[str]:
        """What is to be told of this timeline: also what was left out, and what can't be seen."""
        found = list(self.remarks)
        for side, notes in self.sides():
            if not notes.commands:
                found.append(f"{side}: no firmware commands, its device does not show any")
            for lane, count in notes.left_out.items():
                found.append(
                    f"{side}: {count} of the {lane} are left out between the first"
                    f" {MAX_SPANS // 2} and the last {MAX_SPANS // 2}"
                )
        return found

    def extent(self) -> tuple[float, float]:
        """From the first thing noted to the last; both 0 where nothing was."""
        spans = [span for _, notes in self.sides() for span in notes.spans()]
        if not spans:
            return 0.0, 0.0
        return min(span.begin for span in spans), max(span.end for span in spans)

    def downtime(self) -> tuple[float, float] | None:
        """From before the first pause until the device runs at the target; None before that."""
        if self.source is None:
            return None
        spans = self.source.spans("downtime")
        return (spans[0].begin, max(span.end for span in spans)) if spans else None


def rows_of(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans on as few rows as it takes for none to overlap another of its row.

    ``spans`` by their beginnings.
    """
    found: list[list[Span]] = []
    for span in spans:
        row = next((row for row in found if row[-1].end <= span.begin + ROUNDING), None)
        if row is None:
            found.append([span])
        else:
            row.append(span)
    return found


def rates(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """How fast a value that only grows did so, from each time on, between points a little apart."""
    if len(points) < 2:
        return []
    apart = max(_RATE_APART, (points[-1][0] - points[0][0]) / 300)
    found = []
    before = points[0]
    for at, value in points[1:]:
        seconds = at - before[0]
        if seconds >= apart:
            found.append((before[0], (value - before[1]) / seconds))
            before = at, value
    return [*found, (before[0], 0.0)]


def series_of(notes: Notes) -> dict[str, list[tuple[float, float]]]:
    """Every counter of a side that has points; the rate comes from the bytes."""
    found = {name: notes.points(name) for name in COUNTERS if name != "rate"}
    found["rate"] = rates(found["bytes"])
    return {name: points for name, points in found.items() if points}
