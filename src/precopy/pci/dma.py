"""The address space in which a PCI function does its DMA.

Each function has one of its own, as behind an IOMMU: what is not mapped can't be reached. What a
function writes by DMA is told to listeners, page trackers among them.
"""

import bisect
import errno
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from precopy.pci.memory import GuestMemory
from precopy.vfio.errors import refuse

#: Told of every DMA write: address and length in bytes, after the bytes are in memory.
WriteListener = Callable[[int, int], None]


class DistantMemory(Protocol):
    """Memory that this process can't map: whoever has it is asked for every access.

    Offsets are in bytes from its beginning. OSError where the access can't be made.
    """

    @property
    def readonly(self) -> bool: ...

    def __len__(self) -> int:
        """Bytes in all."""

    def read(self, offset: int, length: int) -> bytes: ...

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None: ...


#: What can stand behind a range. A view that is read-only is memory that DMA may only read.
DmaMemory = memoryview | DistantMemory


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
        self._table: tuple[list[int], list[DmaMemory]] = ([], [])
        self._changing = threading.Lock()
        self._listeners: tuple[WriteListener, ...] = ()

    def replace(self, old: Iterable[int], new: Iterable[tuple[int, DmaMemory]]) -> None:
        """Unmap what was mapped at exactly the addresses ``old`` and map ``new``, in one step.

        ENOENT, EEXIST and EINVAL as :meth:`unmap` and :meth:`map`; then nothing has changed.
        """
        with self._changing:
            starts, held = self._table[0].copy(), self._table[1].copy()
            for address in old:
                index = bisect.bisect_left(starts, address)
                if index == len(starts) or starts[index] != address:
                    raise refuse(errno.ENOENT, f"nothing is mapped for DMA at {address:#x}")
                del starts[index], held[index]
            for address, memory in new:
                entry = memory.cast("B") if isinstance(memory, memoryview) else memory
                if not len(entry):
                    raise refuse(errno.EINVAL, f"DMA memory at {address:#x} is empty")
                index = bisect.bisect_right(starts, address)
                before_end = starts[index - 1] + len(held[index - 1]) if index else 0
                after_start = starts[index] if index < len(starts) else 1 << 64
                if address < before_end or address + len(entry) > after_start:
                    what = f"DMA range {address:#x}+{len(entry):#x} overlaps another"
                    raise refuse(errno.EEXIST, what)
                starts.insert(index, address)
                held.insert(index, entry)
            self._table = (starts, held)

    def map(self, address: int, memory: DmaMemory) -> None:
        """Map ``memory`` at ``address``.

        EEXIST where something is mapped there already, EINVAL for memory that is empty.
        """
        self.replace((), [(address, memory)])

    def unmap(self, address: int) -> None:
        """Unmap what was mapped at exactly ``address``. ENOENT where nothing was."""
        self.replace([address], ())

    def ranges(self) -> list[tuple[int, int]]:
        """Address and length in bytes of all that is mapped, in ascending order."""
        starts, held = self._table
        return [(start, len(memory)) for start, memory in zip(starts, held, strict=True)]

    def map_guest(self, memory: GuestMemory) -> None:
        """Map every region of ``memory`` at its iova, by the mapping that is the devices'."""
        self.replace((), [(region.spec.iova, region.device_view) for region in memory.regions])

    def view(self, address: int, length: int) -> memoryview:
        """The memory itself at ``address``, not copied; writing into it tells no listener.

        EFAULT where not all of it is in one mapping, in this process and writable.
        """
        starts, held = self._table
        index = bisect.bisect_right(starts, address) - 1
        if index >= 0:
            offset = address - starts[index]
            memory = held[index]
            if (
                offset + length <= len(memory)
                and isinstance(memory, memoryview)
                and not memory.readonly
            ):
                return memory[offset : offset + length]
        raise _unmapped(address, length)

    def views(self, address: int, length: int) -> list[memoryview]:
        """As :meth:`view`, in as many pieces as mappings hold it: none for no bytes.

        EFAULT where a byte is not mapped, not in this process, or not writable.
        """
        pieces: list[memoryview] = []
        for memory, offset, count in self._runs(address, length):
            if not isinstance(memory, memoryview) or memory.readonly:
                raise _unmapped(address, length)
            pieces.append(memory[offset : offset + count])
        return pieces

    def _runs(self, address: int, length: int) -> Iterator[tuple[DmaMemory, int, int]]:
        """What holds the bytes at ``address``: memory, offset and count of each piece."""
        starts, held = self._table
        index = bisect.bisect_right(starts, address) - 1
        at, left = address, length
        while left > 0:
            offset = at - starts[index] if 0 <= index < len(starts) else -1
            if offset < 0 or offset >= len(held[index]):
                raise _unmapped(address, length)
            count = min(left, len(held[index]) - offset)
            yield held[index], offset, count
            at += count
            left -= count
            index += 1

    def check(self, address: int, length: int) -> None:
        """EFAULT where a byte is not mapped."""
        self._pieces(address, length)

    def read(self, address: int, length: int) -> bytes:
        """Copy of the bytes at ``address``. EFAULT where a byte is not mapped."""
        starts, held = self._table
        index = bisect.bisect_right(starts, address) - 1
        if index >= 0:
            # Nearly always one piece in this process.
            memory, offset = held[index], address - starts[index]
            if isinstance(memory, memoryview) and offset + length <= len(memory):
                return bytes(memory[offset : offset + length])
        return b"".join(
            memory[offset : offset + count]
            if isinstance(memory, memoryview)
            else memory.read(offset, count)
            for memory, offset, count in self._runs(address, length)
        )

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write ``data`` at ``address`` and tell the listeners, once.

        EFAULT where a byte is not mapped or not writable; then nothing is written.
        """
        source = memoryview(data).cast("B")
        length = len(source)
        if not length:
            return
        pieces = self._pieces(address, length)
        if any(memory.readonly for memory, _, _ in pieces):
            raise refuse(errno.EFAULT, f"DMA to {address:#x}, {length} bytes: read-only")
        at = 0
        for memory, offset, count in pieces:
            piece = source[at : at + count]
            if isinstance(memory, memoryview):
                memory[offset : offset + count] = piece
            else:
                memory.write(offset, piece)
            at += count
        self.wrote(address, length)

    def _pieces(self, address: int, length: int) -> Sequence[tuple[DmaMemory, int, int]]:
        starts, held = self._table
        index = bisect.bisect_right(starts, address) - 1
        if index >= 0:
            memory, offset = held[index], address - starts[index]
            if offset + length <= len(memory):
                return ((memory, offset, length),)
        return list(self._runs(address, length))

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
