"""What is to be expected of rounds of pre-copy, from four numbers that are known before the run.

A round sends what was written during the one before; it is over after (bytes / bandwidth) seconds.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

#: Rounds after which a model is taken never to end.
MOST_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """Bytes, and bytes a second; ``written`` counts each write of a page as a page's bytes.

    ``limit``: seconds of downtime at which a round is the last.
    """

    memory: int
    working_set: int
    written: float
    bandwidth: float
    limit: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """``rounds`` count the first pass over everything; None: it never ends. Seconds, bytes."""

    rounds: int | None
    seconds: float
    bytes: float
    downtime: float

    @property
    def ends(self) -> bool:
        return self.rounds is not None


def geometric(load: Load) -> Prediction:
    """The textbook's: a round leaves (written / bandwidth) times what it moved."""
    return _rounds(load, lambda seconds: load.written * seconds)


def saturating(load: Load) -> Prediction:
    """As :func:`geometric`, but a page that is written twice in a round is sent once.

    Writes that fall anywhere in the working set W dirty W * (1 - exp(-written / W)) bytes of it.
    """
    working = load.working_set
    return _rounds(load, lambda seconds: -working * math.expm1(-load.written * seconds / working))


def _rounds(load: Load, dirtied: Callable[[float], float]) -> Prediction:
    left, sent = float(load.memory), 0.0
    for rounds in range(1, MOST_ROUNDS + 1):
        sent += left
        left = dirtied(left / load.bandwidth)
        downtime = left / load.bandwidth
        if downtime <= load.limit:
            sent += left
            return Prediction(rounds, sent / load.bandwidth, sent, downtime)
        if sent > load.memory * MOST_ROUNDS:
            break
    return Prediction(None, math.inf, math.inf, downtime)


def cliff(load: Load) -> float:
    """The share of the bandwidth from which :func:`saturating` never ends.

    There the share x of the working set that is left, x = 1 - exp(-r x), is what the limit allows:
    r = -ln(1 - x) / x. Infinite where the whole working set fits the limit.
    """
    share = load.limit * load.bandwidth / load.working_set
    return -math.log1p(-share) / share if share < 1 else math.inf
