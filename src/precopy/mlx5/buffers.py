"""Memory that the firmware saves into and loads from.

A buffer is pages of this process, mapped for DMA of the PF and put under a memory key. One file's
buffers share a protection domain; those that are not in use wait in the file's pool.
"""

import contextlib
import enum
import errno
import itertools
import mmap
from collections import deque
from collections.abc import Iterable

from precopy.mlx5.commands import PAGE_SIZE, Commands
from precopy.vfio.errors import refuse

#: Reserve addresses only; a page costs memory when it is first written.
_MAP_NORESERVE = 0x4000

#: Where this driver's buffers begin in the PF's address space; far from whatever a PF maps itself.
_IOVA_BASE = 1 << 44
#: Room for the largest buffer, and as much again, which stays unmapped.
_IOVA_STEP = 1 << 33


class Direction(enum.Enum):
    """Who writes the buffer."""

    FROM_DEVICE = enum.auto()
    TO_DEVICE = enum.auto()


def pages_for(size: int) -> int:
    """Pages that ``size`` bytes take."""
    return -(-size // PAGE_SIZE)


class DataBuffer:
    """``pages`` pages under a memory key. ``view`` is all of it."""

    _iovas = itertools.count(_IOVA_BASE, _IOVA_STEP)

    def __init__(self, commands: Commands, pd: int, pages: int, direction: Direction) -> None:
        """OSError EINVAL without a page, ENOMEM, or what CREATE_MKEY gives; then nothing is left."""
        if pages < 1:
            raise refuse(errno.EINVAL, "a buffer for device state needs at least one page")
        self.pages = pages
        self.direction = direction
        #: Its turn in chunk mode (1 or 2), 0 for a buffer that is not of the final state.
        self.chunk = 0
        #: The save into it counts as new initial state (REINIT).
        self.initial = False
        self._commands = commands
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        try:
            self._map = mmap.mmap(-1, pages * PAGE_SIZE, flags=flags)
        except (OSError, ValueError, OverflowError) as error:
            raise refuse(errno.ENOMEM, f"no room for a buffer of {pages} pages: {error}") from error
        with contextlib.suppress(OSError):  # User-Mode Linux has no huge pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)
        self._iova = next(self._iovas)
        commands.port.dma.map(self._iova, self.view)
        try:
            self.mkey = commands.create_mkey(pd, self._iova, pages)
        except BaseException:
            commands.port.dma.unmap(self._iova)
            raise

    @property
    def size(self) -> int:
        """Bytes in it."""
        return self.pages * PAGE_SIZE

    def free(self) -> None:
        """Destroy the key and give the memory back. A firmware that refuses leaks its key only."""
        with contextlib.suppress(OSError):  # nobody is left to whom it could be told
            if not self._commands.detached:
                self._commands.destroy_mkey(self.mkey)
        # The mapping goes with its last view; a reader may still hold one for a moment.
        self._commands.port.dma.unmap(self._iova)


class BufferPool:
    """A protection domain, and the buffers of one file that wait to be used again."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self.pd = commands.alloc_pd()
        self._waiting: deque[DataBuffer] = deque()
        self._closed = False

    def get(self, pages: int, direction: Direction) -> DataBuffer:
        """The first waiting buffer that is large enough, else a new one.

        Buffers found too small on the way are freed: they would only be held for nothing.
        """
        small: list[DataBuffer] = []
        found: DataBuffer | None = None
        for buffer in list(self._waiting):
            if buffer.direction is not direction:
                continue
            self._waiting.remove(buffer)
            if buffer.pages >= pages:
                found = buffer
                break
            small.append(buffer)
        try:
            return found or DataBuffer(self._commands, self.pd, pages, direction)
        finally:
            for buffer in reversed(small):
                buffer.free()

    def any_waiting(self, direction: Direction) -> DataBuffer | None:
        """The first waiting buffer, whatever its size, or None."""
        for buffer in self._waiting:
            if buffer.direction is direction:
                self._waiting.remove(buffer)
                return buffer
        return None

    def new(self, pages: int, direction: Direction) -> DataBuffer:
        """A new buffer, whatever waits."""
        return DataBuffer(self._commands, self.pd, pages, direction)

    def put(self, buffer: DataBuffer) -> None:
        """Let ``buffer`` wait, as an ordinary one."""
        buffer.chunk = 0
        buffer.initial = False
        self._waiting.append(buffer)

    def keep(self, buffer: DataBuffer) -> None:
        """Let a buffer that was read to its end wait."""
        self._waiting.append(buffer)

    def close(self, reserved: Iterable[DataBuffer], queued: Iterable[DataBuffer]) -> None:
        """Free ``reserved``, the waiting buffers, ``queued``, and the protection domain at last, once."""
        if self._closed:
            return
        self._closed = True
        for buffer in (*reserved, *self._waiting, *queued):
            buffer.free()
        self._waiting.clear()
        with contextlib.suppress(OSError):  # as in free()
            if not self._commands.detached:
                self._commands.dealloc_pd(self.pd)
