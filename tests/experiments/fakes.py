"""Migrations that did not happen: reports as an engine would give them."""

import re
from typing import Any

from precopy.experiments.models import Load, saturating
from precopy.experiments.moves import GivenUp, Move, Moved


def report(
    downtime: float = 0.01, *, faults: int = 0, rounds: tuple[int, ...] = (100, 50, 10)
) -> dict[str, Any]:
    """Seconds; what an experiment looks at of a report."""
    return {
        "downtime": downtime,
        "stages": {"transfer": downtime / 2, "load": downtime / 4, "resume": downtime / 4},
        "total_seconds": 1.0 + downtime,
        "bandwidth": 1e6,
        "rounds": len(rounds) - 2,
        "device_bytes": 2_000_000,
        "memory_bytes": sum(rounds),
        "memory": {"rounds": list(rounds)},
        "guest": {"sent": 10, "faults": faults, "memory_pages": 3},
        "images": ["left out"],
    }


def parameter(name: str, key: str, unit: str = "") -> int:
    """What the name of a device says of ``key``."""
    found = re.search(rf"[?&]{key}=(\d+){unit}", name)
    assert found, f"{name} says nothing of {key}"
    return int(found[1])


def option(move: Move, name: str) -> float:
    return float(move.options[move.options.index(name) + 1])


class AsPredicted:
    """Moves memory as the saturating model says, to the round."""

    def __init__(self) -> None:
        self.moves: list[Move] = []

    def __call__(self, move: Move) -> Moved:
        self.moves.append(move)
        memory = parameter(move.source, "memory", "M") << 20
        load = Load(
            memory=memory,
            working_set=memory * parameter(move.source, "working") // 100,
            written=parameter(move.source, "writes") * 4096,
            bandwidth=option(move, "--max-bandwidth"),
            limit=option(move, "--downtime-limit") / 1e3,
        )
        told = saturating(load)
        if told.rounds is None:
            assert move.may_give_up
            return Moved(given_up=GivenUp(told.downtime, 7))
        return Moved(report(told.downtime, rounds=(1,) * (told.rounds + 1)))
