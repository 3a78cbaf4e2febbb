"""The target's clock against the source's: what is between them, and how far that may be wrong.

The source asks, the target answers with its time. That answer was given somewhere between question
and arrival, so the middle of the two is wrong by half the round trip at most, however unevenly the
way took its time. Of several exchanges the one with the least round trip says most.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Exchange(NamedTuple):
    """Seconds: when the source asked, what the target's clock said, when the source heard it."""

    asked: float
    there: float
    heard: float


@dataclass(frozen=True, slots=True)
class Offset:
    """The target's clock minus the source's, in seconds, at the source's time ``at``.

    The true one lies within ``offset`` plus or minus ``error``.
    """

    offset: float
    error: float
    at: float


def estimate(exchanges: Sequence[Exchange]) -> Offset:
    """What one or more exchanges, made one after another, say. ValueError for none."""
    if not exchanges:
        raise ValueError("no exchange")
    best = min(exchanges, key=lambda each: each.heard - each.asked)
    middle = (best.asked + best.heard) / 2
    return Offset(best.there - middle, (best.heard - best.asked) / 2, middle)


@dataclass(frozen=True, slots=True)
class Clock:
    """The offset before the migration and, where it came to that, after it."""

    begin: Offset
    end: Offset | None = None

    @property
    def error(self) -> float:
        """How far a time of the target's may be off on the source's clock, in seconds.

        For clocks that differ by a constant, or drift evenly in between.
        """
        return self.begin.error if self.end is None else max(self.begin.error, self.end.error)

    @property
    def drift(self) -> float | None:
        """By how much the offset has changed, in seconds; None where that was not asked."""
        return None if self.end is None else self.end.offset - self.begin.offset

    @property
    def drift_error(self) -> float | None:
        """How far that may be off: a smaller drift than this is none that was seen."""
        return None if self.end is None else self.begin.error + self.end.error

    def to_source(self, there: float) -> float:
        """The source's time at which the target's clock said ``there``."""
        begin, end = self.begin, self.end
        if end is None or end.at <= begin.at:
            return there - begin.offset
        # Both ends on the target's clock: between them the offset changes evenly.
        first, last = begin.at + begin.offset, end.at + end.offset
        if last <= first:
            return there - begin.offset
        part = min(max((there - first) / (last - first), 0.0), 1.0)
        return there - (begin.offset + part * (end.offset - begin.offset))
