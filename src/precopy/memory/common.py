"""What the kinds of trackers share: bitmaps, addresses, and how writers are held still."""

import errno
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from precopy.pci.memory import PAGE_SIZE, Region
from precopy.vfio.errors import refuse

#: While the context lasts nobody writes through ``GuestMemory.regions[i].view``.
Still = Callable[[], AbstractContextManager[object]]


def pages_of(region: Region) -> int:
    return region.spec.length // PAGE_SIZE


def check_bitmap(region: Region, dirty: NDArray[np.uint8]) -> None:
    """EINVAL where ``dirty`` has not a bit for every page of ``region``."""
    if len(dirty) * 8 < pages_of(region):
        what = f"a bitmap of {len(dirty) * 8} bits for {pages_of(region)} pages of {region.spec}"
        raise refuse(errno.EINVAL, what)


def address_of(region: Region) -> int:
    """Where ``region.view`` begins in this process; valid for as long as the mapping is."""
    return int(np.frombuffer(region.map, dtype=np.uint8).ctypes.data)
