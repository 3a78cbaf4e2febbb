"""The ioctls of VFIO and iommufd, beside those of migration (vfio.uapi), and how they are called.

Sources: include/uapi/linux/vfio.h and iommufd.h (Linux 7.3).
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import struct
from typing import Protocol

from precopy.vfio.errors import refuse

_TYPE, _BASE = ord(";") << 8, 100

VFIO_GET_API_VERSION = _TYPE | _BASE + 0
VFIO_CHECK_EXTENSION = _TYPE | _BASE + 1
VFIO_SET_IOMMU = _TYPE | _BASE + 2
VFIO_GROUP_GET_STATUS = _TYPE | _BASE + 3
VFIO_GROUP_SET_CONTAINER = _TYPE | _BASE + 4
VFIO_GROUP_GET_DEVICE_FD = _TYPE | _BASE + 6
VFIO_DEVICE_GET_REGION_INFO = _TYPE | _BASE + 8
VFIO_DEVICE_BIND_IOMMUFD = _TYPE | _BASE + 18

#: What messages call them.
NAMES = {
    VFIO_GET_API_VERSION: "VFIO_GET_API_VERSION",
    VFIO_CHECK_EXTENSION: "VFIO_CHECK_EXTENSION",
    VFIO_SET_IOMMU: "VFIO_SET_IOMMU",
    VFIO_GROUP_GET_STATUS: "VFIO_GROUP_GET_STATUS",
    VFIO_GROUP_SET_CONTAINER: "VFIO_GROUP_SET_CONTAINER",
    VFIO_GROUP_GET_DEVICE_FD: "VFIO_GROUP_GET_DEVICE_FD",
    VFIO_DEVICE_GET_REGION_INFO: "VFIO_DEVICE_GET_REGION_INFO",
    VFIO_DEVICE_BIND_IOMMUFD: "VFIO_DEVICE_BIND_IOMMUFD",
}

#: IOMMU types, best first: what VFIO_CHECK_EXTENSION and VFIO_SET_IOMMU take.
VFIO_TYPE1V2_IOMMU = 3
VFIO_TYPE1_IOMMU = 1
VFIO_NOIOMMU_IOMMU = 8

VFIO_GROUP_FLAGS_VIABLE = 1

#: argsz, flags, iommufd, out_devid
BIND_IOMMUFD = struct.Struct("=IIiI")
#: argsz, flags
GROUP_STATUS = struct.Struct("=II")
#: argsz, flags, index, cap_offset, size, offset
REGION_INFO = struct.Struct("=IIIIQQ")


class Kernel(Protocol):
    """System calls, so that a test can stand in for the kernel. All raise OSError."""

    def open(self, path: str) -> int: ...

    def close(self, fd: int) -> None: ...

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int: ...

    def read(self, fd: int, buffer: memoryview) -> int: ...

    def write(self, fd: int, data: memoryview) -> int: ...

    def pread(self, fd: int, length: int, offset: int) -> bytes: ...

    def pwrite(self, fd: int, data: bytes, offset: int) -> int: ...

    def poll(self, fd: int, events: int, timeout: float | None) -> int: ...

    def set_blocking(self, fd: int, blocking: bool) -> None: ...


class SystemCalls:
    """The real ones."""

    def open(self, path: str) -> int:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def close(self, fd: int) -> None:
        os.close(fd)

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        # fcntl copies a mutable buffer of up to 1024 bytes in and out, longer ones in place.
        return fcntl.ioctl(fd, request, argument)

    def read(self, fd: int, buffer: memoryview) -> int:
        return os.readv(fd, [buffer])

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        return os.pread(fd, length, offset)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return os.pwrite(fd, data, offset)

    def poll(self, fd: int, events: int, timeout: float | None) -> int:
        poller = select.poll()
        poller.register(fd, events)
        found = poller.poll(None if timeout is None else timeout * 1e3)
        return found[0][1] if found else 0

    def set_blocking(self, fd: int, blocking: bool) -> None:
        os.set_blocking(fd, blocking)


def call(
    kernel: Kernel, fd: int, request: int, argument: int | bytearray, what: str, device: str
) -> int:
    """One ioctl. OSError with the kernel's errno, and ``what`` and ``device`` in its text."""
    try:
        return kernel.ioctl(fd, request, argument)
    except OSError as error:
        raise refuse(error.errno or errno.EIO, f"{device}: {what} failed in the kernel") from error


def close_all(kernel: Kernel, fds: list[int]) -> None:
    """Close ``fds``, the first of them first, and empty the list. One that can't be closed is gone."""
    while fds:
        with contextlib.suppress(OSError):
            kernel.close(fds.pop(0))


def address_of(buffer: bytearray | memoryview) -> int:
    """Where a writable buffer is, for structures that carry an address; keep the buffer alive."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
