"""What is told while a migration runs."""

import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Protocol, TextIO

from precopy.engine.report import human

#: Seconds between two lines of the same phase.
_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Bytes, bytes a second, seconds."""

    phase: str
    bytes: int = 0
    rate: float = 0.0
    initial_bytes: int = 0
    dirty_bytes: int = 0
    predicted_downtime: float = 0.0


class Progress(Protocol):
    """Told of every phase, and now and then between."""

    def __call__(self, now: Snapshot) -> None: ...


def silent(now: Snapshot) -> None:
    """Tells nobody."""


def safely(progress: Progress) -> Progress:
    """``progress``, until it can't be told any more (a closed pipe, a full disk): no reason to fail."""
    listener = progress

    def tell(now: Snapshot) -> None:
        nonlocal listener
        try:
            listener(now)
        except (OSError, ValueError):
            listener = silent

    return tell


class _Paced:
    """Passes on every new phase, and inside a phase a snapshot now and then."""

    def __init__(self, pause: float) -> None:
        self._pause, self._phase, self._next = pause, "", 0.0

    def due(self, now: Snapshot) -> bool:
        moment = time.monotonic()
        if now.phase == self._phase and moment < self._next:
            return False
        self._phase, self._next = now.phase, moment + self._pause
        return True


def line(now: Snapshot) -> str:
    if not now.bytes:
        return now.phase
    told = f"{now.phase}: {human(now.bytes)}, {human(now.rate)}/s"
    if now.initial_bytes or now.dirty_bytes or now.predicted_downtime:
        told += (
            f", initial {human(now.initial_bytes)}, dirty {human(now.dirty_bytes)},"
            f" predicted downtime {now.predicted_downtime * 1e3:.0f} ms"
        )
    return told


class Lines:
    """A line of text each, for logs."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out, self._paced = out, _Paced(_PAUSE)

    def __call__(self, now: Snapshot) -> None:
        if self._paced.due(now):
            print(line(now), file=self._out, flush=True)


class JsonLines:
    """A JSON object a line, for programs."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out, self._paced = out, _Paced(_PAUSE)

    def __call__(self, now: Snapshot) -> None:
        if self._paced.due(now):
            print(json.dumps(asdict(now)), file=self._out, flush=True)
