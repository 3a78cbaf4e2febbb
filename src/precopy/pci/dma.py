"""The address space in which a PCI function does its DMA.

Each function has one of its own, as behind an IOMMU: what is not mapped can't be reached. What a
function writes by DMA is told to listeners, page trackers among them.
"""

import bisect
import errno
from collections.abc import Callable

from precopy.pci.memory import GuestMemory
from precopy.vfio.errors import refuse

#: Told of every DMA write: address and length in bytes, after the bytes are in memory.
WriteListener = Callable[[int, int], None]


class DmaSpace:
    """Ranges of addresses mapped to memory. A lookup costs the logarithm of their number.

    Mapping and unmapping may not run beside accesses to the range concerned; accesses may run
    beside each other.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._views: list[memoryview] = []
        self._listeners: tuple[WriteListener, ...] = ()

    def map(self, address: int, memory: memoryview) -> None:
        """Map writable ``memory`` at ``address``. EEXIST where something is mapped there already."""
        view = memory.cast("B")
        index = bisect.bisect_right(self._starts, address)
        before_end = self._starts[index - 1] + len(self._views[index - 1]) if index else 0
        after_start = self._starts[index] if index < len(self._starts) else 1 << 64
        if address < before_end or address + len(view) > after_start:
            raise refuse(errno.EEXIST, f"DMA range {address:#x}+{len(view):#x} overlaps another")
        self._starts.insert(index, address)
        self._views.insert(index, view)

    def unmap(self, address: int) -> None:
        """Unmap what was mapped at exactly ``address``. ENOENT where nothing was."""
        index = bisect.bisect_left(self._starts, address)
        if index == len(self._starts) or self._starts[index] != address:
            raise refuse(errno.ENOENT, f"nothing is mapped for DMA at {address:#x}")
        del self._starts[index], self._views[index]

    def map_guest(self, memory: GuestMemory) -> None:
        """Map every region of ``memory`` at its iova."""
        for region in memory.regions:
            self.map(region.spec.iova, region.view)

    def view(self, address: int, length: int) -> memoryview:
        """The memory itself at ``address``, not copied; writing into it tells no listener.

        EFAULT where not all of it is in one mapping.
        """
        index = bisect.bisect_right(self._starts, address) - 1
        if index >= 0:
            offset = address - self._starts[index]
            view = self._views[index]
            if offset + length <= len(view):
                return view[offset : offset + length]
        raise refuse(errno.EFAULT, f"DMA to {address:#x}, {length} bytes: not mapped")

    def read(self, address: int, length: int) -> bytes:
        """Copy of the bytes at ``address``. EFAULT as :meth:`view`."""
        return bytes(self.view(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``address`` and tell the listeners. EFAULT as :meth:`view`."""
        self.view(address, len(data))[:] = data
        self.wrote(address, len(data))

    def wrote(self, address: int, length: int) -> None:
        """Tell the listeners of bytes that were written through :meth:`view`."""
        for listener in self._listeners:
            listener(address, length)

    def listen(self, listener: WriteListener) -> None:
        """Tell ``listener`` of every later write."""
        self._listeners = (*self._listeners, listener)

    def unlisten(self, listener: WriteListener) -> None:
        """Stop telling ``listener``."""
        self._listeners = tuple(each for each in self._listeners if each != listener)
