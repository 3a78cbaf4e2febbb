"""Downtime with PRE_COPY against without: 300 MB of state, 1 % of the QPs active."""

import json
import subprocess
import sys

from benchmarks.figure import Figure

#: 60,000 pairs of contexts are 260 MB; 40 MB of bulk state beside them.
DEVICE = "sim:mlx5?qps=60000&active=600&rate=2000&state=40M"


def measure() -> list[Figure]:
    command = [
        sys.executable,
        "-m",
        "precopy",
        "migrate",
        "--json",
        "--compare",
        "--progress",
        "none",
    ]
    done = subprocess.run(
        [*command, DEVICE, "sim:mlx5"], capture_output=True, text=True, check=True
    )
    reports = json.loads(done.stdout)
    with_precopy, without = (report["downtime"] for report in reports)
    faults = sum(report["guest"]["faults"] for report in reports)
    size = reports[1]["device_bytes"]
    ratio = with_precopy / without
    told = f"{ratio:.3f} ({with_precopy * 1e3:.0f} ms against {without * 1e3:.0f} ms, {size / 1e6:.0f} MB)"
    return [
        Figure("downtime, PRE_COPY / without", told, "<= 0.15", ratio <= 0.15),
        Figure("guest's faults in both", str(faults), "0", not faults),
    ]
