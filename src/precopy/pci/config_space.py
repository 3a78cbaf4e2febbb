"""Config space: 4096 bytes with write masks, capabilities in their two chains, hooks on writes.

Source: PCI Express Base Specification 5.0, chapter 7; names as in include/uapi/linux/pci_regs.h.
"""

from collections.abc import Callable

CONFIG_BYTES = 4096

VENDOR_ID, DEVICE_ID, COMMAND, STATUS = 0x00, 0x02, 0x04, 0x06
REVISION, CLASS, HEADER_TYPE = 0x08, 0x09, 0x0E
BAR0, SUBSYSTEM_VENDOR, SUBSYSTEM, CAPABILITIES = 0x10, 0x2C, 0x2E, 0x34

COMMAND_MEMORY, COMMAND_MASTER, COMMAND_NO_INTX = 0x2, 0x4, 0x400
STATUS_CAPABILITIES = 0x10

#: Low bits of a memory BAR: 64 bits wide; contents may be fetched ahead.
BAR_64 = 0x4
BAR_PREFETCH = 0x8

#: Where capabilities are put; extended ones start at 0x100, as the specification has it.
_FIRST_CAPABILITY = 0x40
_FIRST_EXTENDED = 0x100


class ConfigSpace:
    """Registers are little-endian. Bits that no mask names can't be written by a driver."""

    def __init__(self) -> None:
        self._data = bytearray(CONFIG_BYTES)
        self._mask = bytearray(CONFIG_BYTES)
        self._hooks: list[tuple[int, int, Callable[[], None]]] = []
        self._next, self._link = _FIRST_CAPABILITY, CAPABILITIES
        self._extended, self._last_extended = _FIRST_EXTENDED, 0

    # --- What the device does -----------------------------------------------------------------

    def get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._data[offset : offset + size], "little")

    def put(self, offset: int, size: int, value: int, writable: int = 0) -> None:
        """A register of ``size`` bytes; ``writable``: the bits that a driver may change."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")
        self._mask[offset : offset + size] = writable.to_bytes(size, "little")

    def set(self, offset: int, size: int, value: int) -> None:
        """Change a register's value, not what a driver may write of it."""
        self._data[offset : offset + size] = value.to_bytes(size, "little")

    def put_bar(self, offset: int, size: int, flags: int = BAR_64 | BAR_PREFETCH) -> None:
        """A 64-bit memory BAR of ``size`` bytes (a power of two): all ones written tell its size."""
        whole = (1 << 64) - size
        self.put(offset, 4, flags, whole & 0xFFFF_FFF0)
        self.put(offset + 4, 4, 0, whole >> 32)

    def add_capability(self, identifier: int, length: int) -> int:
        """Room for a capability of ``length`` bytes, header included; its offset."""
        offset = self._next
        self._next = offset + (length + 3) // 4 * 4
        self.set(self._link, 1, offset)
        self.put(STATUS, 2, self.get(STATUS, 2) | STATUS_CAPABILITIES)
        self.put(offset, 2, identifier)
        self._link = offset + 1
        return offset

    def add_extended(self, identifier: int, version: int, length: int) -> int:
        """Room for an extended capability of ``length`` bytes; its offset."""
        offset = self._extended
        self._extended = offset + (length + 3) // 4 * 4
        if self._last_extended:
            header = self.get(self._last_extended, 4) & 0x000F_FFFF
            self.set(self._last_extended, 4, header | offset << 20)
        self.put(offset, 4, identifier | version << 16)
        self._last_extended = offset
        return offset

    def on_write(self, offset: int, length: int, hook: Callable[[], None]) -> None:
        """Call ``hook`` after a driver's write that touches these bytes."""
        self._hooks.append((offset, offset + length, hook))

    # --- What the driver does -----------------------------------------------------------------

    def read(self, offset: int, size: int) -> bytes:
        """Bytes beyond the end read as ones."""
        return bytes(self._data[offset : offset + size]).ljust(size, b"\xff")

    def write(self, offset: int, data: bytes) -> None:
        end = min(offset + len(data), CONFIG_BYTES)
        for at in range(offset, end):
            mask = self._mask[at]
            self._data[at] = self._data[at] & ~mask | data[at - offset] & mask
        for low, high, hook in self._hooks:
            if offset < high and low < end:
                hook()
