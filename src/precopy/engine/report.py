"""What a migration did, as measured: its images, and where the downtime went."""

from dataclasses import asdict, dataclass, field
from typing import Any

from precopy.vfio.guest import GuestCounts


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
class MemoryReport:
    """Guest memory: bytes, seconds, bytes a second."""

    size: int = 0
    #: Who tells what was written while it runs; empty: nobody, all of it was moved while stopped.
    tracking: str = ""
    #: Bytes of pages that each round had to move; the last one while everything stood still.
    rounds: list[int] = field(default_factory=list)
    #: Bytes of pages that were sent, and of those that were zeroes.
    sent_bytes: int = 0
    zero_bytes: int = 0
    #: How fast pages were written in the last round before the switchover.
    dirty_rate: float = 0.0
    collect_seconds: float = 0.0


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
    memory: MemoryReport | None = None
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
