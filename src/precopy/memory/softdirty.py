"""Writes found by soft-dirty bits of the page table, where CONFIG_MEM_SOFT_DIRTY is set.

/proc/self/clear_refs clears the bits of all pages, /proc/self/pagemap tells them (bit 55 of each
page's entry). These are two steps: what is written between them would be lost, so writers must be
held still meanwhile. Clearing concerns the whole process, so that nobody else in it may clear.

A page that is written and then evicted (to swap) leaves no bit behind, its entry is empty. So a page
with an empty entry counts as written where the memory has data. That includes pages that only a
device wrote: they are told again at each collect until somebody reads them through ``view``, as who
sends them does.

Source: Documentation/admin-guide/mm/soft-dirty.rst and pagemap.rst.
"""

import errno
import mmap
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from precopy.memory.common import Still, address_of, check_bitmap, pages_of
from precopy.pci.memory import PAGE_SIZE, GuestMemory
from precopy.vfio.dirty_bits import Bits, or_into, set_runs
from precopy.vfio.errors import refuse

_PAGEMAP, _CLEAR_REFS = Path("/proc/self/pagemap"), Path("/proc/self/clear_refs")

#: What clear_refs takes to clear the soft-dirty bits.
_CLEAR_SOFT_DIRTY = b"4"

_ENTRY = np.dtype(np.uint64)
_SOFT_DIRTY, _PRESENT = np.uint64(1 << 55), np.uint64(1 << 63)

#: Entries that are read at once.
_ENTRIES = 1 << 17


def _read_entries(pagemap: int, address: int, entries: NDArray[np.uint64]) -> None:
    """The pagemap's entries of the pages from ``address`` on. EIO where they are not all there."""
    left = entries.data.cast("B")
    at = address // PAGE_SIZE * _ENTRY.itemsize
    while left:
        count = os.preadv(pagemap, [left], at)
        if not count:
            raise refuse(errno.EIO, f"pagemap ends before the page at {address:#x}")
        left, at = left[count:], at + count


def is_told(page: mmap.mmap, pagemap: Path = _PAGEMAP) -> bool:
    """Whether the kernel has soft-dirty bits: a page just written must have it."""
    page[0] = 1
    address = np.frombuffer(page, dtype=np.uint8).ctypes.data
    entry = np.zeros(1, dtype=_ENTRY)
    try:
        fd = os.open(pagemap, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _read_entries(fd, address, entry)
        finally:
            os.close(fd)
    except OSError:
        return False
    return bool(entry[0] & _SOFT_DIRTY)


class SoftDirtyTracker:
    """A :class:`~precopy.memory.tracker.WriteTracker`. OSError ENOTSUP where there are no soft-dirty bits.

    ``still`` is entered at each start and collect. ``probe`` is a page of this process that may be
    written, by default a new one.
    """

    name = "softdirty"

    def __init__(
        self,
        memory: GuestMemory,
        still: Still,
        *,
        pagemap: Path = _PAGEMAP,
        clear_refs: Path = _CLEAR_REFS,
        probe: mmap.mmap | None = None,
    ) -> None:
        if not is_told(mmap.mmap(-1, PAGE_SIZE) if probe is None else probe, pagemap):
            what = "the kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)"
            raise refuse(errno.ENOTSUP, f"{what}; use userfaultfd or checksums")
        self._memory, self._still = memory, still
        self._pagemap_path, self._clear_refs_path = pagemap, clear_refs
        self._pagemap = self._clear_refs = -1
        #: What was told and not yet collected, by region.
        self._pending: list[Bits] = []
        self._entries = np.zeros(_ENTRIES, dtype=_ENTRY)

    def start(self) -> None:
        self.stop()
        try:
            self._pagemap = os.open(self._pagemap_path, os.O_RDONLY | os.O_CLOEXEC)
            self._clear_refs = os.open(self._clear_refs_path, os.O_WRONLY | os.O_CLOEXEC)
            with self._still():
                self._clear()
        except BaseException:
            self.stop()
            raise
        self._pending = [
            np.zeros(-(-pages_of(region) // 8), dtype=np.uint8) for region in self._memory.regions
        ]

    def _clear(self) -> None:
        os.pwrite(self._clear_refs, _CLEAR_SOFT_DIRTY, 0)

    def collect(self, region: int, dirty: NDArray[np.uint8]) -> None:
        if not self._pending:
            raise refuse(errno.EINVAL, "the write tracker is not started")
        check_bitmap(self._memory.regions[region], dirty)
        # Clearing takes the bits of all regions away.
        with self._still():
            for index in range(len(self._pending)):
                self._look(index)
            self._clear()
        or_into(dirty, self._pending[region])
        self._pending[region][:] = 0

    def _look(self, index: int) -> None:
        region, pending = self._memory.regions[index], self._pending[index]
        filled = np.zeros(len(pending), dtype=np.uint8)
        extents = [
            (extent.offset // PAGE_SIZE, (extent.offset + extent.length - 1) // PAGE_SIZE)
            for extent in self._memory.extents(index)
        ]
        ends = np.array(extents, dtype=np.int64).reshape(-1, 2)
        set_runs(filled, ends[:, 0], ends[:, 1])
        address = address_of(region)
        for first in range(0, pages_of(region), _ENTRIES):
            entries = self._entries[: min(_ENTRIES, pages_of(region) - first)]
            _read_entries(self._pagemap, address + first * PAGE_SIZE, entries)
            place = slice(first // 8, first // 8 + -(-len(entries) // 8))
            gone = np.packbits(entries & _PRESENT == 0, bitorder="little") & filled[place]
            pending[place] |= gone | np.packbits(entries & _SOFT_DIRTY != 0, bitorder="little")

    def copied(self, region: int, pages: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """A write after the last collect is told by the next, whatever was copied in between."""

    def stop(self) -> None:
        for fd in (self._pagemap, self._clear_refs):
            if fd >= 0:
                os.close(fd)
        self._pagemap = self._clear_refs = -1
        self._pending = []
