"""Moves a device between two processes, as ``precopy migrate`` does: it is that command."""

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from precopy.engine.outcome import ExitStatus

#: Seconds that a command has to end by itself once told to.
_END = 15.0

#: What it says where the policy has given up (``Pace.complaint``).
_GAVE_UP = re.compile(r"the downtime would be (\d+) ms, .* after (\d+) rounds")

#: What is kept of a report; its images would be most of it.
_KEPT = (
    *("downtime", "stages", "total_seconds", "bandwidth", "rounds"),
    *("device_bytes", "memory_bytes", "memory", "predicted_downtime", "guest", "notes"),
)


class ExperimentError(Exception):
    """One line; ``status``: what to exit with."""

    def __init__(self, text: str, status: ExitStatus = ExitStatus.FAILED) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Move:
    """One migration: the devices, and the options of ``precopy migrate``.

    ``may_give_up``: that the policy gives up is a finding and no failure.
    """

    source: str
    target: str
    options: tuple[str, ...] = ()
    may_give_up: bool = False

    @property
    def arguments(self) -> list[str]:
        return ["migrate", self.source, self.target, "--json", "--progress", "none", *self.options]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """What the policy said as it gave up: seconds, rounds."""

    predicted_downtime: float
    rounds: int


@dataclass(frozen=True, slots=True)
class Moved:
    """``report`` is the engine's; empty where the policy gave up, then ``given_up`` says how."""

    report: dict[str, Any] = field(default_factory=dict)
    given_up: GivenUp | None = None

    @property
    def downtime_ms(self) -> float:
        return float(self.report["downtime"]) * 1e3

    def stage_ms(self, name: str) -> float:
        return float(self.report["stages"].get(name, 0.0)) * 1e3

    def to_dict(self) -> dict[str, Any]:
        if self.given_up is not None:
            given_up = self.given_up
            return {
                "gave_up": {
                    "predicted_downtime": given_up.predicted_downtime,
                    "rounds": given_up.rounds,
                }
            }
        return {key: self.report[key] for key in _KEPT if key in self.report}


def move(wanted: Move) -> Moved:
    """Carry it out. ExperimentError where it fails, or where the guest counted a fault."""
    process = subprocess.Popen(
        [sys.executable, "-m", "precopy", *wanted.arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        said, complained = process.communicate()
    except BaseException:
        _stop(process)
        raise
    return read(wanted, process.returncode, said, complained)


def _stop(process: subprocess.Popen[str]) -> None:
    """Cancel it; its device and its guest are thrown away."""
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.communicate(timeout=_END)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def read(wanted: Move, status: int, said: str, complained: str) -> Moved:
    """What a command that has ended with ``status`` found. ExperimentError as :func:`move`."""
    lines = complained.strip().splitlines()
    last = lines[-1].removeprefix("precopy: ") if lines else f"it ended with status {status}"
    where = f"{wanted.source} -> {wanted.target}"
    gave_up = _GAVE_UP.search(last)
    if status == ExitStatus.CANCELLED and gave_up and wanted.may_give_up:
        if " 0 faults" not in last:
            raise ExperimentError(f"{where}: {last}", ExitStatus.GUEST_FAULTS)
        return Moved(given_up=GivenUp(int(gave_up[1]) / 1e3, int(gave_up[2])))
    if status != ExitStatus.OK:
        known = status in ExitStatus.__members__.values()
        raise ExperimentError(
            f"{where}: {last}", ExitStatus(status) if known else ExitStatus.FAILED
        )
    try:
        report = json.loads(said)
        guest = report["guest"]
        faults = guest["faults"] if guest else None
    except (ValueError, TypeError, KeyError) as error:
        raise ExperimentError(f"{where}: its report can't be read: {error!r}") from error
    if faults:
        raise ExperimentError(
            f"{where}: the guest counted {faults} faults", ExitStatus.GUEST_FAULTS
        )
    if guest is None:
        raise ExperimentError(f"{where}: no guest was there to see whether anything was lost")
    return Moved(report)


@dataclass(frozen=True, slots=True)
class Case:
    """``move``, to be repeated ``runs`` times; ``key`` is its name in the results."""

    key: tuple[Any, ...]
    move: Move
    runs: int


Mover = Callable[[Move], Moved]
Tell = Callable[[str], object]


def repeat(cases: Sequence[Case], mover: Mover, tell: Tell) -> dict[tuple[Any, ...], list[Moved]]:
    """Each case as often as it says, in turn: what the machine does meanwhile falls on all alike."""
    found: dict[tuple[Any, ...], list[Moved]] = {case.key: [] for case in cases}
    total = sum(case.runs for case in cases)
    done = 0
    for number in range(max((case.runs for case in cases), default=0)):
        for case in cases:
            if number < case.runs:
                done += 1
                tell(f"{done} of {total}: {' '.join(map(str, case.key))}")
                found[case.key].append(mover(case.move))
    return found


def raw(cases: Sequence[Case], found: dict[tuple[Any, ...], list[Moved]]) -> list[dict[str, Any]]:
    """Every run, for those who want to compute something else."""
    return [
        {"arguments": case.move.arguments, **moved.to_dict()}
        for case in cases
        for moved in found[case.key]
    ]


def guests(found: dict[tuple[Any, ...], list[Moved]]) -> str:
    """What the guests saw, in a line."""
    runs = [moved for each in found.values() for moved in each]
    sent = sum(moved.report["guest"]["sent"] for moved in runs if moved.report)
    pages = sum(moved.report["guest"].get("memory_pages", 0) for moved in runs if moved.report)
    checked = f", {pages:,} pages of memory checked" if pages else ""
    return f"{len(runs)} migrations, {sent:,} messages of guests{checked}: 0 faults"
