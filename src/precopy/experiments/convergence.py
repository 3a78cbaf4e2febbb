"""Rounds, time, bytes and downtime against how fast a guest writes to its memory.

The bandwidth is fixed, so that machines agree. What two models say is computed before the first run.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Self

from precopy.experiments import models
from precopy.experiments.models import Load, Prediction
from precopy.experiments.moves import Case, Move, Moved, Mover, Tell, guests, raw, repeat
from precopy.experiments.result import Cell, Chart, Column, Curve, Result, Spread, Table

QUESTION = (
    "How many rounds does pre-copy take as a guest writes faster, and from where on is it no use?"
)

PUBLISHED = (
    "published, channel of 16 Gb/s (device-assisted live migration of RDMA devices, SOSP 2025):",
    "  1 Gb/s (6 %) 5.6 rounds and 31 s, 15 Gb/s (94 %) 46.4 rounds and 99.7 s, 18 Gb/s (112 %)"
    " never converges",
)

_MIB = 1 << 20
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Point:
    """``load``: percent of the bandwidth that is written; ``limit``: ms; ``working``: percent of the
    memory that is written."""

    load: float
    limit: float
    working: int


@dataclass(frozen=True, slots=True)
class Settings:
    """``bandwidth``: bytes a second; ``loads``: percent of it; ``limit``: milliseconds.

    ``others``: points beside those of ``loads``, which show what sets the number of rounds.
    """

    memory: int = 48 * _MIB
    bandwidth: int = 64 * _MIB
    loads: tuple[float, ...] = (6.25, 25, 50, 75, 87.5, 93.75, 100, 112.5, 120)
    limit: float = 50.0
    working: int = 100
    others: tuple[Point, ...] = (
        Point(93.75, 100.0, 100),
        Point(93.75, 200.0, 100),
        Point(93.75, 50.0, 25),
    )
    max_rounds: int = 200
    #: Seconds after which a migration is given up.
    timeout: float = 8.0
    runs: int = 5

    def quick(self) -> Self:
        """Under 40 seconds."""
        return replace(
            self,
            memory=self.memory // 2,
            loads=(6.25, 50, 93.75, 120),
            others=(),
            runs=min(self.runs, 2),
        )

    def points(self) -> list[Point]:
        return [Point(load, self.limit, self.working) for load in self.loads]

    def load(self, point: Point) -> Load:
        """What the models are told."""
        return Load(
            memory=self.memory,
            working_set=self.memory * point.working // 100,
            written=self.writes(point) * _PAGE,
            bandwidth=self.bandwidth,
            limit=point.limit / 1e3,
        )

    def writes(self, point: Point) -> int:
        """Pages a second."""
        return round(self.bandwidth * point.load / 100 / _PAGE)

    def case(self, point: Point) -> Case:
        device = (
            f"sim:mlx5?memory={self.memory >> 20}M&writes={self.writes(point)}"
            f"&working={point.working}&qps=16&rate=200"
        )
        options = (
            *("--max-bandwidth", str(self.bandwidth), "--downtime-limit", f"{point.limit:g}"),
            *("--give-up", "cancel", "--max-rounds", str(self.max_rounds), "--run-for", "0.3"),
            *("--timeout", f"{self.timeout:g}"),
        )
        key = (f"{point.load:g} %", f"{point.limit:g} ms", f"{point.working} %")
        return Case(key, Move(device, "sim:mlx5", options, may_give_up=True), self.runs)


def run(settings: Settings, mover: Mover, tell: Tell) -> Result:
    """Carry it out. ExperimentError."""
    points = settings.points()
    # Before the first run: a model that is fitted to the results predicts nothing.
    predicted = {
        point: (models.geometric(settings.load(point)), models.saturating(settings.load(point)))
        for point in (*points, *settings.others)
    }
    cases = {point: settings.case(point) for point in predicted}
    found = repeat(list(cases.values()), mover, tell)
    moved = {point: found[case.key] for point, case in cases.items()}
    result = Result("convergence", QUESTION, asdict(settings))
    cliff = result.settings["cliff_percent"] = _cliff(settings)
    result.tables = [
        _table("Rounds", (_LOAD, *_ROUNDS), points, predicted, moved),
        _table("Time, bytes, downtime", (_LOAD, *_TIMES), points, predicted, moved),
    ]
    if settings.others:
        like = next((p for p in points if p.load == settings.others[0].load), None)
        shown = [*([like] if like else []), *settings.others]
        title = "What sets the number of rounds"
        columns = (*_SETS, *_ROUNDS, _TIMES[1])
        result.tables.append(_table(title, columns, shown, predicted, moved))
    result.charts = _charts(settings, points, moved)
    result.notes = [
        guests(found),
        f"{settings.memory >> 20} MiB of memory at {settings.bandwidth / _MIB:g} MiB/s; rounds count"
        " the first pass over all memory, and not what is sent while the guest stands still",
        "the saturating model has no cliff: the limit allows for the whole working set"
        if cliff is None
        else f"cliff of the saturating model: {cliff:.0f} % of the bandwidth",
        *PUBLISHED,
    ]
    result.runs = raw(list(cases.values()), found)
    return result


def _cliff(settings: Settings) -> float | None:
    """Percent of the bandwidth; None: there is none."""
    found = models.cliff(settings.load(Point(100, settings.limit, settings.working)))
    return 100 * found if math.isfinite(found) else None


_LOAD = Column("load", "load", "%", 2)
_ROUNDS = (
    Column("geometric", "rounds, geometric"),
    Column("saturating", "saturating"),
    Column("rounds", "measured"),
    Column("gave_up", "runs given up"),
)
_TIMES = (
    Column("seconds_model", "total, saturating", "s", 1),
    Column("seconds", "measured", "s", 1),
    Column("bytes_model", "bytes, saturating", "MiB"),
    Column("bytes", "measured", "MiB"),
    Column("downtime_model", "downtime, saturating", "ms"),
    Column("downtime", "measured", "ms"),
)
_SETS = (_LOAD, Column("limit", "limit", "ms"), Column("working", "working set", "%"))


def rounds_of(moved: Moved) -> int:
    """Passes while the guest ran."""
    if moved.given_up is not None:
        return moved.given_up.rounds + 1
    # The last one was made while it stood still.
    return len(moved.report["memory"]["rounds"]) - 1


def _table(
    title: str,
    columns: tuple[Column, ...],
    points: Sequence[Point],
    predicted: dict[Point, tuple[Prediction, Prediction]],
    moved: dict[Point, list[Moved]],
) -> Table:
    table = Table(title, columns)
    for point in points:
        geometric, saturating = predicted[point]
        through = [each for each in moved[point] if each.given_up is None]
        gave_up = len(moved[point]) - len(through)
        row: dict[str, Cell] = {
            "load": point.load,
            "limit": point.limit,
            "working": point.working,
            "geometric": geometric.rounds if geometric.ends else "never",
            "saturating": saturating.rounds if saturating.ends else "never",
            "rounds": Spread.of([rounds_of(each) for each in through or moved[point]]),
            "gave_up": gave_up,
        }
        if saturating.ends:
            row["seconds_model"] = saturating.seconds
            row["bytes_model"] = saturating.bytes / _MIB
            row["downtime_model"] = saturating.downtime * 1e3
        if through:
            row["seconds"] = Spread.of([m.report["total_seconds"] for m in through])
            row["bytes"] = Spread.of([m.report["memory_bytes"] / _MIB for m in through])
            row["downtime"] = Spread.of([m.downtime_ms for m in through])
        table.rows.append(row)
    return table


def _charts(
    settings: Settings, points: Sequence[Point], moved: dict[Point, list[Moved]]
) -> list[Chart]:
    rounds, seconds = [], []
    for point in points:
        through = [each for each in moved[point] if each.given_up is None]
        if through:
            rounds.append((point.load, Spread.of([float(rounds_of(each)) for each in through])))
            seconds.append((point.load, Spread.of([m.report["total_seconds"] for m in through])))
    cliff = _cliff(settings)
    marks = [] if cliff is None else [(cliff, "cliff, predicted")]
    lost = [point.load for point in points if all(each.given_up for each in moved[point])]
    if lost:
        marks.append((min(lost), "every run given up"))
    x = "load (% of the bandwidth)"
    charts = [
        Chart("Rounds", x, "rounds", [Curve("measured", rounds)], marks),
        Chart("Total time", x, "s", [Curve("measured", seconds)], marks),
    ]
    loads = [point.load for point in points]
    for name, model in (("geometric", models.geometric), ("saturating", models.saturating)):
        curves: tuple[list[tuple[float, Spread]], list[tuple[float, Spread]]] = ([], [])
        for load in _grid(min(loads), max(loads)):
            told = model(settings.load(Point(load, settings.limit, settings.working)))
            # Near its cliff a model's curve leaves every chart.
            if told.rounds is not None and told.rounds <= _MOST_DRAWN:
                curves[0].append((load, Spread.of([told.rounds])))
                curves[1].append((load, Spread.of([told.seconds])))
        for chart, curve in zip(charts, curves, strict=True):
            chart.curves.append(Curve(f"{name}, predicted", curve, predicted=True))
    return charts


_MOST_DRAWN = 60


def _grid(low: float, high: float, count: int = 120) -> list[float]:
    return [low + (high - low) * index / count for index in range(count + 1)]
