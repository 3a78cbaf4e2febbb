"""The trackers that this machine has, and what each sees besides the CPU's writes."""

import numpy as np

from precopy.memory import WriteTracker, tracker_for
from precopy.pci.memory import PAGE_SIZE, GuestMemory, RegionSpec


def _is_here(kind: str) -> bool:
    memory = GuestMemory([RegionSpec(0, PAGE_SIZE)])
    try:
        tracker_for(memory, kind)
    except OSError:
        return False
    finally:
        memory.close()
    return True


#: Kinds, and whether each sees what a device writes.
HERE = [
    (kind, sees) for kind, sees in (("userfaultfd", False), ("checksums", True)) if _is_here(kind)
]


def collected(tracker: WriteTracker, memory: GuestMemory, region: int) -> set[int]:
    """The pages that a collect gives, into a bitmap that has none."""
    dirty = np.zeros(-(-memory.regions[region].spec.length // PAGE_SIZE // 8), dtype=np.uint8)
    tracker.collect(region, dirty)
    return set(np.flatnonzero(np.unpackbits(dirty, bitorder="little")).tolist())
