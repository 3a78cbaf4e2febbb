"""The client's memory, as the device's DMA reaches it: mapped, through its file, or by asking.

A file that the client could make shorter is never mapped: reading beyond its end would kill this
process. Only a memfd that is sealed against that is; other files are read and written.
"""

import errno
import fcntl
import mmap
import os
import stat
from collections.abc import Callable

from precopy.pci.dma import DmaMemory
from precopy.vfio.errors import refuse
from precopy.vfio_user.messages import DmaMap, DmaMapFlags, wrong

_ACCESS = DmaMapFlags.READ | DmaMapFlags.WRITE
# A plain integer: the complement of a flag has known bits only.
_FLAGS = int(_ACCESS | DmaMapFlags.MMAP | DmaMapFlags.FILE_IO)
_PAGE = mmap.PAGESIZE

#: Bytes of one mapping: no file is longer.
MOST_MAPPED = (1 << 63) - _PAGE

#: Asks the client: address and bytes to read, or the bytes to write.
ReadBySocket = Callable[[int, int], bytes]
WriteBySocket = Callable[[int, bytes], None]


class FileMemory:
    """Memory behind a descriptor, which this owns, from ``offset`` on."""

    def __init__(self, fd: int, offset: int, size: int, *, readonly: bool) -> None:
        self._fd, self._offset, self._size = fd, offset, size
        self.readonly = readonly

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, self._offset + offset)
        if len(data) < length:
            raise refuse(errno.EFAULT, "the file behind DMA memory has become shorter")
        return data

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        # Never beyond the end, which would make the file longer.
        if os.fstat(self._fd).st_size < self._offset + offset + len(data):
            raise refuse(errno.EFAULT, "the file behind DMA memory has become shorter")
        os.pwrite(self._fd, data, self._offset + offset)

    def __del__(self) -> None:
        os.close(self._fd)


class SocketMemory:
    """Memory that the client reads and writes itself (DMA_READ, DMA_WRITE)."""

    def __init__(
        self, request: DmaMap, read: ReadBySocket, write: WriteBySocket, *, readonly: bool
    ) -> None:
        self._address, self._size = request.address, request.size
        self._read, self._write = read, write
        self.readonly = readonly

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        return self._read(self._address + offset, length)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self._write(self._address + offset, bytes(data))


def check(request: DmaMap) -> None:
    """WireError EINVAL for a mapping that makes no sense."""
    flags = DmaMapFlags(request.flags)
    if request.flags & ~_FLAGS or not flags & _ACCESS:
        raise wrong(errno.EINVAL, f"flags {request.flags:#x} of a mapping")
    if flags & DmaMapFlags.MMAP and flags & DmaMapFlags.FILE_IO:
        raise wrong(errno.EINVAL, "a mapping is mapped or read, not both")
    if not request.size or (request.address | request.size) % _PAGE:
        text = f"DMA memory {request.address:#x}+{request.size:#x} is not made of whole pages"
        raise wrong(errno.EINVAL, text)
    if request.address + request.size > 1 << 64:
        raise wrong(errno.EINVAL, f"DMA memory at {request.address:#x} wraps around")
    if request.size > MOST_MAPPED:
        raise wrong(
            errno.EINVAL, f"DMA memory of {request.size:#x} bytes is more than there can be"
        )


def of_file(request: DmaMap, fd: int) -> DmaMemory:
    """The memory that ``request`` describes in the file ``fd``, which stays the caller's.

    WireError EINVAL where the file is no memory, or has no such bytes; EACCES where it may not be
    accessed so.
    """
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode):
        raise wrong(errno.EINVAL, "the descriptor of a mapping is no file")
    if request.offset + request.size > found.st_size:
        end = request.offset + request.size
        text = f"the mapping ends at byte {end:#x} of a file of {found.st_size:#x}"
        raise wrong(errno.EINVAL, text)
    readonly = not request.flags & DmaMapFlags.WRITE
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == os.O_WRONLY or (mode == os.O_RDONLY and not readonly):
        raise wrong(errno.EACCES, "the file of a mapping is not open for what the mapping allows")
    mapped = (
        not request.flags & DmaMapFlags.FILE_IO and not request.offset % mmap.ALLOCATIONGRANULARITY
    )
    if mapped and _keeps_its_size(fd):
        access = mmap.ACCESS_READ if readonly else mmap.ACCESS_WRITE
        try:
            whole = mmap.mmap(fd, request.size, access=access, offset=request.offset)
        except OSError as error:
            raise wrong(error.errno or errno.EINVAL, f"mapping DMA memory: {error}") from error
        except ValueError as error:
            # It became shorter before it was sealed.
            raise wrong(errno.EINVAL, f"mapping DMA memory: {error}") from error
        # Unmapped once nobody holds a view of it.
        return memoryview(whole)
    return FileMemory(os.dup(fd), request.offset, request.size, readonly=readonly)


def shared(fd: int, size: int) -> memoryview:
    """The first ``size`` bytes of a memfd, mapped. WireError EINVAL where that would not be safe."""
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size < size or not _keeps_its_size(fd):
        text = "the data area is no memfd that is large enough and keeps its size (F_SEAL_SHRINK)"
        raise wrong(errno.EINVAL, text)
    try:
        return memoryview(mmap.mmap(fd, size))
    except OSError as error:
        raise wrong(error.errno or errno.EINVAL, f"mapping the data area: {error}") from error
    except ValueError as error:
        # It became shorter before it was sealed.
        raise wrong(errno.EINVAL, f"mapping the data area: {error}") from error


def _keeps_its_size(fd: int) -> bool:
    """Whether nobody can make the file shorter; sealed here where its owner allows that."""
    try:
        if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    except OSError:
        return False
    return True
