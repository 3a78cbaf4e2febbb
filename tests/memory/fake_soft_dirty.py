"""A kernel with soft-dirty bits, as far as its two files show it."""

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from precopy.pci.memory import PAGE_SIZE, GuestMemory

SOFT_DIRTY, PRESENT = 1 << 55, 1 << 63


def address_of(mapped: mmap.mmap) -> int:
    return int(np.frombuffer(mapped, dtype=np.uint8).ctypes.data)


class FakeSoftDirty:
    """``pagemap`` is sparse, an entry at every address; what clear_refs takes has effect with :meth:`still`."""

    def __init__(self, directory: Path, memory: GuestMemory) -> None:
        self.memory = memory
        self.pagemap, self.clear_refs = directory / "pagemap", directory / "clear_refs"
        self.clear_refs.write_bytes(b"")
        self._fd = os.open(self.pagemap, os.O_RDWR | os.O_CREAT, 0o600)
        self.probe = mmap.mmap(-1, PAGE_SIZE)
        self._entries: dict[int, int] = {}
        for mapped in (self.probe, *(region.map for region in memory.regions)):
            # So that the file does not end before.
            self._put(address_of(mapped) + len(mapped) - PAGE_SIZE, 0)
        self._put(address_of(self.probe), SOFT_DIRTY | PRESENT)
        #: How often writers have been held still.
        self.stills = 0

    def close(self) -> None:
        os.close(self._fd)

    def _put(self, address: int, entry: int) -> None:
        self._entries[address] = entry
        os.pwrite(self._fd, entry.to_bytes(8, "little"), address // PAGE_SIZE * 8)

    def _page(self, region: int, page: int) -> int:
        return address_of(self.memory.regions[region].map) + page * PAGE_SIZE

    def wrote(self, region: int, page: int) -> None:
        self._put(self._page(region, page), SOFT_DIRTY | PRESENT)

    def evict(self, region: int, page: int) -> None:
        self._put(self._page(region, page), 0)

    def read(self, region: int, page: int) -> None:
        address = self._page(region, page)
        self._put(address, self._entries.get(address, 0) | PRESENT)

    @contextlib.contextmanager
    def still(self) -> Iterator[None]:
        self.stills += 1
        yield
        if self.clear_refs.read_bytes() == b"4":
            self.clear_refs.write_bytes(b"")
            for address, entry in list(self._entries.items()):
                self._put(address, entry & ~SOFT_DIRTY)
