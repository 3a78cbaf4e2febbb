"""What a PCI function shows: config space, BARs, DMA, interrupts. Front ends offer any that has it."""

from collections.abc import Callable
from typing import Protocol

from precopy.pci.dma import DmaSpace

#: An MSI: the write that the function makes, as address and data of its MSI-X table's entry.
DeliverMsi = Callable[[int, int], None]


class PciFunction(Protocol):
    """One PCI function. Bytes are as the bus carries them (little-endian registers).

    Calls may come from any thread; a function works on one at a time. None raises for what a driver
    does: an access outside a BAR reads as ones and writes nothing.
    """

    @property
    def name(self) -> str:
        """Which it is of its card (``pf``, ``vf0``, ...)."""

    @property
    def dma(self) -> DmaSpace:
        """Its own address space: what is not mapped there it can't reach."""

    @property
    def bar_sizes(self) -> tuple[int, ...]:
        """Bytes of each BAR from 0 on, 0 where there is none; a 64-bit BAR takes two places."""

    def config_read(self, offset: int, size: int) -> bytes:
        """``size`` bytes (1, 2, 4 or 8) of the 4096 of config space."""

    def config_write(self, offset: int, data: bytes) -> None:
        """Write 1, 2, 4 or 8 bytes of config space."""

    def bar_read(self, bar: int, offset: int, size: int) -> bytes:
        """``size`` bytes of BAR ``bar``."""

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Write to BAR ``bar``; what it makes the function do is done on return."""

    def connect_msi(self, deliver: DeliverMsi | None) -> None:
        """Where the function's MSIs go; None: nowhere."""

    def reset(self) -> None:
        """As after power-on (FLR)."""
