"""An endpoint: what any PCI function has, for those that add what is behind its BAR 0."""

import threading
from collections.abc import Callable

from precopy.pci import capabilities
from precopy.pci.capabilities import DEVCTL_FLR
from precopy.pci.config_space import (
    BAR0,
    CLASS,
    COMMAND,
    COMMAND_MASTER,
    COMMAND_MEMORY,
    COMMAND_NO_INTX,
    DEVICE_ID,
    REVISION,
    SUBSYSTEM,
    SUBSYSTEM_VENDOR,
    VENDOR_ID,
    ConfigSpace,
)
from precopy.pci.dma import DmaSpace
from precopy.pci.function import DeliverMsi
from precopy.pci.msix import ENTRY_BYTES, MsixTable
from precopy.pci.remap import RemapCapability

#: Where MSI-X has its table and its pending bits in BAR 0.
MSIX_TABLE, MSIX_PENDING = 0x2000, 0x3000


class Endpoint:
    """A function with one 64-bit BAR 0 of ``bar_bytes``, MSI-X, FLR (``PciFunction``).

    ``virtual``: a VF, whose ids read as ones and whose BAR is the PF's to place (SR-IOV, 9.3.4).
    ``remap``: with the capability by which software maps memory for its DMA (see ``pci.remap``).
    A function that is not :attr:`present` reads as ones everywhere.
    """

    def __init__(
        self,
        name: str,
        dma: DmaSpace,
        *,
        vendor_id: int,
        device_id: int,
        class_code: int,
        bar_bytes: int,
        vectors: int,
        virtual: bool = False,
        remap: bool = True,
    ) -> None:
        self._name, self._dma = name, dma
        self._bar_bytes = bar_bytes
        self._lock = threading.RLock()
        self.present = True
        self.config = space = ConfigSpace()
        self.msix = MsixTable(vectors)
        ids = (0xFFFF, 0xFFFF) if virtual else (vendor_id, device_id)
        space.put(VENDOR_ID, 2, ids[0])
        space.put(DEVICE_ID, 2, ids[1])
        command = COMMAND_MASTER if virtual else COMMAND_MASTER | COMMAND_MEMORY | COMMAND_NO_INTX
        space.put(COMMAND, 2, 0, command)
        space.put(REVISION, 1, 0)
        space.put(CLASS, 3, class_code)
        space.put(SUBSYSTEM_VENDOR, 2, vendor_id)
        space.put(SUBSYSTEM, 2, device_id)
        if not virtual:
            space.put_bar(BAR0, bar_bytes)
        self._devctl = capabilities.express(space)
        space.on_write(self._devctl, 2, self._device_control)
        if not virtual:
            capabilities.power_management(space)
        self._control = capabilities.msix(space, vectors, 0, MSIX_TABLE, MSIX_PENDING)
        space.on_write(self._control, 2, lambda: self.msix.control(space.get(self._control, 2)))
        self.remap = RemapCapability(space, dma) if remap else None
        #: Told after a driver has reset the function (FLR).
        self.on_flr: Callable[[], None] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def dma(self) -> DmaSpace:
        return self._dma

    @property
    def bar_sizes(self) -> tuple[int, ...]:
        return (self._bar_bytes, 0, 0, 0, 0, 0)

    def connect_msi(self, deliver: DeliverMsi | None) -> None:
        self.msix.connect(deliver)

    # --- Config space -------------------------------------------------------------------------

    def config_read(self, offset: int, size: int) -> bytes:
        with self._lock:
            return self.config.read(offset, size) if self.present else b"\xff" * size

    def config_write(self, offset: int, data: bytes) -> None:
        with self._lock:
            if self.present:
                self.config.write(offset, data)

    def _device_control(self) -> None:
        value = self.config.get(self._devctl, 2)
        if value & DEVCTL_FLR:
            self.config.set(self._devctl, 2, value & ~DEVCTL_FLR)
            self.reset()
            if self.on_flr is not None:
                self.on_flr()

    def reset(self) -> None:
        """FLR: registers that a driver set go back, BARs stay where they were put."""
        with self._lock:
            self.config.set(COMMAND, 2, 0)
            self.config.set(self._control, 2, self.msix.vectors - 1)
            self.msix.reset()
            if self.remap is not None:
                self.remap.reset()
            self.on_reset()

    # --- BAR 0 --------------------------------------------------------------------------------

    def bar_read(self, bar: int, offset: int, size: int) -> bytes:
        with self._lock:
            if not self.present or bar or offset + size > self._bar_bytes:
                return b"\xff" * size
            return self._window(offset)[0](offset, size)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        with self._lock:
            if self.present and not bar and offset + len(data) <= self._bar_bytes:
                self._window(offset)[1](offset, data)

    def _window(
        self, offset: int
    ) -> tuple[Callable[[int, int], bytes], Callable[[int, bytes], None]]:
        """What answers at ``offset`` of BAR 0."""
        if MSIX_TABLE <= offset < MSIX_TABLE + ENTRY_BYTES * self.msix.vectors:
            return (
                lambda at, size: self.msix.read(at - MSIX_TABLE, size),
                lambda at, data: self.msix.write(at - MSIX_TABLE, data),
            )
        if MSIX_PENDING <= offset < MSIX_PENDING + 0x1000:
            return (
                lambda at, size: self.msix.read_pending(at - MSIX_PENDING, size),
                lambda at, data: None,
            )
        return self.mmio_read, self.mmio_write

    # --- What a kind of function adds ---------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of BAR 0 outside MSI-X."""
        return bytes(size)

    def mmio_write(self, offset: int, data: bytes) -> None:
        """Write to BAR 0 outside MSI-X."""

    def on_reset(self) -> None:
        """An FLR happens."""
