"""The address space in which a PCI function does its DMA.

Each function has one of its own, as behind an IOMMU: what is not mapped can't be reached. What a
function writes by DMA is told to listeners, page trackers among them.
"""

import bisect
import errno
import threading
from collections.abc import Callable, Iterable

from precopy.pci.memory import GuestMemory
from precopy.vfio.errors import refuse

#: Told of every DMA write: address and length in bytes, after the bytes are in memory.
WriteListener = Callable[[int, int], None]


def _unmapped(address: int, length: int) -> OSError:
    return refuse(errno.EFAULT, f"DMA to {address:#x}, {length} bytes: not mapped")


class DmaSpace:
    """Ranges of addresses mapped to memory. A lookup costs the logarithm of their number.

    Any thread may access, map and unmap at any time: an access sees the mappings as they were before
    or after a change. One that began before an unmapping may still end after it, in memory that
    stays valid for as long as a view of it is held.
    """

    def __init__(self) -> None:
        # Never changed in place, so that an access needs no lock.
        self._table: tuple[list[int], list[memoryview]] = ([], [])
        self._changing = threading.Lock()
        self._listeners: tuple[WriteListener, ...] = ()

    def replace(self, old: Iterable[int], new: Iterable[tuple[int, memoryview]]) -> None:
        """Unmap what was mapped at exactly the addresses ``old`` and map ``new``, in one step.

        ENOENT, EEXIST and EINVAL as :meth:`unmap` and :meth:`map`; then nothing has changed.
        """
        with self._changing:
            starts, views = self._table[0].copy(), self._table[1].copy()
            for address in old:
                index = bisect.bisect_left(starts, address)
                if index == len(starts) or starts[index] != address:
                    raise refuse(errno.ENOENT, f"nothing is mapped for DMA at {address:#x}")
                del starts[index], views[index]
            for address, memory in new:
                view = memory.cast("B")
                if not view or view.readonly:
                    raise refuse(errno.EINVAL, f"DMA memory at {address:#x} is empty or read-only")
                index = bisect.bisect_right(starts, address)
                before_end = starts[index - 1] + len(views[index - 1]) if index else 0
                after_start = starts[index] if index < len(starts) else 1 << 64
                if address < before_end or address + len(view) > after_start:
                    what = f"DMA range {address:#x}+{len(view):#x} overlaps another"
                    raise refuse(errno.EEXIST, what)
                starts.insert(index, address)
                views.insert(index, view)
            self._table = (starts, views)

    def map(self, address: int, memory: memoryview) -> None:
        """Map writable ``memory`` at ``address``.

        EEXIST where something is mapped there already, EINVAL for memory that is empty or read-only.
        """
        self.replace((), [(address, memory)])

    def unmap(self, address: int) -> None:
        """Unmap what was mapped at exactly ``address``. ENOENT where nothing was."""
        self.replace([address], ())

    def map_guest(self, memory: GuestMemory) -> None:
        """Map every region of ``memory`` at its iova."""
        self.replace((), [(region.spec.iova, region.view) for region in memory.regions])

    def view(self, address: int, length: int) -> memoryview:
        """The memory itself at ``address``, not copied; writing into it tells no listener.

        EFAULT where not all of it is in one mapping.
        """
        starts, views = self._table
        index = bisect.bisect_right(starts, address) - 1
        if index >= 0:
            offset = address - starts[index]
            view = views[index]
            if offset + length <= len(view):
                return view[offset : offset + length]
        raise _unmapped(address, length)

    def views(self, address: int, length: int) -> list[memoryview]:
        """As :meth:`view`, in as many pieces as mappings hold it: none for no bytes.

        EFAULT where a byte is not mapped.
        """
        starts, views = self._table
        index = bisect.bisect_right(starts, address) - 1
        pieces: list[memoryview] = []
        at, left = address, length
        while left > 0:
            offset = at - starts[index] if 0 <= index < len(starts) else -1
            if offset < 0 or offset >= len(views[index]):
                raise _unmapped(address, length)
            pieces.append(views[index][offset : offset + left])
            at += len(pieces[-1])
            left -= len(pieces[-1])
            index += 1
        return pieces

    def check(self, address: int, length: int) -> None:
        """EFAULT where a byte is not mapped."""
        self.views(address, length)

    def read(self, address: int, length: int) -> bytes:
        """Copy of the bytes at ``address``. EFAULT as :meth:`views`."""
        return b"".join(self.views(address, length))

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``address`` and tell the listeners, once. EFAULT as :meth:`views`.

        Nothing is written where a byte is not mapped.
        """
        source = data.cast("B") if isinstance(data, memoryview) else data
        length = len(source)
        pieces = self.views(address, length)
        if len(pieces) == 1:
            pieces[0][:] = source
        else:
            rest = memoryview(source)
            for piece in pieces:
                piece[:] = rest[: len(piece)]
                rest = rest[len(piece) :]
        if length:
            self.wrote(address, length)

    def wrote(self, address: int, length: int) -> None:
        """Tell the listeners of bytes that were written through :meth:`view` or :meth:`views`."""
        for listener in self._listeners:
            listener(address, length)

    def listen(self, listener: WriteListener) -> None:
        """Tell ``listener`` of every later write."""
        with self._changing:
            self._listeners = (*self._listeners, listener)

    def unlisten(self, listener: WriteListener) -> None:
        """Stop telling ``listener``."""
        with self._changing:
            self._listeners = tuple(each for each in self._listeners if each != listener)
