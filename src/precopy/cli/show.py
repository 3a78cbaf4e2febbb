"""What people see of a migration: the display while it runs, the tables after it."""

from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from precopy.cli.common import memory_of
from precopy.engine.progress import Snapshot
from precopy.engine.report import Image, MemoryReport, Report, human

#: Longer tables of images are told in short.
_MOST_ROWS = 12


class Display:
    """A display that stays in its place, for terminals. Used as a context."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, transient=True, refresh_per_second=8)

    def __enter__(self) -> "Display":
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.__exit__(None, None, None)

    def __call__(self, now: Snapshot) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_row("phase", now.phase)
        table.add_row("sent", f"{human(now.bytes)} at {human(now.rate)}/s")
        table.add_row("initial", human(now.initial_bytes))
        table.add_row("dirty", human(now.dirty_bytes))
        table.add_row("predicted downtime", f"{now.predicted_downtime * 1e3:.0f} ms")
        self._live.update(table)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _images(report: Report) -> Table:
    table = Table(title="Images", title_justify="left")
    for name in ("image", "bytes", "records", "seconds", "rate"):
        table.add_column(name, justify="left" if name == "image" else "right")
    rows = report.images
    if len(rows) > _MOST_ROWS:
        middle = rows[1:-1]
        whole = Image(f"middle 1 to {len(middle)}", records=0)
        for image in middle:
            whole.bytes += image.bytes
            whole.seconds += image.seconds
            both = whole.records is not None and image.records is not None
            whole.records = (whole.records or 0) + (image.records or 0) if both else None
        rows = [rows[0], whole, rows[-1]]
    for image in rows:
        records = "-" if image.records is None else str(image.records)
        table.add_row(
            image.kind,
            f"{image.bytes:,}",
            records,
            f"{image.seconds:.3f}",
            f"{human(image.rate)}/s",
        )
    return table


def _memory(memory: MemoryReport) -> Table:
    table = Table(title="Guest memory", title_justify="left")
    table.add_column("round")
    table.add_column("pages moved", justify="right")
    rounds = [(str(number), count) for number, count in enumerate(memory.rounds, 1)]
    if rounds:
        rounds[-1] = ("stopped", rounds[-1][1])
    if len(rounds) > _MOST_ROWS:
        between = rounds[1:-1]
        whole = (f"2 to {len(between) + 1}", sum(count for _, count in between))
        rounds = [rounds[0], whole, rounds[-1]]
    for name, count in rounds:
        table.add_row(name, human(count))
    table.add_section()
    table.add_row("sent", human(memory.sent_bytes))
    table.add_row("zeroes", human(memory.zero_bytes))
    return table


def _memory_line(memory: MemoryReport) -> str:
    if not memory.tracking:
        return f"guest memory: {human(memory.size)}, moved while stopped"
    return (
        f"guest memory: {human(memory.size)}, what is written told by: {memory.tracking};"
        f" written at {human(memory.dirty_rate)}/s"
    )


def _downtime(report: Report) -> Table:
    table = Table(title="Downtime", title_justify="left")
    table.add_column("stage")
    table.add_column("time", justify="right")
    for name, seconds in report.stages.items():
        table.add_row(name, _milliseconds(seconds))
    table.add_section()
    table.add_row("in all", _milliseconds(report.downtime))
    return table


def render(report: Report) -> Group:
    """The report for people."""
    predicted = ""
    if report.predicted_downtime:
        predicted = f" (predicted {_milliseconds(report.predicted_downtime)})"
    lines = [
        f"{report.source} -> {report.target}: {report.outcome}",
        f"device state {human(report.device_bytes)}, guest memory {human(report.memory_bytes)},"
        f" {report.total_seconds:.2f} s, {human(report.bandwidth)}/s,"
        f" downtime {_milliseconds(report.downtime)}{predicted}",
    ]
    if report.guest is not None:
        seen = report.guest
        lines.append(
            f"guest: {seen.sent} messages sent, {seen.received} received, {seen.lost} lost,"
            f" {seen.doubled} doubled, {seen.reordered} reordered, {seen.damaged} damaged,"
            f" {seen.failed} failed{memory_of(seen)}"
        )
    memory = report.memory
    if memory is not None:
        lines.append(_memory_line(memory))
    lines += report.notes
    tables = [_images(report)]
    if memory is not None and memory.tracking:
        tables.append(_memory(memory))
    return Group(*tables, _downtime(report), Text("\n".join(lines)))


def show(report: Report, console: Console) -> None:
    console.print(render(report))


def _side_by_side(with_precopy: Report, without: Report) -> Table:
    table = Table(title="PRE_COPY and without", title_justify="left")
    for name in ("stage of the downtime", "with PRE_COPY", "without", "ratio"):
        table.add_column(name, justify="left" if name.startswith("stage") else "right")
    rows = {
        name: (with_precopy.stages.get(name, 0.0), without.stages.get(name, 0.0))
        for name in without.stages
    }
    for name, (one, other) in rows.items():
        table.add_row(name, f"{one * 1e3:.1f} ms", f"{other * 1e3:.1f} ms", "")
    one, other = with_precopy.downtime, without.downtime
    table.add_section()
    table.add_row(
        "in all",
        f"{one * 1e3:.1f} ms",
        f"{other * 1e3:.1f} ms",
        f"{one / other:.2f}" if other else "",
    )
    return table


def display_on_stderr() -> Display:
    return Display(Console(stderr=True))


def reports(found: Sequence[Report]) -> None:
    """Each report; two of them side by side as well."""
    console = Console()
    for report in found:
        show(report, console)
    if len(found) == 2:
        console.print(_side_by_side(*found))
