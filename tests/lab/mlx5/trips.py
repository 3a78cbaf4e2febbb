"""A guest that works all the while, moved back and forth; two guests at once."""

import json
import subprocess
import sys
import time
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.backends.vfio_guest import VfioBus
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.pci_port import PciPort
from precopy.vfio.device import MigrationFile
from tests.lab.inside import enter
from tests.lab.mlx5.vf import LONG, VFS, Marks, S, counts, info, move_guest, read_all, write_all

CONFIG = WorkloadConfig(pairs=8, active=8, rate=400)

#: Every so many trips one is made without PRE_COPY.
WITHOUT_PRE_COPY = 5


def _pump(file: MigrationFile, into: MigrationFile, end: str) -> int:
    """What there is, up to the end that is due, into the target; how much it was."""
    file.poll(timeout=LONG)
    data, found = read_all(file)
    assert found == end, found
    write_all(into, data)
    return len(data)


def _trip(
    guest: WorkloadGuest, source: KernelVfioDevice, target: KernelVfioDevice, *, precopy: bool
) -> tuple[WorkloadGuest, int]:
    """Move a guest that runs, and goes on running; the guest, and how many images it took."""
    images = 1
    with enter(target, S.RESUMING) as into:
        if precopy:
            file = enter(source, S.PRE_COPY)
            _pump(file, into, "ENOMSG")
            # It goes on working, so there is always more; two middle images are enough.
            while images < 3 and info(file)[1]:
                _pump(file, into, "ENOMSG")
                images += 1
            guest.pause()
            source.set_state(S.STOP_COPY)
        else:
            guest.pause()
            file = enter(source, S.STOP_COPY)
        _pump(file, into, "EOF")
        file.close()
        target.set_state(S.STOP)
    moved = move_guest(guest, target)
    target.set_state(S.RUNNING)
    moved.start()
    # What it was is now elsewhere.
    source.reset()
    return moved, images + precopy


def trips(
    marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice, number: int
) -> dict[str, Any]:
    """``number`` round trips. What the guest had sent before each move, and its messages in the end."""
    guest = WorkloadGuest.power_on(PciPort(VfioBus(source)), CONFIG)
    guest.start()
    sent, images = [guest.counts().sent], []
    began = time.monotonic()
    here, there = source, target
    for trip in range(2 * number):
        guest, count = _trip(guest, here, there, precopy=(trip + 1) % WITHOUT_PRE_COPY > 0)
        here, there = there, here
        images.append(count)
        sent.append(guest.counts().sent)
    seconds = time.monotonic() - began
    return {"sent": sent, "images": images, "seconds": seconds, "guest": counts(guest)}


def two_at_once(marks: Marks) -> Any:
    """Two VFs are moved to two others by two commands at the same time, a guest on each."""
    command = [sys.executable, "-m", "precopy", "migrate", "--json", "--progress", "none"]
    command += ["--min-rounds", "2"]
    running = [
        subprocess.Popen(
            [*command, f"{VFS[index]}?guest=1&qps=4&rate=200", VFS[index + 2]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    told = []
    for each in running:
        out, err = each.communicate()
        told.append(json.loads(out) if each.returncode == 0 else err)
    return told
