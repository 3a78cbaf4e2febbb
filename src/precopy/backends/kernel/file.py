"""The kernel's data_fd as a :class:`MigrationFile`."""

import errno
import select
from collections.abc import Callable

from precopy.backends.kernel.ioctls import Kernel, call
from precopy.vfio.device import Buffer, MigrationFile, PrecopyInfo
from precopy.vfio.errors import refuse
from precopy.vfio.uapi import (
    PRECOPY_INFO_SIZE,
    VFIO_MIG_GET_PRECOPY_INFO,
    PrecopyInfoFlags,
    PrecopyInfoStruct,
)

#: Events that poll tells of unasked.
_ALWAYS = select.POLLRDHUP | select.POLLERR | select.POLLHUP | select.POLLNVAL


class KernelMigrationFile(MigrationFile):
    """Owns ``fd``. Errors are the kernel's, with what failed and on which device in their text.

    ``info_v2`` tells whether the device's user has set MIG_PRECOPY_INFO_V2.
    """

    def __init__(self, kernel: Kernel, fd: int, device: str, info_v2: Callable[[], bool]) -> None:
        self._kernel, self._fd, self._device = kernel, fd, device
        self._info_v2 = info_v2

    def fileno(self) -> int:
        if self._fd < 0:
            raise refuse(errno.EBADF, f"{self._device}: the data_fd is closed")
        return self._fd

    def readinto(self, buffer: bytearray | memoryview) -> int:
        fd = self.fileno()
        try:
            return self._kernel.read(fd, memoryview(buffer).cast("B"))
        except OSError as error:
            raise self._failed(error, "reading state") from error

    def write(self, data: Buffer) -> int:
        fd = self.fileno()
        try:
            return self._kernel.write(fd, memoryview(data).cast("B"))
        except OSError as error:
            raise self._failed(error, "writing state") from error

    def _failed(self, error: OSError, what: str) -> OSError:
        return refuse(error.errno or errno.EIO, f"{self._device}: {what} failed in the kernel")

    def precopy_info(self) -> PrecopyInfo:
        data = bytearray(PrecopyInfoStruct(PRECOPY_INFO_SIZE, 0, 0, 0).pack())
        what = "VFIO_MIG_GET_PRECOPY_INFO"
        call(self._kernel, self.fileno(), VFIO_MIG_GET_PRECOPY_INFO, data, what, self._device)
        found = PrecopyInfoStruct.parse(bytes(data))
        # Without INFOv2 a kernel may leave flags as it likes.
        flags = PrecopyInfoFlags(found.flags if self._info_v2() else 0)
        return PrecopyInfo(found.initial_bytes, found.dirty_bytes, flags)

    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        fd = self.fileno()
        try:
            # The end of a session is told unasked.
            found = self._kernel.poll(fd, events | select.POLLRDHUP, timeout)
        except OSError as error:
            raise self._failed(error, "poll") from error
        # A driver without a poll method answers that everything is possible.
        return found & (events | _ALWAYS)

    def set_nonblocking(self, nonblocking: bool) -> None:
        self._kernel.set_blocking(self.fileno(), not nonblocking)

    def close(self) -> None:
        if self._fd >= 0:
            self._kernel.close(self._fd)
            self._fd = -1
