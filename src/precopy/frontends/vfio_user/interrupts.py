"""Interrupts of a device that a client has: eventfds, masks, and what waits behind a mask.

Semantics of VFIO_DEVICE_SET_IRQS (include/uapi/linux/vfio.h, drivers/vfio/pci/vfio_pci_intrs.c, Linux
7.3), without its restriction that only INTx can be masked.
"""

import contextlib
import errno
import os
import select
import threading
from collections.abc import Sequence

from precopy.vfio.face import IrqFlags, IrqIndex
from precopy.vfio_user.messages import SetIrqs, SetIrqsFlags, wrong

# Plain integers: the complement of a flag has known bits only.
_DATA = int(SetIrqsFlags.DATA_NONE | SetIrqsFlags.DATA_BOOL | SetIrqsFlags.DATA_EVENTFD)
_ACTION = int(SetIrqsFlags.ACTION_MASK | SetIrqsFlags.ACTION_UNMASK | SetIrqsFlags.ACTION_TRIGGER)

#: What each index can do, where the device has it.
FLAGS: dict[IrqIndex, IrqFlags] = {
    IrqIndex.INTX: IrqFlags.EVENTFD | IrqFlags.MASKABLE | IrqFlags.AUTOMASKED,
    # Vectors can be added one by one, as the kernel allows for MSI-X since 6.5.
    IrqIndex.MSI: IrqFlags.EVENTFD | IrqFlags.MASKABLE,
    IrqIndex.MSIX: IrqFlags.EVENTFD | IrqFlags.MASKABLE,
    IrqIndex.ERR: IrqFlags.EVENTFD | IrqFlags.NORESIZE,
    IrqIndex.REQ: IrqFlags.EVENTFD | IrqFlags.NORESIZE,
}

_EVENTFD = "anon_inode:[eventfd]"


class Vector:
    """One interrupt: where it goes, and whether it is masked."""

    __slots__ = ("eventfd", "masked", "pending")

    def __init__(self) -> None:
        self.eventfd: int | None = None
        self.masked = self.pending = False

    def connect(self, eventfd: int | None) -> None:
        if self.eventfd is not None:
            os.close(self.eventfd)
        self.eventfd = eventfd


class Interrupts:
    """``counts``: how many vectors each index has. Any thread may raise one."""

    def __init__(self, counts: Sequence[int]) -> None:
        self._lock = threading.Lock()
        self._vectors = [[Vector() for _ in range(count)] for count in counts]

    def count(self, irq: int) -> int:
        return len(self._vectors[irq])

    def check_index(self, irq: int) -> None:
        """WireError EINVAL for an index that no PCI device has."""
        if irq >= len(self._vectors):
            raise wrong(errno.EINVAL, f"there is no interrupt index {irq}")

    def set(self, request: SetIrqs, fds: list[int]) -> None:
        """DEVICE_SET_IRQS. Takes what it needs out of ``fds``. WireError EINVAL."""
        self._check(request, fds)
        flags = SetIrqsFlags(request.flags)
        vectors = self._vectors[request.irq]
        some = vectors[request.start : request.start + request.vectors]
        with self._lock:
            if flags & SetIrqsFlags.DATA_EVENTFD:
                for vector in some:
                    vector.connect(fds.pop(0) if fds else None)
                return
            chosen = some
            if flags & SetIrqsFlags.DATA_BOOL:
                chosen = [vector for vector, on in zip(some, request.data, strict=True) if on]
            elif not request.vectors:
                # No data and no vectors: the whole index is switched off.
                for vector in vectors:
                    vector.connect(None)
                    vector.masked = vector.pending = False
                return
            for vector in chosen:
                self._act(flags & _ACTION, vector, request.irq)

    def _check(self, request: SetIrqs, fds: list[int]) -> None:
        self.check_index(request.irq)
        data, action = request.flags & _DATA, request.flags & _ACTION
        if request.flags & ~(_DATA | _ACTION) or data.bit_count() != 1 or action.bit_count() != 1:
            raise wrong(
                errno.EINVAL, f"SET_IRQS flags {request.flags:#x}: one kind of data, one action"
            )
        name = IrqIndex(request.irq).name
        there = self.count(request.irq)
        if request.start + request.vectors > there or (request.start and request.start >= there):
            text = f"{name} vectors {request.start}+{request.vectors} of {there}"
            raise wrong(errno.EINVAL, text)
        masks = action != SetIrqsFlags.ACTION_TRIGGER
        if masks and not FLAGS[IrqIndex(request.irq)] & IrqFlags.MASKABLE:
            raise wrong(errno.EINVAL, f"{name} can't be masked")
        if not request.vectors and (masks or data != SetIrqsFlags.DATA_NONE):
            raise wrong(errno.EINVAL, "SET_IRQS for no vectors only switches an index off")
        wanted = request.vectors if data == SetIrqsFlags.DATA_BOOL else 0
        if len(request.data) != wanted:
            text = f"SET_IRQS carries {len(request.data)} bytes of data, not {wanted}"
            raise wrong(errno.EINVAL, text)
        if data != SetIrqsFlags.DATA_EVENTFD:
            if fds:
                raise wrong(errno.EINVAL, "SET_IRQS without DATA_EVENTFD carries descriptors")
            return
        if masks:
            raise wrong(errno.EINVAL, "masks are set by SET_IRQS itself, not by eventfd")
        # None at all: the vectors are let go of.
        if fds and len(fds) != request.vectors:
            raise wrong(errno.EINVAL, f"{len(fds)} eventfds for {request.vectors} vectors")
        for fd in fds:
            if os.readlink(f"/proc/self/fd/{fd}") != _EVENTFD:
                raise wrong(errno.EINVAL, "a descriptor of SET_IRQS is no eventfd")

    def _act(self, action: int, vector: Vector, irq: int) -> None:
        if action == SetIrqsFlags.ACTION_MASK:
            vector.masked = True
        elif action == SetIrqsFlags.ACTION_UNMASK:
            vector.masked = False
            if vector.pending:
                vector.pending = False
                self._signal(vector, irq)
        else:
            self._signal(vector, irq)

    def raise_irq(self, irq: int, number: int) -> None:
        """The device raises a vector; one that is masked waits, one that goes nowhere is lost."""
        with self._lock:
            vectors = self._vectors[irq]
            if 0 <= number < len(vectors):
                self._signal(vectors[number], irq)

    def _signal(self, vector: Vector, irq: int) -> None:
        if vector.masked:
            vector.pending = True
            return
        if vector.eventfd is None:
            return
        if FLAGS[IrqIndex(irq)] & IrqFlags.AUTOMASKED:
            vector.masked = True
        # A counter that is full would block; who reads it has been told often enough.
        poller = select.poll()
        poller.register(vector.eventfd, select.POLLOUT)
        if poller.poll(0):
            with contextlib.suppress(OSError):
                os.eventfd_write(vector.eventfd, 1)

    def reset(self) -> None:
        """Let go of everything: the client has gone."""
        with self._lock:
            for vectors in self._vectors:
                for vector in vectors:
                    vector.connect(None)
                    vector.masked = vector.pending = False
