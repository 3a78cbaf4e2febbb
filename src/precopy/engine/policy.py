"""When to switch over: while the source pays for one more round, and when it gives up."""

import enum
from dataclasses import dataclass


class GiveUp(enum.Enum):
    """What to do when the limit can't be met."""

    SWITCH_OVER = "switchover"
    CANCEL = "cancel"


class Decision(enum.Enum):
    ANOTHER_ROUND = enum.auto()
    SWITCH_OVER = enum.auto()
    GIVE_UP = enum.auto()


@dataclass(frozen=True, slots=True)
class Measured:
    """What the source knows so far. Bytes and seconds; rates in bytes a second, 0 if not measured."""

    remaining_bytes: int
    bandwidth: float
    load_rate: float
    #: What a switchover costs even with nothing to move.
    fixed: float


def predicted_downtime(now: Measured) -> float:
    """Seconds: fixed costs, moving what remains, and what loading takes longer than moving.

    The target loads while it receives, so only the part that loading is slower by counts.
    """
    transfer = now.remaining_bytes / now.bandwidth if now.bandwidth else 0.0
    load = now.remaining_bytes / now.load_rate if now.load_rate else 0.0
    return now.fixed + max(transfer, load)


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
            give_up = self.give_up is GiveUp.CANCEL
            return Decision.GIVE_UP if give_up else Decision.SWITCH_OVER
        return Decision.ANOTHER_ROUND
