"""What a migration did, as measured: its images, and where the downtime went."""

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from precopy.vfio.guest import GuestCounts

#: Longer tables of images are told in short.
_MOST_ROWS = 12


@dataclass(slots=True)
class Image:
    """One image: ``records`` is None where nobody knows the stream's records."""

    kind: str
    bytes: int = 0
    records: int | None = None
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Bytes a second."""
        return self.bytes / self.seconds if self.seconds else 0.0


@dataclass(slots=True)
class Report:
    """Seconds and bytes. The stages of ``downtime`` follow each other and add up to it."""

    source: str = ""
    target: str = ""
    precopy: bool = True
    outcome: str = ""
    images: list[Image] = field(default_factory=list)
    stages: dict[str, float] = field(default_factory=dict)
    memory_bytes: int = 0
    total_seconds: float = 0.0
    bandwidth: float = 0.0
    predicted_downtime: float = 0.0
    digest: str = ""
    rounds: int = 0
    guest: GuestCounts | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def downtime(self) -> float:
        return sum(self.stages.values())

    @property
    def device_bytes(self) -> int:
        return sum(image.bytes for image in self.images)

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self)
        found["downtime"] = self.downtime
        found["device_bytes"] = self.device_bytes
        for image, told in zip(self.images, found["images"], strict=True):
            told["rate"] = image.rate
        if self.guest is not None:
            found["guest"]["faults"] = self.guest.faults
        return found


def human(count: float) -> str:
    """``1.2 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


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
    lines = [
        f"{report.source} -> {report.target}: {report.outcome}",
        f"device state {human(report.device_bytes)}, guest memory {human(report.memory_bytes)},"
        f" {report.total_seconds:.2f} s, {human(report.bandwidth)}/s,"
        f" downtime {_milliseconds(report.downtime)}"
        f" (predicted {_milliseconds(report.predicted_downtime)})",
    ]
    if report.guest is not None:
        seen = report.guest
        lines.append(
            f"guest: {seen.sent} messages sent, {seen.received} received, {seen.lost} lost,"
            f" {seen.doubled} doubled, {seen.reordered} reordered, {seen.damaged} damaged,"
            f" {seen.failed} failed"
        )
    lines += report.notes
    return Group(_images(report), _downtime(report), Text("\n".join(lines)))


def show(report: Report, console: Console) -> None:
    console.print(render(report))
