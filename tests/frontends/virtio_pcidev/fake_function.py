"""A PCI function of plain memory that tells what was done to it."""

import threading
from collections.abc import Callable

from precopy.pci.dma import DmaSpace
from precopy.pci.function import DeliverMsi

BAR_SIZE = 4096


class FakeFunction:
    """BAR 0 and BAR 2 of 4 KiB each; ``done`` has every access, in order."""

    def __init__(self, name: str = "pf") -> None:
        self.name = name
        self.dma = DmaSpace()
        self.bar_sizes = (BAR_SIZE, 0, BAR_SIZE, 0)
        self.config = bytearray(range(256)) * 16
        self.bars = {0: bytearray(BAR_SIZE), 2: bytearray(BAR_SIZE)}
        self.done: list[tuple[object, ...]] = []
        self.resets = 0
        #: Set after a reset, which is the last that a session does but for unmapping.
        self.was_reset = threading.Event()
        self.deliver: DeliverMsi | None = None
        #: Called after each write of a BAR, with the function.
        self.after_write: Callable[[FakeFunction], None] | None = None

    def config_read(self, offset: int, size: int) -> bytes:
        self.done.append(("config_read", offset, size))
        return bytes(self.config[offset : offset + size])

    def config_write(self, offset: int, data: bytes) -> None:
        self.done.append(("config_write", offset, data))
        self.config[offset : offset + len(data)] = data

    def bar_read(self, bar: int, offset: int, size: int) -> bytes:
        self.done.append(("bar_read", bar, offset, size))
        memory = self.bars.get(bar, bytearray())
        return bytes(memory[offset : offset + size]).ljust(size, b"\xff")

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        self.done.append(("bar_write", bar, offset, data))
        memory = self.bars.get(bar, bytearray())
        if offset + len(data) <= len(memory):
            memory[offset : offset + len(data)] = data
        if self.after_write is not None:
            self.after_write(self)

    def connect_msi(self, deliver: DeliverMsi | None) -> None:
        self.deliver = deliver

    def msi(self, data: int, address: int = 0xA0000) -> None:
        if self.deliver is not None:
            self.deliver(address, data)

    def reset(self) -> None:
        self.resets += 1
        self.was_reset.set()
