"""Writes found by userfaultfd's asynchronous write protection, and PAGEMAP_SCAN. Linux 6.7.

Every page is write-protected in the page table of ``view``. A write lifts the protection of its page
in the kernel, without a message to anyone; a scan tells the pages that are not protected and
protects them again, both in one step for each page. The protection is a matter of one mapping:
writes through another one of the same memory (``device_view``, another process) are not seen.
Pages never touched are known by markers, so that no memory is filled for them; the page table costs
8 bytes for every page of 4096. Pages that are given back to the host (MADV_REMOVE, a balloon's) read
as zeroes afterwards and are no writes: clean ones among them are not told.

Source: include/uapi/linux/userfaultfd.h, include/uapi/linux/fs.h (struct pm_scan_arg, struct
page_region), Documentation/admin-guide/mm/pagemap.rst and userfaultfd.rst.

Cost, measured for 1 GiB whose pages are all present, on 2 cores (``python -m benchmarks dirty``):
collect takes 0.4 ms where all is clean and 1.1 ms where 1 % of the pages, scattered, is dirty; start
takes 39 ms. The first write to a page after that costs its writer a fault.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct

import numpy as np
from numpy.typing import NDArray

from precopy.memory.common import address_of, check_bitmap
from precopy.pci.memory import PAGE_SIZE, GuestMemory, Region
from precopy.vfio.dirty_bits import set_runs
from precopy.vfio.errors import refuse

#: The number of the system call userfaultfd, by machine (asm/unistd_64.h, asm-generic/unistd.h).
_SYSCALL = {"x86_64": 323, "aarch64": 282}

#: UFFD_USER_MODE_ONLY, which needs no privilege. It keeps nothing from being seen: what it excludes
#: are faults in the kernel that somebody else would have to resolve, and here the kernel does.
_USER_MODE_ONLY = 1

_API = struct.Struct("=QQQ")  # struct uffdio_api: api, features, ioctls
_UFFD_API = 0xAA
_FEATURES = {
    "WP_HUGETLBFS_SHMEM": 1 << 12,
    "WP_UNPOPULATED": 1 << 13,
    "WP_ASYNC": 1 << 15,
}
_RANGE = struct.Struct("=QQ")  # struct uffdio_range: start, len
_REGISTER = struct.Struct("=QQQQ")  # struct uffdio_register: range, mode, ioctls
_REGISTER_MODE_WP = 1 << 1
_WRITEPROTECT = struct.Struct("=QQQ")  # struct uffdio_writeprotect: range, mode
_WRITEPROTECT_MODE_WP = 1 << 0

_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_UFFDIO_WRITEPROTECT = 0xC018AA06

# struct pm_scan_arg: size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted,
# category_mask, category_anyof_mask, return_mask.
_SCAN = struct.Struct("=12Q")
_SCAN_WALK_END = 4
_PAGEMAP_SCAN = 0xC0606610
_WP_MATCHING, _CHECK_WPASYNC = 1 << 0, 1 << 1
_PAGE_IS_WRITTEN = 1 << 1

#: Runs of pages that one scan can tell, each a struct page_region: start, end, categories.
_RUNS = 1 << 15
_SHIFT = PAGE_SIZE.bit_length() - 1


def _open_userfaultfd() -> int:
    """A userfaultfd with what is needed here. OSError ENOTSUP where there is none."""
    number = _SYSCALL.get(platform.machine()) if ctypes.sizeof(ctypes.c_void_p) == 8 else None
    if number is None:
        raise refuse(errno.ENOTSUP, f"userfaultfd's number is not known on {platform.machine()}")
    libc = ctypes.CDLL(None, use_errno=True)
    flags = os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY
    fd: int = libc.syscall(ctypes.c_long(number), ctypes.c_long(flags))
    if fd < 0:
        why = os.strerror(ctypes.get_errno())
        raise refuse(errno.ENOTSUP, f"the kernel gives no userfaultfd: {why}")
    wanted = sum(_FEATURES.values())
    try:
        fcntl.ioctl(fd, _UFFDIO_API, bytearray(_API.pack(_UFFD_API, wanted, 0)))
    except OSError as error:
        os.close(fd)
        what = f"userfaultfd without {', '.join(_FEATURES)}: a kernel from 6.7 on has them"
        raise refuse(errno.ENOTSUP, what) from error
    return fd


def _open_pagemap() -> int:
    """This process's pagemap, which can be scanned. OSError ENOTSUP where it can't."""
    try:
        fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise refuse(errno.ENOTSUP, f"/proc/self/pagemap: {error.strerror}") from error
    try:
        _scan(fd, 0, 0, np.empty((0, 3), dtype=np.uint64))
    except OSError as error:
        os.close(fd)
        what = "/proc/self/pagemap has no PAGEMAP_SCAN: a kernel from 6.7 on has it"
        raise refuse(errno.ENOTSUP, what) from error
    return fd


def _scan(pagemap: int, start: int, end: int, runs: NDArray[np.uint64]) -> tuple[int, int]:
    """Written pages from ``start`` to ``end`` into ``runs``, protected again: how many, and how far."""
    asked = bytearray(
        _SCAN.pack(
            *(_SCAN.size, _WP_MATCHING | _CHECK_WPASYNC, start, end, 0),
            *(runs.ctypes.data if len(runs) else 0, len(runs), 0),
            *(0, _PAGE_IS_WRITTEN, 0, _PAGE_IS_WRITTEN),
        )
    )
    count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, asked)
    return count, _SCAN.unpack(asked)[_SCAN_WALK_END]


class _Armed:
    """The region's mapping, kept as long as it is armed, and where it stands."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.held = memoryview(region.map)
        self.start = address_of(region)
        self.end = self.start + region.spec.length


