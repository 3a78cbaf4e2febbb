"""What a server offers: a device, its PCI face if it has one, and what outlives a client."""

import contextlib
import errno
import threading
from collections.abc import Sequence

from precopy.frontends.vfio_user.interrupts import Interrupts
from precopy.frontends.vfio_user.migration import Migration
from precopy.vfio.device import VfioDevice
from precopy.vfio.errors import refuse
from precopy.vfio.face import NUM_IRQS, IrqIndex, PciFace, RegionInfo


class Offered:
    """``device`` for one client at a time."""

    def __init__(self, device: VfioDevice, face: PciFace | None) -> None:
        self.device, self.face = device, face
        self.migration = Migration(device)
        counts: Sequence[int] = face.irqs if face is not None else [0] * NUM_IRQS
        self.interrupts = Interrupts(counts)
        self._held = threading.Lock()
        if face is not None:
            face.connect_irqs(self.interrupts.raise_irq)

    @property
    def regions(self) -> Sequence[RegionInfo]:
        return self.face.regions if self.face is not None else ()

    def claim(self) -> None:
        """Take the device for a client. OSError EBUSY where another one has it."""
        if not self._held.acquire(blocking=False):
            raise refuse(errno.EBUSY, f"{self.device.name}: another client has the device")

    def release(self) -> None:
        """The client has gone: its memory and its eventfds are let go of; the device's state stays."""
        try:
            self.interrupts.reset()
            self.migration.release()
            self.unmap_all()
        finally:
            self._held.release()

    def unmap_all(self) -> None:
        if self.face is not None:
            ranges = self.face.dma.ranges()
            self.face.unmap_dma([address for address, _ in ranges])

    def reset(self) -> None:
        """DEVICE_RESET."""
        self.migration.reset()
        if self.face is not None:
            self.face.reset()

    def ask_for_release(self) -> None:
        """Tell the client that the device is wanted back (VFIO_PCI_REQ_IRQ_INDEX)."""
        with contextlib.suppress(OSError):
            self.interrupts.raise_irq(IrqIndex.REQ, 0)

    def close(self) -> None:
        if self.face is not None:
            self.face.connect_irqs(None)
        self.migration.close()
