"""What was measured in the lab, and how it is told: as JSON to the host, as tables to people."""

import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from tests.interop.guest import Registers

#: Engines, by what their columns are called; QEMU with its defaults, and as libvirt sets it up.
QEMU, QEMU_ACK, PRECOPY = "QEMU", "QEMU, acks", "precopy"


@dataclass(frozen=True, slots=True)
class Run:
    """One migration. Seconds and bytes.

    ``downtime`` runs from the first pause until the target runs, ``reported`` is the engine's own
    figure, ``device`` the share of it that arcs and images of the device took; ``ticks`` and
    ``disagreements`` are the guest's, where there is one: ticks before, and at the end.
    """

    engine: str
    images: list[int]
    stages: dict[str, float]
    device: dict[str, float]
    downtime: float
    reported: float
    total: float
    wanted: Registers
    found: Registers
    ticks: tuple[int, int] = (0, 0)
    disagreements: int = 0
    #: Of everything: memory, other devices.
    sent: int = 0


@dataclass(frozen=True, slots=True)
class Exchange:
    """State saved by one and loaded by the other. Images as hex digits."""

    by_qemu: list[str]
    saved_again: list[str]
    wanted_of_qemu: Registers
    found_of_qemu: Registers
    wanted_of_precopy: Registers
    found_of_precopy: Registers
    disagreements: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """All of it, with the versions of QEMU and of the kernel."""

    qemu: str
    kernel: str
    runs: list[Run]
    exchange: Exchange

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> "Comparison":
        found = json.loads(text)

        def known(fields: dict[str, Any], *names: str) -> dict[str, Any]:
            return {**fields, **{name: Registers(**fields[name]) for name in names}}

        runs = [
            Run(**{**known(run, "wanted", "found"), "ticks": tuple(run["ticks"])})
            for run in found["runs"]
        ]
        exchange = Exchange(
            **known(
                found["exchange"],
                *("wanted_of_qemu", "found_of_qemu", "wanted_of_precopy", "found_of_precopy"),
            )
        )
        return cls(found["qemu"], found["kernel"], runs, exchange)

    def of(self, engine: str) -> list[Run]:
        return [run for run in self.runs if run.engine == engine]


# --- Tables -------------------------------------------------------------------------------------

_ENGINES = (QEMU, QEMU_ACK, PRECOPY)

#: Stages by what they do: QEMU's name, precopy's names.
_STAGES = (
    ("suspend (P2P)", "suspend", ("suspend",)),
    ("stop, size", "stop", ("query and save",)),
    ("guest memory, last pass", "guest memory", ()),
    ("final image read", "final image", ()),
    ("other devices of the VM", "other devices", ()),
    ("transfer", None, ("transfer",)),
    ("validate, load", "load", ("validate", "load")),
    ("resume", "resume", ("resume",)),
    ("confirmed to the source", None, ("handover",)),
)

#: The device's own part: a stage is counted where both measure the same work.
_DEVICE = (
    ("suspend (P2P)", ("suspend",), ("suspend",)),
    ("stop", ("stop",), ("query and save",)),
    ("load", ("load",), ("validate", "load")),
    ("PCI config space", ("PCI config",), ()),
    ("resume", ("resume",), ("resume",)),
)


def _number(ms: float) -> str:
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:,.0f}"


def _ms(values: Iterable[float]) -> str:
    """Median and range, in ms."""
    found = sorted(value * 1e3 for value in values)
    if not found:
        return "-"
    return f"{_number(median(found))} ({_number(found[0])}-{_number(found[-1])})"


def _sums(
    runs: Sequence[Run], stages: Callable[[Run], dict[str, float]], names: Sequence[str]
) -> str:
    if not names:
        return "-"
    return _ms(sum(stages(run)[name] for name in names) for run in runs)


def _row(comparison: Comparison, cell: Callable[[list[Run]], str]) -> list[str]:
    return [cell(comparison.of(engine)) for engine in _ENGINES]


def _table(title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for engine in _ENGINES:
        table.add_column(engine, justify="right")
    return table


def _whole(comparison: Comparison) -> Table:
    table = _table("Migration of one mtty device", "figure")
    add: tuple[tuple[str, Callable[[list[Run]], str]], ...] = (
        ("runs", lambda runs: str(len(runs))),
        ("device state, bytes", lambda runs: str(sum(runs[0].images))),
        ("initial + final image", lambda runs: " + ".join(map(str, runs[0].images))),
        ("all sent, bytes", lambda runs: f"{runs[0].sent:,}" if runs[0].sent else "-"),
        ("reported downtime, ms", lambda runs: _ms(run.reported for run in runs)),
        ("until target runs, ms", lambda runs: _ms(run.downtime for run in runs)),
        ("total time, ms", lambda runs: _ms(run.total for run in runs)),
    )
    for name, cell in add:
        table.add_row(name, *_row(comparison, cell))
    return table


def _downtime(comparison: Comparison) -> Table:
    table = _table("Pause until the target runs, ms", "stage")
    for title, qemu, ours in _STAGES:
        cells = [
            _sums(
                comparison.of(engine),
                lambda run: run.stages,
                ours if engine == PRECOPY else (qemu,) if qemu else (),
            )
            for engine in _ENGINES
        ]
        table.add_row(title, *cells)
    table.add_section()
    table.add_row("in all", *_row(comparison, lambda runs: _ms(run.downtime for run in runs)))
    return table


def _device_part(comparison: Comparison) -> Table:
    table = _table("The device's own part of it, ms", "arc or image")
    for title, qemu, ours in _DEVICE:
        cells = [
            _sums(
                comparison.of(engine),
                lambda run: run.device,
                ours if engine == PRECOPY else qemu,
            )
            for engine in _ENGINES
        ]
        table.add_row(title, *cells)
    return table


def tables(comparison: Comparison) -> str:
    """The comparison for people: medians, with the least and the most in brackets."""
    same = comparison.exchange.by_qemu == comparison.exchange.saved_again
    text = (
        f"QEMU {comparison.qemu}, Linux {comparison.kernel} (User-Mode Linux, one processor).\n"
        "State saved by QEMU, loaded and saved again by precopy: "
        + ("the same bytes." if same else "OTHER BYTES.")
    )
    console = Console(file=io.StringIO(), width=100)
    console.print(
        Group(_whole(comparison), _downtime(comparison), _device_part(comparison), Text(text))
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