class UserfaultTracker:
    """A :class:`~precopy.memory.tracker.WriteTracker`. OSError ENOTSUP where the kernel has not what it needs."""

    name = "userfaultfd"

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self._userfaultfd = self._pagemap = -1
        self._armed: list[_Armed] = []
        self._runs = np.zeros((_RUNS, 3), dtype=np.uint64)
        try:
            self._open()
        finally:
            self.stop()

    def _open(self) -> None:
        self._userfaultfd = _open_userfaultfd()
        self._pagemap = _open_pagemap()

    def start(self) -> None:
        self.stop()
        try:
            self._open()
            for region in self._memory.regions:
                armed = _Armed(region)
                self._armed.append(armed)
                start, length = armed.start, region.spec.length
                for request, packed in (
                    (_UFFDIO_REGISTER, _REGISTER.pack(start, length, _REGISTER_MODE_WP, 0)),
                    (
                        _UFFDIO_WRITEPROTECT,
                        _WRITEPROTECT.pack(start, length, _WRITEPROTECT_MODE_WP),
                    ),
                ):
                    fcntl.ioctl(self._userfaultfd, request, bytearray(packed))
        except BaseException:
            self.stop()
            raise

    def collect(self, region: int, dirty: NDArray[np.uint8]) -> None:
        if not self._armed:
            raise refuse(errno.EINVAL, "the write tracker is not started")
        armed = self._armed[region]
        check_bitmap(armed.region, dirty)
        base, at = np.uint64(armed.start), armed.start
        while at < armed.end:
            count, at = _scan(self._pagemap, at, armed.end, self._runs)
            runs = (self._runs[:count, :2] - base >> np.uint64(_SHIFT)).astype(np.int64)
            set_runs(dirty, runs[:, 0], runs[:, 1] - 1)

    def copied(self, region: int, pages: NDArray[np.int64], content: NDArray[np.uint8]) -> None:
        """A write after the last collect is told by the next, whatever was copied in between."""

    def stop(self) -> None:
        # The protection goes with the last reference to what protects.
        for fd in (self._userfaultfd, self._pagemap):
            if fd >= 0:
                os.close(fd)
        self._userfaultfd = self._pagemap = -1
        for armed in self._armed:
            armed.held.release()
        self._armed = []
