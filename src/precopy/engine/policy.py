"""When to switch over: while one more round pays, and what to do when it does not."""

import enum
import time
from dataclasses import dataclass

from precopy.engine.report import human


class GiveUp(enum.Enum):
    """What to do when the limit can't be met: the user's choice."""

    SWITCH_OVER = "switchover"
    CANCEL = "cancel"
    #: Slow the guest down until it can be met.
    SLOW = "slow"
    #: Go on, until something changes or somebody cancels.
    KEEP = "keep"


class Decision(enum.Enum):
    ANOTHER_ROUND = enum.auto()
    SLOW_DOWN = enum.auto()
    SWITCH_OVER = enum.auto()
    GIVE_UP = enum.auto()


@dataclass(frozen=True, slots=True)
class Measured:
    """What the source knows so far. Bytes and seconds; rates in bytes a second, 0 if not measured."""

    #: Of the device's state.
    remaining_bytes: int
    bandwidth: float
    load_rate: float
    #: What a switchover costs even with nothing to move.
    fixed: float
    #: Of guest memory: pages that were written and have not been sent since.
    memory_bytes: int = 0
    #: How fast memory is written, page by page.
    dirty_rate: float = 0.0

    @property
    def all_bytes(self) -> int:
        return self.remaining_bytes + self.memory_bytes


def predicted_downtime(now: Measured) -> float:
    """Seconds: fixed costs, moving what remains, and what loading takes longer than moving.

    The target loads while it receives, so only the part that loading is slower by counts. Memory is
    where it has to be once it has come.
    """
    if not now.bandwidth:
        return now.fixed
    transfer = now.remaining_bytes / now.bandwidth
    load = now.remaining_bytes / now.load_rate if now.load_rate else 0.0
    return now.fixed + now.memory_bytes / now.bandwidth + max(transfer, load)


@dataclass(frozen=True, slots=True)
class Policy:
    """Seconds; ``max_rounds`` middle images and ``timeout`` end the attempts to get under the limit."""

    downtime_limit: float = 0.3
    max_rounds: int = 30
    timeout: float = 300.0
    give_up: GiveUp = GiveUp.SWITCH_OVER
    #: A limit that more rounds don't bring nearer: this many without gain are enough.
    patience: int = 3

    def decide(
        self, now: Measured, rounds: int, elapsed: float, stalled: int, all_sent: bool = True
    ) -> Decision:
        """``stalled``: rounds in a row after which no less remained than before.

        ``all_sent``: everything has been sent once. Until then another image costs no downtime and
        saves some, so that it pays whatever the limit is.
        """
        if all_sent and predicted_downtime(now) <= self.downtime_limit:
            return Decision.SWITCH_OVER
        if rounds >= self.max_rounds or elapsed >= self.timeout or stalled >= self.patience:
            return _AT_THE_END[self.give_up]
        return Decision.ANOTHER_ROUND


_AT_THE_END = {
    GiveUp.SWITCH_OVER: Decision.SWITCH_OVER,
    GiveUp.CANCEL: Decision.GIVE_UP,
    GiveUp.SLOW: Decision.SLOW_DOWN,
    GiveUp.KEEP: Decision.ANOTHER_ROUND,
}

#: What a guest that is slowed down keeps of its time, each time, and at least.
_SLOWER, _SLOWEST = 0.5, 0.01


class Pace:
    """The rounds of one migration, and the policy's decisions about them.

    A round is over when as much has gone as remained at its beginning.
    """

    def __init__(self, policy: Policy, min_rounds: int = 0) -> None:
        self._policy, self._min_rounds = policy, min_rounds
        self._began = time.monotonic()
        self._left = self._before = self._first = 0
        self._all_sent = False
        self._stalled = 0
        self._remaining = 0
        #: Middle images asked for, and rounds that are over.
        self.middle = self.rounds = 0
        #: What the guest keeps of its time.
        self.share = 1.0
        self._why = ""

    def begin(self, sent: int) -> None:
        """The first pass is over: ``sent`` bytes of the device's state."""
        self._first = sent

    def decide(self, now: Measured) -> Decision:
        """What to do next; counts what remains."""
        self._remaining = now.all_bytes
        if not self.middle:
            self._left = self._before = now.all_bytes
            # What is known as initial bytes has gone; what a chunk had no room for has not.
            self._all_sent = now.remaining_bytes <= self._first
        elif self._left <= 0:
            self.rounds += 1
            self._all_sent = True
            self._stalled = self._stalled + 1 if now.all_bytes >= self._before else 0
            self._left = self._before = now.all_bytes
        elapsed = time.monotonic() - self._began
        found = self._policy.decide(now, self.rounds, elapsed, self._stalled, self._all_sent)
        if self.middle < self._min_rounds and found is Decision.SWITCH_OVER:
            found = Decision.ANOTHER_ROUND
        if found is Decision.SLOW_DOWN:
            found = self._slow_down(elapsed)
        if found is Decision.SWITCH_OVER and predicted_downtime(now) > self._policy.downtime_limit:
            self._why = self._reason(now)
        self.middle += 1
        return found

    def stands(self, now: Measured) -> bool:
        """Whether a decision to switch over still holds by what is known now."""
        return bool(self._why) or predicted_downtime(now) <= self._policy.downtime_limit

    def _slow_down(self, elapsed: float) -> Decision:
        if self.share <= _SLOWEST or elapsed >= self._policy.timeout:
            return Decision.SWITCH_OVER
        self.share = max(self.share * _SLOWER, _SLOWEST)
        # What that brings is seen after a round.
        self._stalled = 0
        return Decision.SLOW_DOWN

    def went(self, moved: int) -> None:
        """``moved`` bytes have gone; none: there was nothing, so that the round is over."""
        self._left = self._left - moved if moved else 0

    def _reason(self, now: Measured) -> str:
        """Why the limit is not met."""
        if now.dirty_rate >= now.bandwidth > 0:
            return f"memory is written at {human(now.dirty_rate)}/s, {human(now.bandwidth)}/s can be moved"
        if self._stalled:
            return f"{self._stalled} rounds in a row left no less than before"
        if self.rounds >= self._policy.max_rounds:
            return f"{self.rounds} rounds were not enough"
        return f"{self._policy.timeout:g} s were not enough"

    def complaint(self, now: Measured) -> str:
        """Why it was given up."""
        return (
            f"the downtime would be {predicted_downtime(now) * 1e3:.0f} ms, over the limit of"
            f" {self._policy.downtime_limit * 1e3:.0f} ms, after {self.rounds} rounds:"
            f" {self._reason(now)}"
        )

    def notes(self, now: Measured) -> list[str]:
        """What is to be told of how it went."""
        found = []
        if self._why:
            found.append(
                f"switched over at a predicted downtime of {predicted_downtime(now) * 1e3:.0f} ms,"
                f" over the limit of {self._policy.downtime_limit * 1e3:.0f} ms: {self._why}"
            )
        if self.share < 1:
            found.append(f"the guest was slowed down to {self.share:.0%} of its time")
        return found
