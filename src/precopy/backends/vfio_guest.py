"""A guest on a kernel's VF: the workload drives it through VFIO, as a user-space driver would.

For VFs of the lab's software ConnectX, whose functions can be told where pages of this process are
to stand in their address space (``pci.remap``); a VF without that has no guest.
"""

import contextlib
import ctypes
import errno
import mmap
import os
import select
import struct
import threading
from collections.abc import Callable

from precopy.backends.kernel.device import KernelVfioDevice
from precopy.backends.kernel.ioctls import call
from precopy.pci import remap
from precopy.pci.config_space import CAPABILITIES, COMMAND, COMMAND_MASTER
from precopy.pci.memory import GuestMemory, Region
from precopy.vfio.errors import refuse

_CONFIG, _BAR0 = 7, 0
_VENDOR_SPECIFIC = 0x09

# VFIO_DEVICE_SET_IRQS: argsz, flags, index, start, count, then one eventfd each.
_VFIO_DEVICE_SET_IRQS = ord(";") << 8 | 110
_IRQ_SET = struct.Struct("=IIIII")
_IRQ_DATA_NONE, _IRQ_DATA_EVENTFD, _IRQ_ACTION_TRIGGER = 1 << 0, 1 << 2, 1 << 5
_MSIX_INDEX = 2

PAGE_BYTES = mmap.PAGESIZE
#: Entries of the list that is written at a time: one page full.
_LIST_PAGES = PAGE_BYTES // 8

_libc = ctypes.CDLL(None, use_errno=True)


class VfioBus:
    """BAR 0, DMA and MSI-X of a VF that VFIO has (``guest.pci_port.Bus``).

    OSError ENOTTY where the VF can't be told where this process has its memory.
    """

    def __init__(self, device: KernelVfioDevice) -> None:
        self._device = device
        self._remap = self._find_remap()
        if not self._remap:
            raise refuse(errno.ENOTTY, f"{device.name}: this VF can't have a guest of this process")
        self._interrupts: dict[int, _Interrupt] = {}
        command = int.from_bytes(device.region_read(_CONFIG, COMMAND, 2), "little")
        device.region_write(_CONFIG, COMMAND, (command | COMMAND_MASTER).to_bytes(2, "little"))

    def _config(self, offset: int, size: int) -> int:
        return int.from_bytes(self._device.region_read(_CONFIG, offset, size), "little")

    def _find_remap(self) -> int:
        at = self._config(CAPABILITIES, 1)
        while at:
            if (self._config(at, 1), self._config(at + 3, 1)) == (_VENDOR_SPECIFIC, remap.KIND):
                return at
            at = self._config(at + 1, 1)
        return 0

    def read(self, offset: int, size: int) -> bytes:
        return self._device.region_read(_BAR0, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._device.region_write(_BAR0, offset, data)

    # --- DMA ----------------------------------------------------------------------------------

    def map_guest(self, memory: GuestMemory) -> None:
        with mmap.mmap(-1, PAGE_BYTES) as page, memoryview(page) as view:
            where = _physical(_address(page), 1)[0]
            for region in memory.regions:
                self._map(region, view, where)

    def _map(self, region: Region, page: memoryview, where: int) -> None:
        pages = _physical(_address(region.map), region.spec.length // PAGE_BYTES)
        for first in range(0, len(pages), _LIST_PAGES):
            some = pages[first : first + _LIST_PAGES]
            struct.pack_into(f"<{len(some)}Q", page, 0, *some)
            address = region.spec.iova + first * PAGE_BYTES
            result = self._command(remap.MAP, where, len(some), address)
            if result:
                raise refuse(result, f"{self._device.name}: mapping guest memory at {address:#x}")

    def _command(self, command: int, where: int = 0, count: int = 0, address: int = 0) -> int:
        registers = (
            (remap.LIST, where & 0xFFFF_FFFF),
            (remap.LIST + 4, where >> 32),
            (remap.COUNT, count),
            (remap.ADDRESS, address & 0xFFFF_FFFF),
            (remap.ADDRESS + 4, address >> 32),
            (remap.COMMAND, command),
        )
        for register, value in registers:
            place = self._remap + register
            self._device.region_write(_CONFIG, place, value.to_bytes(4, "little"))
        return self._config(self._remap + remap.COMMAND, 4)

    def unmap_guest(self, memory: GuestMemory) -> None:
        # A device that is closed already has been reset, which takes mappings away.
        with contextlib.suppress(OSError):
            self._command(remap.UNMAP)

    # --- Interrupts ---------------------------------------------------------------------------

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        old = self._interrupts.pop(vector, None)
        if old is not None:
            with contextlib.suppress(OSError):
                self._set_irqs(_IRQ_DATA_NONE, 0, b"")
            old.end()
        if handler is not None:
            new = self._interrupts[vector] = _Interrupt(handler)
            self._set_irqs(
                _IRQ_DATA_EVENTFD,
                vector + 1,
                struct.pack(f"={vector + 1}i", *[-1] * vector, new.eventfd),
            )

    def _set_irqs(self, kind: int, count: int, data: bytes) -> None:
        flags = kind | _IRQ_ACTION_TRIGGER
        size = _IRQ_SET.size + len(data)
        argument = bytearray(_IRQ_SET.pack(size, flags, _MSIX_INDEX, 0, count) + data)
        device = self._device
        what = "VFIO_DEVICE_SET_IRQS"
        call(device.kernel, device.fileno(), _VFIO_DEVICE_SET_IRQS, argument, what, device.name)


class _Interrupt:
    """An eventfd, and the thread that calls ``handler`` when it is signalled."""

    def __init__(self, handler: Callable[[], None]) -> None:
        self.eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handler = handler
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name="msix", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self.eventfd, select.POLLIN)
        poller.register(self._stop, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._stop in ready:
                return
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.eventfd)
                self._handler()

    def end(self) -> None:
        os.eventfd_write(self._stop, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        os.close(self.eventfd)
        os.close(self._stop)


def _address(mapped: mmap.mmap) -> int:
    """Where in this process ``mapped`` is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapped))


def _physical(address: int, pages: int) -> list[int]:
    """Physical addresses of ``pages`` pages from ``address`` on, which stay in memory from now on.

    OSError EPERM where this process may not know them (CAP_SYS_ADMIN, CAP_IPC_LOCK).
    """
    if _libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(pages * PAGE_BYTES)):
        code = ctypes.get_errno()
        raise refuse(code, f"locking {pages} pages of guest memory")
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        data = os.pread(pagemap.fileno(), 8 * pages, address // PAGE_BYTES * 8)
    frames = [entry & (1 << 55) - 1 for entry in struct.unpack(f"={pages}Q", data)]
    if not all(frames):
        raise refuse(errno.EPERM, "the physical addresses of guest memory: run as root")
    return [frame * PAGE_BYTES for frame in frames]
