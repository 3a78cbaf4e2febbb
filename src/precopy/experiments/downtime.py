"""Downtime with and without PRE_COPY against the size of the state, stage by stage."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from precopy.experiments.moves import Case, Move, Moved, Mover, Tell, guests, raw, repeat
from precopy.experiments.result import Chart, Column, Curve, Result, Spread, Table

QUESTION = "How much shorter does a device stand still with PRE_COPY, and in which stage?"

PUBLISHED = (
    "published: 20-30 % less with PRE_COPY (Linux series of mlx5's PRE_COPY, V4, December 2022)",
    "published: 1900 -> 420 ms for a VF with 300 MB (QEMU's switchover-ack series, June 2023)",
    "published: 70-75 % less (virtio-vfio-pci's PRE_COPY, Linux commit 6cea64b1db88)",
)

#: A QP pair and its CQ, in bytes of the device's state.
_PAIR_BYTES = 4400

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """``sizes``: bytes of state that nothing changes; ``active``: percent as much in QP pairs that
    work; ``limit``: milliseconds of downtime that the policy goes for."""

    sizes: tuple[int, ...] = (16 * _MIB, 64 * _MIB, 256 * _MIB, 1024 * _MIB)
    active: float = 1.0
    rate: int = 2000
    limit: float = 50.0
    runs: int = 5

    def quick(self) -> Self:
        """Under 40 seconds."""
        return replace(self, sizes=(16 * _MIB, 128 * _MIB), runs=min(self.runs, 2))

    def device(self, size: int) -> str:
        pairs = max(16, round(size * self.active / 100 / _PAIR_BYTES))
        return f"sim:mlx5?state={size >> 20}M&qps={pairs}&active={pairs}&rate={self.rate}"

    def cases(self) -> list[Case]:
        return [
            Case(
                (label(size), way),
                Move(
                    self.device(size),
                    "sim:mlx5",
                    (*("--run-for", "0.3", "--downtime-limit", f"{self.limit:g}"), *options),
                ),
                self.runs,
            )
            for size in self.sizes
            for way, options in _WAYS.items()
        ]


def label(size: int) -> str:
    return f"{size >> 20}M"


#: What each way adds to the command.
_WAYS = {"stopped": ("--no-precopy",), "PRE_COPY": ()}


def run(settings: Settings, mover: Mover, tell: Tell) -> Result:
    """Carry it out. ExperimentError."""
    cases = settings.cases()
    found = repeat(cases, mover, tell)
    result = Result("downtime", QUESTION, asdict(settings))
    summary = Table(
        "Downtime",
        (
            Column("state", "state", "MiB"),
            Column("stopped", "without PRE_COPY", "ms"),
            Column("precopy", "with", "ms"),
            Column("less", "less", "%"),
            Column("total_stopped", "total, without", "s", 2),
            Column("total", "total, with", "s", 2),
        ),
    )
    curves = {way: Curve(way, []) for way in _WAYS}
    for size in settings.sizes:
        moved = {way: found[label(size), way] for way in _WAYS}
        downtimes = {way: Spread.of([m.downtime_ms for m in moved[way]]) for way in _WAYS}
        for way, spread in downtimes.items():
            curves[way].points.append((size / _MIB, spread))
        ratio = downtimes["PRE_COPY"].median / downtimes["stopped"].median
        summary.rows.append(
            {
                "state": size / _MIB,
                "stopped": downtimes["stopped"],
                "precopy": downtimes["PRE_COPY"],
                "less": 100 * (1 - ratio),
                "total_stopped": Spread.of([m.report["total_seconds"] for m in moved["stopped"]]),
                "total": Spread.of([m.report["total_seconds"] for m in moved["PRE_COPY"]]),
            }
        )
    largest = max(settings.sizes)
    result.tables = [
        summary,
        stages(largest, *(found[label(largest), way] for way in _WAYS)),
    ]
    result.charts = [
        Chart("Downtime", "bulk state (MiB)", "ms", list(curves.values()), log_x=True, log_y=True)
    ]
    result.notes = [
        guests(found),
        f"{settings.active:g} % as much state again is QP pairs that send messages, {settings.rate}"
        f" a second; the rest does not change",
        f"PRE_COPY goes on until {settings.limit:g} ms of downtime are predicted",
        *PUBLISHED,
    ]
    result.runs = raw(cases, found)
    return result


def stages(size: int, stopped: Sequence[Moved], precopy: Sequence[Moved]) -> Table:
    """Where the downtime goes; the medians of stages need not add up to that of the whole."""
    table = Table(
        f"Stage by stage, {size >> 20} MiB",
        (
            Column("stage", "stage"),
            Column("stopped", "without PRE_COPY", "ms", 1),
            Column("precopy", "with", "ms", 1),
        ),
    )
    names = dict.fromkeys(name for m in (*stopped, *precopy) for name in m.report["stages"])
    for name in names:
        table.rows.append(
            {
                "stage": name,
                "stopped": Spread.of([m.stage_ms(name) for m in stopped]),
                "precopy": Spread.of([m.stage_ms(name) for m in precopy]),
            }
        )
    return table
