"""A PCI face with all that there can be: INTx and MSI, memory that can be mapped, a ROM."""

import mmap
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from precopy.pci.dma import DmaSpace
from precopy.vfio.face import IrqIndex, RaiseIrq, RegionFlags, RegionIndex, RegionInfo

_READ, _WRITE, _MMAP = RegionFlags.READ, RegionFlags.WRITE, RegionFlags.MMAP

#: BAR 0: registers. BAR 1: memory of which parts can be mapped. BAR 2: memory, all of it.
REGISTERS, SPARSE, MEMORY = 0, 1, 2
AREAS = ((0x1000, 0x2000), (0x8000, 0x1000))
SPARSE_BYTES, MEMORY_AT, MEMORY_BYTES, ROM_BYTES = 0x10000, 0x10000, 0x4000, 0x800

#: Vectors of INTx, MSI, MSI-X, ERR and REQ.
VECTORS = (1, 4, 40, 1, 1)


@dataclass
class FakeFace:
    """What was done to it is in ``log``; its bytes are in ``bytes_of``."""

    dma: DmaSpace = field(default_factory=DmaSpace)
    log: list[tuple[object, ...]] = field(default_factory=list)
    raise_irq: RaiseIrq | None = None
    irqs: Sequence[int] = VECTORS
    #: Called for every write, in the thread that makes it.
    on_write: Callable[[], object] | None = None

    def __post_init__(self) -> None:
        self.fd = os.memfd_create("bar", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, MEMORY_AT + MEMORY_BYTES)
        self.memory = mmap.mmap(self.fd, MEMORY_AT + MEMORY_BYTES)
        found = [RegionInfo()] * 9
        found[REGISTERS] = RegionInfo(0x100, _READ | _WRITE)
        found[SPARSE] = RegionInfo(SPARSE_BYTES, _READ | _WRITE | _MMAP, self.fd, 0, AREAS)
        found[MEMORY] = RegionInfo(MEMORY_BYTES, _READ | _WRITE | _MMAP, self.fd, MEMORY_AT)
        found[RegionIndex.ROM] = RegionInfo(ROM_BYTES, _READ)
        found[RegionIndex.CONFIG] = RegionInfo(0x1000, _READ | _WRITE)
        self.regions: Sequence[RegionInfo] = tuple(found)
        self.bytes_of = [bytearray(region.size) for region in found]

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        self.log.append(("read", region, offset, size))
        return bytes(self.bytes_of[region][offset : offset + size])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.log.append(("write", region, offset, data))
        self.bytes_of[region][offset : offset + len(data)] = data
        if self.on_write is not None:
            self.on_write()

    def connect_irqs(self, raise_irq: RaiseIrq | None) -> None:
        self.raise_irq = raise_irq

    def raise_vector(self, irq: IrqIndex, vector: int = 0) -> None:
        assert self.raise_irq is not None
        self.raise_irq(irq, vector)

    def unmap_dma(self, addresses: Sequence[int]) -> None:
        self.dma.replace(addresses, ())

    def reset(self) -> None:
        self.log.append(("reset",))

    def close(self) -> None:
        self.memory.close()
        os.close(self.fd)
