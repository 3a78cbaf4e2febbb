"""The interface of a write tracker, and the choice of one."""

import contextlib
import errno
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from precopy.memory.checksums import ChecksumTracker
from precopy.memory.common import Still
from precopy.memory.softdirty import SoftDirtyTracker
from precopy.memory.userfault import UserfaultTracker
from precopy.pci.memory import GuestMemory
from precopy.vfio.errors import refuse


class WriteTracker(Protocol):
    """Which pages (4096 bytes) are written through ``GuestMemory.regions[i].view``.

    One thread at a time calls it; any thread writes, at any time. OSError where the kernel refuses.
    """

    #: Its kind, one of :data:`KINDS`.
    name: str

    def start(self) -> None:
        """Know of writes from now on: all pages count as clean, also where it had been started."""

    def collect(self, region: int, dirty: NDArray[np.uint8]) -> None:
        """Set the bits of the pages of region ``region`` written since the start or the last call.

        Bit n of ``dirty`` is ``dirty[n // 8] >> n % 8``; other bits stay. A write during the call is
        in what this call gives or in what the next one does. OSError EINVAL where it is not started
        or ``dirty`` has not a bit for every page.
        """

    def copied(self, region: int, pages: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """Told by who copies the pages that :meth:`collect` gives: what it has of them.

        ``pages`` ascend; ``content`` has a row of 4096 bytes for each. A kind that compares contents
        takes them for what the pages have to be compared with: what they held at the last collect
        may be neither what was copied nor what comes after it. Others need not know.
        """

    def stop(self) -> None:
        """Know of writes no longer. A second call does nothing."""


def _userfaultfd(memory: GuestMemory, still: Still | None) -> WriteTracker:
    return UserfaultTracker(memory)


def _softdirty(memory: GuestMemory, still: Still | None) -> WriteTracker:
    if still is None:
        what = "softdirty loses what is written while it is asked, unless writers are held still"
        raise refuse(errno.ENOTSUP, f"{what}; use userfaultfd or checksums")
    return SoftDirtyTracker(memory, still)


def _checksums(memory: GuestMemory, still: Still | None) -> WriteTracker:
    return ChecksumTracker(memory)


#: What there is, the best first.
KINDS: Mapping[str, Callable[[GuestMemory, Still | None], WriteTracker]] = {
    "userfaultfd": _userfaultfd,
    "softdirty": _softdirty,
    "checksums": _checksums,
}


def tracker_for(
    memory: GuestMemory, kind: str = "auto", *, still: Still | None = None
) -> WriteTracker:
    """A tracker of ``memory``, not started: of ``kind``, or for ``auto`` of the best that there is.

    ``still`` holds all who write through ``view`` still while its context lasts; softdirty needs
    it. OSError: ENOTSUP where ``kind`` is not to be had here, EINVAL where there is no such kind.
    """
    if kind == "auto":
        for make in KINDS.values():
            with contextlib.suppress(OSError):
                return make(memory, still)
    elif kind in KINDS:
        return KINDS[kind](memory, still)
    what = f"no write tracker {kind!r}: there are auto, {', '.join(KINDS)}"
    raise refuse(errno.EINVAL, what)
