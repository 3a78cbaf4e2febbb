"""The MSI-X table of a function: which vectors are masked, which wait, and where messages go.

Source: PCI Express Base Specification 5.0, section 6.1.4.
"""

import struct
import threading
from collections.abc import Callable

from precopy.pci.capabilities import MSIX_ENABLE, MSIX_MASK_ALL
from precopy.pci.function import DeliverMsi

ENTRY_BYTES = 16
_MASKED = 1


class MsixTable:
    """``vectors`` entries, all masked at first. Vectors are raised from any thread."""

    def __init__(self, vectors: int) -> None:
        self.vectors = vectors
        self._lock = threading.Lock()
        self._deliver: DeliverMsi | None = None
        self._vectors: Callable[[int], None] | None = None
        self._control = 0
        self._table = bytearray()
        self._pending: set[int] = set()
        self.reset()

    def reset(self) -> None:
        with self._lock:
            self._control = 0
            self._table = bytearray((bytes(12) + b"\x01\0\0\0") * self.vectors)
            self._pending.clear()

    def connect(self, deliver: DeliverMsi | None) -> None:
        with self._lock:
            self._deliver = deliver

    def connect_vectors(self, raised: Callable[[int], None] | None) -> None:
        """From now on ``raised`` is told of every vector, whatever the table holds (VFIO's way: the
        table is the host's, its vectors are eventfds). None: by the table again."""
        with self._lock:
            self._vectors = raised

    # --- What the driver does -----------------------------------------------------------------

    def control(self, value: int) -> None:
        """Message Control was written."""
        with self._lock:
            self._control = value
        self._flush()

    def read(self, offset: int, size: int) -> bytes:
        """Of the table."""
        with self._lock:
            return bytes(self._table[offset : offset + size]).ljust(size, b"\0")

    def write(self, offset: int, data: bytes) -> None:
        """To the table."""
        with self._lock:
            data = data[: max(0, len(self._table) - offset)]
            self._table[offset : offset + len(data)] = data
        self._flush()

    def read_pending(self, offset: int, size: int) -> bytes:
        """Of the pending bits."""
        with self._lock:
            bits = sum(1 << vector for vector in self._pending)
        return (bits >> 8 * offset & (1 << 8 * size) - 1).to_bytes(size, "little")

    # --- What the device does -----------------------------------------------------------------

    def fire(self, vector: int) -> None:
        """Raise ``vector``; one that is masked waits. One that does not exist is lost."""
        if not 0 <= vector < self.vectors:
            return
        raised = self._vectors
        if raised is not None:
            raised(vector)
            return
        with self._lock:
            if not self._control & MSIX_ENABLE:
                return
            self._pending.add(vector)
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            if not self._control & MSIX_ENABLE or self._control & MSIX_MASK_ALL:
                return
            ready = []
            for vector in sorted(self._pending):
                address, data, masked = struct.unpack_from("<QII", self._table, 16 * vector)
                if not masked & _MASKED:
                    self._pending.discard(vector)
                    ready.append((address, data))
            deliver = self._deliver
        if deliver is not None:
            for address, data in ready:
                deliver(address, data)
