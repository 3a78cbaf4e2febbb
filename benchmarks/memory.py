"""The target's peak memory above the device's own state, in chunk mode."""

import json
import os
import resource
import subprocess
import sys

from benchmarks.figure import Figure

_MIB = 1 << 20
STATES = {"64M": 64 * _MIB, "5G": 5 << 30}

#: Runs in the target's process: migrates into it from a source of its own, then tells its peak.
_TARGET = """
import sys
from precopy.backends import open_device
from precopy.engine import address as addresses
from precopy.engine.channel import Channel
from precopy.engine.target import receive

listening = addresses.Listening(addresses.parse("tcp://127.0.0.1:0"))
opened = open_device("sim:mlx5", target=True)
print(listening.address, flush=True)
received = receive(opened, Channel(listening.accept()))
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print(int(peak) * 1024, flush=True)
"""


def _peak(state: str) -> tuple[int, int]:
    """Peak resident bytes of the target, and the images' bytes."""
    with subprocess.Popen(
        [sys.executable, "-c", _TARGET], stdout=subprocess.PIPE, text=True
    ) as target:
        assert target.stdout is not None
        address = target.stdout.readline().strip()
        command = [sys.executable, "-m", "precopy", "migrate", "--json", "--progress", "none"]
        command += [f"sim:mlx5?guest=0&state={state}", address]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak = int(target.stdout.readline())
    return peak, int(json.loads(done.stdout)["device_bytes"])


def measure() -> list[Figure]:
    figures = []
    for name, size in STATES.items():
        free = os.sysconf("SC_PHYS_PAGES") * resource.getpagesize()
        if free < 2.5 * size:
            figures.append(
                Figure(f"target above {name}", "too little memory here", "<= 96 MiB", False)
            )
            continue
        peak, sent = _peak(name)
        above = (peak - size) / _MIB
        told = f"{above:.0f} MiB ({sent / 1e6:,.0f} MB sent)"
        figures.append(
            Figure(f"target's peak above {name} of state", told, "<= 96 MiB", above <= 96)
        )
    return figures
