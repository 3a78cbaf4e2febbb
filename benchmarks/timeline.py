"""What a timeline costs: the same migration with one and without, alternately, and a million events.

A migration's time swings by half between runs, the downtime by more. What a timeline adds it adds to
every run, so that the best of several of each kind tell it apart from what the machine does besides.
"""

import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.figure import Figure
from precopy.engine.timeline import Notes

#: 2,000 pairs of contexts are 9 MB; 120 MB of bulk state beside them.
DEVICE = "sim:mlx5?qps=2000&active=100&rate=2000&state=120M"

_RUNS = 10
_EVENTS = 1_000_000


def _migrate(options: Sequence[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "precopy", "migrate", "--json", "--progress", "none"]
    command += ["--run-for", "0.1", *options, DEVICE, "sim:mlx5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def _of_migrations() -> list[Figure]:
    reports: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "t.json"
        for number in range(2 * _RUNS):
            noted = number % 2 == 0
            reports[noted].append(_migrate(["--timeline", str(file)] if noted else []))
    figures = []
    for key, name, bound in (("total_seconds", "total time", 1.2), ("downtime", "downtime", 1.25)):
        with_one, without = (
            min(report[key] for report in reports[noted]) for noted in (True, False)
        )
        ratio = with_one / without
        told = f"{ratio:.3f} ({with_one * 1e3:.0f} ms against {without * 1e3:.0f} ms)"
        figures.append(
            Figure(
                f"{name} with a timeline / without, best of {_RUNS}",
                told,
                f"<= {bound}",
                ratio <= bound,
            )
        )
    return figures


def _of_events() -> list[Figure]:
    """A million spans and points: what they leave in memory, and the time of each."""
    notes = Notes()
    began = time.perf_counter()
    for number in range(_EVENTS // 2):
        notes.span("firmware", "SAVE_VHCA_STATE", number, number + 0.5, bytes=number)
        notes.count("bytes", number, number)
    each = (time.perf_counter() - began) / _EVENTS
    notes = Notes()
    tracemalloc.start()
    for number in range(_EVENTS // 2):
        notes.span("firmware", "SAVE_VHCA_STATE", number, number + 0.5, bytes=number)
        notes.count("bytes", number, number)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    told = f"{size / 2**20:.1f} MiB, {each * 1e6:.2f} us each"
    return [Figure("timeline of a million events", told, "<= 8 MiB", size <= 8 << 20)]


def measure() -> list[Figure]:
    return _of_migrations() + _of_events()
