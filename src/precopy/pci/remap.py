"""A small IOMMU of one function, set through a capability of its config space.

A guest that lives in a process of User-Mode Linux has memory at addresses that the kernel gave it,
page by page; a guest that migrates must find its memory at the same device addresses everywhere.
So whoever drives the function may say which pages of the space beneath stand at which addresses::

    +0  id 0x09, next, length, kind 'R'      +8   list: address of page addresses, u64 each
    +4  command and result                   +16  pages in the list
                                             +24  address at which the first is to stand

Commands: 1 maps the pages of the list one behind the other, 2 takes all of them away. The result
reads 0, or the errno. A reset takes all of them away.
"""

import contextlib
import errno
import struct
import threading

from precopy.pci import capabilities
from precopy.pci.config_space import ConfigSpace
from precopy.pci.dma import DmaSpace

KIND = ord("R")
LENGTH = 32
COMMAND, LIST, COUNT, ADDRESS = 4, 8, 16, 24
MAP, UNMAP = 1, 2

PAGE_BYTES = 4096
#: Pages of one list: a list is read at once.
MAX_PAGES = 1 << 16


class RemapCapability:
    """Maps pages of ``dma`` at other addresses of the same ``dma``."""

    def __init__(self, space: ConfigSpace, dma: DmaSpace) -> None:
        self._space, self._dma = space, dma
        self._lock = threading.Lock()
        self._mapped: list[int] = []
        self._at = at = capabilities.vendor_specific(space, KIND, LENGTH)
        space.put(at + COMMAND, 4, 0, 0xFFFF_FFFF)
        for register in (LIST, ADDRESS):
            space.put(at + register, 8, 0, 0xFFFF_FFFF_FFFF_FFFF)
        space.put(at + COUNT, 4, 0, 0xFFFF_FFFF)
        space.on_write(at + COMMAND, 4, self._commanded)

    def reset(self) -> None:
        with self._lock:
            for address in self._mapped:
                with contextlib.suppress(OSError):
                    self._dma.unmap(address)
            self._mapped.clear()

    def _commanded(self) -> None:
        space, at = self._space, self._at
        command = space.get(at + COMMAND, 4)
        result = 0
        if command == MAP:
            result = self._map(
                space.get(at + LIST, 8), space.get(at + COUNT, 4), space.get(at + ADDRESS, 8)
            )
        elif command == UNMAP:
            self.reset()
        else:
            result = errno.EINVAL
        space.set(at + COMMAND, 4, result)

    def _map(self, where: int, count: int, address: int) -> int:
        if not 0 < count <= MAX_PAGES or address % PAGE_BYTES:
            return errno.EINVAL
        try:
            pages = struct.unpack(f"<{count}Q", self._dma.read(where, 8 * count))
            if any(page % PAGE_BYTES for page in pages):
                return errno.EINVAL
            with self._lock:
                low = 0
                while low < count:
                    # Pages that follow each other in the space beneath become one mapping.
                    high = low + 1
                    while high < count and pages[high] == pages[high - 1] + PAGE_BYTES:
                        high += 1
                    view = self._dma.view(pages[low], (high - low) * PAGE_BYTES)
                    self._dma.map(address + low * PAGE_BYTES, view)
                    self._mapped.append(address + low * PAGE_BYTES)
                    low = high
        except OSError as error:
            return error.errno or errno.EIO
        return 0
