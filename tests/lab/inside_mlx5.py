"""Runs in a lab kernel with a software ConnectX: what its mlx5_vfio_pci does, printed as JSON.

    python -m tests.lab.inside_mlx5 FACT...

Decided outside, in the files test_mlx5_*.py. Marks cut the card's trace, see ``tests.lab.mlx5.rig``.
"""

import json
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from precopy.backends.kernel import open_kernel_device
from tests.lab.mlx5 import bus, dirty, endings, faults, misuse, never, sessions, shortage, trips
from tests.lab.mlx5.vf import VFS, Fact, Marks

FACTS: dict[str, Fact] = {
    "about": sessions.about,
    "data size": sessions.data_size,
    "images": sessions.images,
    "unread": sessions.unread,
    "plain": sessions.plain,
    "cancel": sessions.cancel,
    "no image": sessions.no_image,
    "reinit": sessions.reinit,
    "arcs": endings.arcs,
    "resets": endings.resets,
    "closing": endings.closing,
    "early": endings.early,
    "crash by close": endings.crash_by_close,
    "crash by cancel": endings.crash_by_cancel,
    "crash by record": endings.crash_by_record,
    "refused": misuse.refused,
    "calls": misuse.calls,
    "faults, first half": faults.first_half,
    "faults, second half": faults.second_half,
    "faults in chunks": faults.chunks,
    "bits": dirty.bits,
    "windows": dirty.windows,
    "refusals": dirty.refusals,
    "lasting": dirty.lasting,
    "much": dirty.much,
    "troubles": dirty.troubles,
    "heard": dirty.heard,
    "unheard": dirty.unheard,
    "allocations": shortage.allocations,
    "never": never.commands,
    "waiting": never.waiting,
    "deferred": never.deferred,
}


#: What is asked of the machine itself.
MACHINE_FACTS: dict[str, Callable[[Marks], Any]] = {
    "offers": bus.offers,
    "unasked": bus.unasked,
    "host driver": bus.host_driver,
    "sriov": bus.sriov,
    "pf driver": bus.pf_driver,
    "held": bus.held,
    "detached": bus.detached,
    "crash by reload": bus.crash_by_reload,
    "crash by unbind": bus.crash_by_unbind,
    "two at once": trips.two_at_once,
}


def _fact(name: str) -> Fact:
    """``name`` may be ``trips=N``: so many round trips."""
    if name.startswith("trips="):
        return partial(trips.trips, number=int(name.removeprefix("trips=")))
    return FACTS[name]


def gather(marks: Marks, names: Iterable[str]) -> dict[str, Any]:
    """Each fact on two VFs that have just been opened, and so reset, or on the machine."""
    told = {}
    for name in names:
        if name in MACHINE_FACTS:
            told[name] = MACHINE_FACTS[name](marks)
            continue
        with open_kernel_device(VFS[0]) as source, open_kernel_device(VFS[1]) as target:
            told[name] = _fact(name)(marks, source, target)
    marks("closed")
    return told


if __name__ == "__main__":
    all_marks = Marks()
    all_told = gather(all_marks, sys.argv[1:])
    print(json.dumps({"told": all_told, "marks": all_marks.names}))
