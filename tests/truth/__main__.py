"""Is it true? A guest of full size moves from process to process at rates from idle to saturation.

    python -m tests.truth [--memory 1G] [--qps 1000]

Prints a row for each rate, and ends with status 1 where a page of memory is wrong or a message was
lost, doubled, reordered or damaged. ``make truth`` runs it.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from precopy.cli.common import size
from precopy.engine.report import human

#: What the guest does: messages a second of all QP pairs (0: no pause), and pages written a second.
RATES: dict[str, tuple[int, int]] = {
    "idle": (10, 0),
    "light": (500, 1_000),
    "heavy": (5_000, 50_000),
    # More than any machine can.
    "saturation": (0, 1_000_000_000),
}

#: Seconds that a migration may take on a slow machine.
PATIENCE = 300

_PAGE = 4096

Told = dict[str, Any]

COLUMNS: dict[str, Callable[[Told], str]] = {
    "rounds": lambda told: str(len(told["memory"]["rounds"])),
    "moved": lambda told: human(told["device_bytes"] + told["memory_bytes"]),
    "seconds": lambda told: f"{told['total_seconds']:.1f}",
    "predicted": lambda told: f"{told['predicted_downtime'] * 1e3:.0f} ms",
    "downtime": lambda told: f"{told['downtime'] * 1e3:.0f} ms",
    "wrong pages": lambda told: (
        f"{told['guest']['memory_wrong']} of {told['guest']['memory_pages']}"
    ),
    "messages": lambda told: str(told["guest"]["received"]),
    "faults": lambda told: str(told["guest"]["faults"] - told["guest"]["memory_wrong"]),
}


def command(rate: str, memory: int, qps: int, more: Sequence[str] = ()) -> list[str]:
    """The migration of one rate, as it is typed."""
    messages, writes = RATES[rate]
    source = f"sim:mlx5?qps={qps}&active={qps}&rate={messages}&memory={memory}&writes={writes}"
    return ["precopy", "migrate", source, "sim:mlx5", "--json", "--progress", "none", *more]


def run(typed: Sequence[str]) -> tuple[Told | None, list[str]]:
    """The report of a ``command``, and what went wrong where there is none, a line each."""
    argv = [sys.executable, "-m", *typed]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE, check=False)
    try:
        told: Told = json.loads(done.stdout)
    except ValueError:
        return None, done.stderr.splitlines() or [f"exit status {done.returncode}"]
    return told, []


def faults(told: Told, memory: int) -> list[str]:
    """What is wrong with a migration, a line each."""
    guest, found = told["guest"], []
    for name in ("lost", "doubled", "reordered", "damaged", "failed"):
        if guest[name]:
            found.append(f"{guest[name]} messages {name}")
    if not guest["sent"] or guest["sent"] != guest["received"]:
        found.append(f"{guest['sent']} messages sent, {guest['received']} received")
    if guest["memory_wrong"]:
        found.append(f"{guest['memory_wrong']} pages of memory wrong")
    if guest["memory_pages"] != memory // _PAGE:
        found.append(f"{guest['memory_pages']} pages were looked at, of {memory // _PAGE}")
    if not told["memory"]["tracking"]:
        found.append("memory was moved while all stood still")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--memory", type=size, default=1 << 30, help="its memory (default: 1G)")
    parser.add_argument("--qps", type=int, default=1000, help="active QP pairs (default: 1000)")
    parser.add_argument("migrate", nargs="*", help="options of precopy migrate, behind --")
    asked = parser.parse_args()
    print(f"{'rate':10}" + "".join(f"{name:>16}" for name in COLUMNS), flush=True)
    wrong = False
    for rate in RATES:
        told, found = run(command(rate, asked.memory, asked.qps, asked.migrate))
        if told is not None:
            found = faults(told, asked.memory)
            cells = "".join(f"{show(told):>16}" for show in COLUMNS.values())
            print(f"{rate:10}{cells}", flush=True)
        for line in found:
            print(f"{rate}: {line}", file=sys.stderr)
        wrong = wrong or bool(found)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
