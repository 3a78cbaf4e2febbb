"""A guest on a device that is attached by vfio-user: registers, DMA and interrupts by messages."""

import contextlib
import errno
import os
import select
import threading
from collections.abc import Callable

from precopy.backends.vfio_user.client import Client
from precopy.pci.config_space import COMMAND, COMMAND_MASTER, COMMAND_MEMORY
from precopy.pci.memory import GuestMemory
from precopy.vfio.errors import refuse
from precopy.vfio.face import DeviceFlags, IrqIndex, RegionIndex
from precopy.vfio_user.messages import SetIrqsFlags

_BAR0 = int(RegionIndex.BAR0)
_TRIGGER = SetIrqsFlags.ACTION_TRIGGER


class VfioUserBus:
    """``guest.pci_port.Bus``. OSError ENOTTY where the device is no PCI function."""

    def __init__(self, client: Client) -> None:
        self._client = client
        if not client.device_info().flags & DeviceFlags.PCI:
            raise refuse(
                errno.ENOTTY, f"{client.path}: a device that is no PCI function has no guest"
            )
        command = int.from_bytes(client.region_read(RegionIndex.CONFIG, COMMAND, 2), "little")
        command |= COMMAND_MASTER | COMMAND_MEMORY
        client.region_write(RegionIndex.CONFIG, COMMAND, command.to_bytes(2, "little"))
        self._handlers: dict[int, tuple[int, Callable[[], None]]] = {}
        #: Eventfds that are to be closed, by the thread that may be waiting for them.
        self._leaving: list[int] = []
        #: Wakes the thread, and is there as long as it is.
        self._changed = -1
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def read(self, offset: int, size: int) -> bytes:
        return self._client.region_read(_BAR0, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self._client.region_write(_BAR0, offset, data)

    def map_guest(self, memory: GuestMemory) -> None:
        for region in memory.regions:
            self._client.dma_map(region.spec.iova, region.spec.length, region.fd)

    def unmap_guest(self, memory: GuestMemory) -> None:
        for region in memory.regions:
            # A server that has gone has let go of it.
            with contextlib.suppress(OSError):
                self._client.dma_unmap(region.spec.iova, region.spec.length)

    # --- Interrupts ---------------------------------------------------------------------------

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        flags = SetIrqsFlags.DATA_EVENTFD | _TRIGGER
        with self._lock:
            there = vector in self._handlers
        if there:
            with contextlib.suppress(OSError):
                self._client.set_irqs(flags, IrqIndex.MSIX, vector, 1)
        with self._lock:
            old = self._handlers.pop(vector, None)
            if old is not None:
                self._leaving.append(old[0])
                self._wake()
        if handler is not None:
            eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            with self._lock:
                self._handlers[vector] = (eventfd, handler)
                if self._thread is None:
                    self._changed = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
                    self._thread = threading.Thread(target=self._run, name="msix", daemon=True)
                    self._thread.start()
                self._wake()
            self._client.set_irqs(flags, IrqIndex.MSIX, vector, 1, fds=[eventfd])

    def _wake(self) -> None:
        os.eventfd_write(self._changed, 1)

    def _run(self) -> None:
        """One thread for all vectors; it ends when there is none any more."""
        while True:
            with self._lock:
                handlers = dict(self._handlers.values())
                while self._leaving:
                    os.close(self._leaving.pop())
                if not handlers:
                    os.close(self._changed)
                    self._thread = None
                    return
            poller = select.poll()
            for fd in (self._changed, *handlers):
                poller.register(fd, select.POLLIN)
            for fd, _ in poller.poll():
                with contextlib.suppress(OSError):
                    os.eventfd_read(fd)
                    if fd in handlers:
                        handlers[fd]()
