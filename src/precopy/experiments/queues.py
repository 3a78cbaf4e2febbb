"""Downtime against the number of QPs, with and without room made ahead at the target."""

from dataclasses import asdict, dataclass, replace
from typing import Self

from precopy.experiments.moves import Case, Move, Mover, Tell, guests, raw, repeat
from precopy.experiments.result import Cell, Chart, Column, Curve, Result, Spread, Table

QUESTION = "How much does it save that a target makes room for the QPs before the device stops?"

PUBLISHED = (
    "published: 25 % less downtime with allocation ahead at 100 QPs, 75 % less at 100,000"
    " (device-assisted live migration of RDMA devices, SOSP 2025)",
    "published: 100,000 QPs are 395 MB of state, loaded in 2.5 s (the same)",
)

#: From how many pairs on a run takes so long that there are only so many.
_LARGE, _LARGE_RUNS = 50_000, 2


@dataclass(frozen=True, slots=True)
class Settings:
    """``pairs``: numbers of QP pairs; ``active`` of them send ``rate`` messages a second."""

    pairs: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    active: int = 64
    rate: int = 2000
    limit: float = 50.0
    runs: int = 5

    def quick(self) -> Self:
        """Under 40 seconds."""
        return replace(self, pairs=(100, 1_000, 5_000), runs=min(self.runs, 2))

    def cases(self) -> list[Case]:
        found = []
        for pairs in self.pairs:
            device = f"sim:mlx5?qps={pairs}&active={min(self.active, pairs)}&rate={self.rate}"
            runs = min(self.runs, _LARGE_RUNS) if pairs >= _LARGE else self.runs
            for way, (target, options) in WAYS.items():
                options = ("--run-for", "0.3", "--downtime-limit", f"{self.limit:g}", *options)
                found.append(Case((pairs, way), Move(device, target, options), runs))
        return found


#: Each way: the target, and what it adds to the command. Nothing ahead; contexts ahead (the images
#: of PRE_COPY); contexts, and the final image's buffer (the record STOP_COPY_SIZE).
WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "nothing ahead": ("sim:mlx5?ahead=0", ("--no-precopy",)),
    "contexts ahead": ("sim:mlx5?ahead=0", ()),
    "contexts and buffer ahead": ("sim:mlx5", ()),
}


def run(settings: Settings, mover: Mover, tell: Tell) -> Result:
    """Carry it out. ExperimentError."""
    cases = settings.cases()
    found = repeat(cases, mover, tell)
    nothing, contexts, both = WAYS
    table = Table(
        "Downtime",
        (
            Column("pairs", "QP pairs"),
            Column("state", "state", "MB", 1),
            Column("runs", "runs"),
            Column(nothing, nothing, "ms"),
            Column(contexts, contexts, "ms"),
            Column(both, "and the buffer", "ms"),
            Column("less", "less", "%"),
            Column("by_buffer", "by the buffer", "ms", 1),
        ),
    )
    split = Table(
        "Without anything ahead: what the target's load is of it",
        (
            Column("pairs", "QP pairs"),
            Column("load", "load", "ms", 1),
            Column("transfer", "transfer", "ms", 1),
            Column("rest", "the rest", "ms", 1),
        ),
    )
    curves = {way: Curve(way, []) for way in WAYS}
    for pairs in settings.pairs:
        row: dict[str, Cell] = {"pairs": pairs}
        spreads = {}
        for way in WAYS:
            spreads[way] = Spread.of([m.downtime_ms for m in found[pairs, way]])
            curves[way].points.append((pairs, spreads[way]))
        stopped = found[pairs, nothing]
        row |= spreads
        row["runs"] = len(stopped)
        row["state"] = Spread.of([m.report["device_bytes"] / 1e6 for m in stopped])
        row["less"] = 100 * (1 - spreads[both].median / spreads[nothing].median)
        row["by_buffer"] = spreads[contexts].median - spreads[both].median
        table.rows.append(row)
        split.rows.append(
            {
                "pairs": pairs,
                "load": Spread.of([m.stage_ms("load") for m in stopped]),
                "transfer": Spread.of([m.stage_ms("transfer") for m in stopped]),
                "rest": Spread.of(
                    [m.downtime_ms - m.stage_ms("load") - m.stage_ms("transfer") for m in stopped]
                ),
            }
        )
    result = Result("queues", QUESTION, asdict(settings))
    result.tables = [table, split]
    result.charts = [
        Chart("Downtime", "QP pairs", "ms", list(curves.values()), log_x=True, log_y=True)
    ]
    result.notes = [
        guests(found),
        f"{settings.active} pairs at most send messages, {settings.rate} a second in all",
        "a pair is two QPs and a CQ",
        *PUBLISHED,
    ]
    result.runs = raw(cases, found)
    return result
