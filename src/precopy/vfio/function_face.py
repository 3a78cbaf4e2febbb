"""The PCI face of a function that lives in this process."""

import threading
from collections.abc import Callable, Sequence

from precopy.pci.config_space import CONFIG_BYTES
from precopy.pci.dma import DmaSpace
from precopy.pci.endpoint import Endpoint
from precopy.vfio.face import (
    NUM_REGIONS,
    IrqIndex,
    RaiseIrq,
    RegionFlags,
    RegionIndex,
    RegionInfo,
)

_BOTH = RegionFlags.READ | RegionFlags.WRITE

#: What lies in a BAR changes at pages only; a register has at most 8 bytes.
_PAGE, _REGISTER = 4096, 8


class FunctionFace:
    """``PciFace`` of ``function``, which is this face's alone.

    ``flr``: called after a driver has reset the function through its config space. ``barrier``: held
    by the device while it does DMA.
    """

    def __init__(
        self, function: Endpoint, *, flr: Callable[[], None], barrier: "threading.RLock"
    ) -> None:
        self._function, self._barrier = function, barrier
        function.on_flr = flr
        sizes = function.bar_sizes
        found = [RegionInfo(size, _BOTH) if size else RegionInfo() for size in sizes]
        found += [RegionInfo()] * (NUM_REGIONS - len(found))
        found[RegionIndex.CONFIG] = RegionInfo(CONFIG_BYTES, _BOTH)
        self.regions: Sequence[RegionInfo] = tuple(found)
        vectors = function.msix.vectors
        self.irqs: Sequence[int] = (0, 0, vectors, 1, 1)

    @property
    def dma(self) -> DmaSpace:
        return self._function.dma

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        function = self._function
        if region == RegionIndex.CONFIG:
            return function.config_read(offset, size)
        if size <= _REGISTER:
            return function.bar_read(region, offset, size)
        end, pieces = offset + size, []
        while offset < end:
            count = min(end, offset // _PAGE * _PAGE + _PAGE) - offset
            pieces.append(function.bar_read(region, offset, count))
            offset += count
        return b"".join(pieces)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        function = self._function
        if region == RegionIndex.CONFIG:
            function.config_write(offset, data)
            return
        at = 0
        while at < len(data):
            where = offset + at
            count = min(len(data) - at, _REGISTER - where % _REGISTER)
            function.bar_write(region, where, data[at : at + count])
            at += count

    def connect_irqs(self, raise_irq: RaiseIrq | None) -> None:
        if raise_irq is None:
            self._function.msix.connect_vectors(None)
        else:
            told = raise_irq
            self._function.msix.connect_vectors(lambda vector: told(IrqIndex.MSIX, vector))

    def unmap_dma(self, addresses: Sequence[int]) -> None:
        # Who does DMA now is done before, who does it later finds nothing.
        with self._barrier:
            self._function.dma.replace(addresses, ())

    def reset(self) -> None:
        self._function.reset()
