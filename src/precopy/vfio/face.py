"""The PCI face of a device: its regions, interrupts and DMA, as VFIO shows them to a VMM.

Constants of include/uapi/linux/vfio.h (Linux 7.3): ``struct vfio_region_info``, ``vfio_irq_info`` and
the indexes that vfio-pci gives them.
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from precopy.pci.dma import DmaSpace


class DeviceFlags(enum.IntFlag):
    """``VFIO_DEVICE_FLAGS_*``."""

    RESET = 1 << 0
    PCI = 1 << 1


class RegionIndex(enum.IntEnum):
    """``VFIO_PCI_*_REGION_INDEX``: BARs 0 to 5 are regions 0 to 5."""

    BAR0 = 0
    ROM = 6
    CONFIG = 7
    VGA = 8


NUM_REGIONS = 9


class RegionFlags(enum.IntFlag):
    """``VFIO_REGION_INFO_FLAG_*``."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    CAPS = 1 << 3


class IrqIndex(enum.IntEnum):
    """``VFIO_PCI_*_IRQ_INDEX``."""

    INTX = 0
    MSI = 1
    MSIX = 2
    ERR = 3
    REQ = 4


NUM_IRQS = 5


class IrqFlags(enum.IntFlag):
    """``VFIO_IRQ_INFO_*``."""

    EVENTFD = 1 << 0
    MASKABLE = 1 << 1
    AUTOMASKED = 1 << 2
    NORESIZE = 1 << 3


_NO_ACCESS = RegionFlags(0)


@dataclass(frozen=True, slots=True)
class RegionInfo:
    """A region: ``size`` in bytes, 0 for one that is not there.

    ``fd`` (of the region's owner, who keeps it open) can be mapped from ``fd_offset`` on, where the
    region's bytes are plain memory: in ``areas`` (offset in the region, length), or all of it where
    there are none.
    """

    size: int = 0
    flags: RegionFlags = _NO_ACCESS
    fd: int | None = None
    fd_offset: int = 0
    areas: tuple[tuple[int, int], ...] = ()


#: Told of an interrupt that the device raises: its index and vector.
RaiseIrq = Callable[[int, int], None]


class PciFace(Protocol):
    """What a VMM that has the device sees of it. Any thread may call.

    Registers are little-endian bytes. Nothing raises for what a driver does.
    """

    @property
    def dma(self) -> DmaSpace:
        """The device's own address space: what is not mapped there it can't reach."""

    @property
    def regions(self) -> Sequence[RegionInfo]:
        """:data:`NUM_REGIONS` regions, in the order of :class:`RegionIndex`."""

    @property
    def irqs(self) -> Sequence[int]:
        """How many vectors each of :class:`IrqIndex` has."""

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        """``size`` bytes inside a region; one access for the device where ``size`` is 1, 2, 4 or 8."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Write inside a region; what it makes the device do is done on return."""

    def connect_irqs(self, raise_irq: RaiseIrq | None) -> None:
        """Where interrupts go; None: nowhere. They are raised whatever an MSI-X table holds, since
        under VFIO that table belongs to who owns the device."""

    def unmap_dma(self, addresses: Sequence[int]) -> None:
        """Unmap the ranges at exactly ``addresses``; no DMA reaches them after return. ENOENT."""

    def reset(self) -> None:
        """Registers go back to what they are after a reset of the function."""
