"""QEMU's trace log, and the stages of a migration's downtime in it.

Both QEMUs run in one kernel and so by one clock: stages run from an event of the source to one of
the target.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from tests.interop.errors import PeerError

#: What is traced. Names with a star pass where a version of QEMU does not know the event.
PATTERNS = (
    "vmstate_downtime_checkpoint*",
    "vfio_migration_set_state*",
    "vfio_migration_set_device_state*",
    "vfio_save_block*",
    "vfio_save_complete_precopy*",
    "vfio_load_state*",
    "vfio_load_device_config_state*",
)

#: The time as QEMU 11 writes it, or process and time as QEMU 10 does.
_LINE = re.compile(r"(?:(\d{4}-\d\d-\d\dT\S+Z) |\d+@(\d+\.\d+):)(\w+)(?: +(.*))?")


@dataclass(frozen=True, slots=True)
class Event:
    """``time``: seconds since the epoch."""

    time: float
    name: str
    text: str


def parse(log: str) -> list[Event]:
    """The events of a log, in order; other lines in it are passed over."""
    found = (_LINE.fullmatch(line.rstrip()) for line in log.splitlines())
    return [Event(_time(line[1], line[2]), line[3], line[4] or "") for line in found if line]


def _time(written: str | None, seconds: str | None) -> float:
    return datetime.fromisoformat(written).timestamp() if written else float(seconds or 0)


#: What ends each stage of the downtime, in order: who, event, a part of its text.
_SOURCE, _TARGET = 0, 1
_STARTS = (_SOURCE, "vmstate_downtime_checkpoint", "src-downtime-start")
_STAGES = (
    ("suspend", _SOURCE, "vfio_migration_set_device_state", "state PRE_COPY_P2P"),
    ("stop", _SOURCE, "vmstate_downtime_checkpoint", "src-vm-stopped"),
    ("guest memory", _SOURCE, "vfio_save_complete_precopy_start", ""),
    ("final image", _SOURCE, "vfio_save_complete_precopy", ""),
    ("other devices", _SOURCE, "vmstate_downtime_checkpoint", "src-non-iterable-saved"),
    ("load", _TARGET, "vmstate_downtime_checkpoint", "dst-precopy-loadvm-completed"),
    ("resume", _TARGET, "vmstate_downtime_checkpoint", "dst-precopy-bh-vm-started"),
)

#: Spans that are the device's own: stage, who, event and text of the first and of the last.
_ASKED, _DONE = "vfio_migration_set_state", "vfio_migration_set_device_state"
_SAVED, _CONFIG = "vfio_save_complete_precopy", "vfio_load_device_config_state"
_SPANS = (
    ("suspend", _SOURCE, (_ASKED, "new state PRE_COPY_P2P"), (_DONE, "state PRE_COPY_P2P")),
    ("stop", _SOURCE, (_ASKED, "new state STOP_COPY"), (_DONE, "state STOP_COPY")),
    ("final image", _SOURCE, (_SAVED + "_start", ""), (_SAVED, "")),
    (
        "load",
        _TARGET,
        ("vfio_load_state", "0xffffffffef100004"),
        ("vfio_load_state_device_data", ""),
    ),
    ("PCI config", _TARGET, (_CONFIG + "_start", ""), (_CONFIG + "_end", "")),
    ("resume", _TARGET, (_ASKED, "new state RUNNING_P2P"), (_DONE, "state RUNNING_P2P")),
    ("resume", _TARGET, (_ASKED, "new state RUNNING,"), (_DONE, "state RUNNING")),
)


def _first(events: Iterable[Event], name: str, text: str, since: float) -> Event:
    for event in events:
        # State names are the ends of one another's texts: RUNNING, RUNNING_P2P.
        fits = event.text.endswith(text) if name == _DONE else text in event.text
        if event.time >= since and event.name == name and fits:
            return event
    raise PeerError(f"QEMU traced no {name} {text}".rstrip())


def stages(source: Sequence[Event], target: Sequence[Event]) -> dict[str, float]:
    """Seconds of each stage, from the first pause until the target runs. PeerError where
    an event that has to be in a log is not."""
    logs = (source, target)
    who, name, text = _STARTS
    at = _first(logs[who], name, text, 0.0).time
    found = {}
    for stage, who, name, text in _STAGES:
        ends = _first(logs[who], name, text, at).time
        found[stage] = ends - at
        at = ends
    return found


def device_part(source: Sequence[Event], target: Sequence[Event]) -> dict[str, float]:
    """Seconds of the downtime that arcs and images of the device took, by stage. PeerError, too."""
    logs = (source, target)
    who, name, text = _STARTS
    at = _first(logs[who], name, text, 0.0).time
    found: dict[str, float] = {}
    for stage, who, first, last in _SPANS:
        begins = _first(logs[who], *first, at).time
        ends = _first(logs[who], *last, begins).time
        found[stage] = found.get(stage, 0.0) + ends - begins
    return found


def images(source: Iterable[Event]) -> list[int]:
    """Bytes of the device's state that each read brought."""
    sizes = (
        int(event.text.rpartition(" ")[2]) for event in source if event.name == "vfio_save_block"
    )
    return [size for size in sizes if size]
