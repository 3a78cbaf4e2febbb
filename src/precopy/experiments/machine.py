"""Where a figure was measured, and when: without that it can't be compared."""

import datetime
import os
import platform
import shlex
from collections.abc import Sequence
from typing import Any


def facts(command: Sequence[str]) -> dict[str, Any]:
    """The machine now; ``command``: the words that repeat the experiment."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": [round(each, 2) for each in os.getloadavg()],
        "kernel": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


def line(told: dict[str, Any]) -> str:
    """The same in a line for people."""
    return (
        f"{told['date']}: {told['cores']} cores, {told['memory_bytes'] >> 30} GiB, load"
        f" {told['load'][0]} at the beginning, {told['kernel']} {told['machine']},"
        f" {told['python']}"
    )
