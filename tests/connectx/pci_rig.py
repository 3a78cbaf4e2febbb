"""A card on a bus in this process, and the driver of one of its functions."""

from collections.abc import Callable

from precopy.connectx import Adapter, AdapterConfig, FaultPlan, InlineExecutor
from precopy.connectx.pci_function import ConnectxFunction
from precopy.pci.capabilities import MSIX_ENABLE
from precopy.pci.endpoint import MSIX_TABLE
from precopy.pci.memory import GuestMemory

_SRIOV, _MSIX = 0x10, 0x11


def capability(function: ConnectxFunction, wanted: int) -> int:
    """Offset of a capability, found as a driver finds it; 0 where there is none."""
    at = function.config_read(0x34, 1)[0]
    while at:
        if function.config_read(at, 1)[0] == wanted:
            return at
        at = function.config_read(at + 1, 1)[0]
    return 0


def extended(function: ConnectxFunction, wanted: int) -> int:
    """Offset of an extended capability; 0 where there is none."""
    at = 0x100
    while at:
        header = int.from_bytes(function.config_read(at, 4), "little")
        if header & 0xFFFF == wanted:
            return at
        at = header >> 20
    return 0


class DirectBus:
    """BAR 0, DMA and MSI-X of a function that is in this process (``guest.pci_port.Bus``)."""

    def __init__(self, function: ConnectxFunction) -> None:
        self.function = function
        self._handlers: dict[int, Callable[[], None]] = {}
        function.connect_msi(self._delivered)
        at = capability(function, _MSIX)
        function.config_write(at + 2, MSIX_ENABLE.to_bytes(2, "little"))
        for vector in range(function.msix.vectors):
            entry = (0xFEE0_0000 + vector).to_bytes(8, "little") + vector.to_bytes(4, "little")
            function.bar_write(0, MSIX_TABLE + 16 * vector, entry + bytes(4))

    def _delivered(self, address: int, data: int) -> None:
        assert address == 0xFEE0_0000 + data
        handler = self._handlers.get(data)
        if handler is not None:
            handler()

    def read(self, offset: int, size: int) -> bytes:
        return self.function.bar_read(0, offset, size)

    def write(self, offset: int, data: bytes) -> None:
        self.function.bar_write(0, offset, data)

    def map_guest(self, memory: GuestMemory) -> None:
        self.function.dma.map_guest(memory)

    def unmap_guest(self, memory: GuestMemory) -> None:
        for region in memory.regions:
            self.function.dma.unmap(region.spec.iova)

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        if handler is None:
            self._handlers.pop(vector, None)
        else:
            self._handlers[vector] = handler


def enable_vfs(pf: ConnectxFunction, count: int) -> None:
    """Switch on ``count`` VFs, or all off."""
    at = extended(pf, _SRIOV)
    pf.config_write(at + 0x10, count.to_bytes(2, "little"))
    pf.config_write(at + 0x08, (9 if count else 0).to_bytes(2, "little"))


class OnBus:
    """A card with ``vfs`` VFs, switched on by its SR-IOV capability."""

    def __init__(self, vfs: int = 2, **fields: int | bool) -> None:
        config = AdapterConfig(num_vfs=vfs, log_max_qp=8, log_max_cq=8, **fields)  # type: ignore[arg-type]
        self.faults = FaultPlan()
        self.adapter = Adapter(config, faults=self.faults, executor=InlineExecutor())
        self.pf, self.vfs = self.adapter.pci_functions()

    def enable_vfs(self, count: int) -> None:
        enable_vfs(self.pf, count)

    def close(self) -> None:
        self.adapter.close()
