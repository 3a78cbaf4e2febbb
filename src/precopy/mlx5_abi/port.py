"""How software reaches the firmware of one function: what driver and adapter agree on.

The driver of the PF and the driver in a guest see the same: commands in, replies out, memory that
the function reaches by DMA. A real adapter behind a real command queue can take this place.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from precopy.pci.dma import DmaSpace
from precopy.pci.memory import GuestMemory, RegionSpec

#: Called with the outbox of a command, in the firmware's own time and thread.
Done = Callable[[bytes], None]


class CommandPort(Protocol):
    """The command interface of one function.

    An inbox is the whole input of a command (opcode, uid, op_mod, ...), an outbox its whole output
    (status, syndrome, ...). A status is part of the outbox, never an exception; OSError says that
    the function can't be reached at all (ENOTCONN: it is gone).
    """

    @property
    def dma(self) -> DmaSpace:
        """The address space that MTTs and queue addresses of this function refer to."""

    def execute(self, inbox: bytes) -> bytes:
        """Run one command and wait for its outbox."""

    def submit(self, inbox: bytes, done: Done) -> None:
        """Start one command; ``done`` gets its outbox later, possibly before this returns."""


@runtime_checkable
class DoorbellPort(CommandPort, Protocol):
    """A command interface with doorbells and interrupts beside it.

    The migration driver logs DMA where its port to the PF is one, which it asks by ``isinstance``.
    """

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        """Write ``data`` (8 bytes, as the bus carries them) at ``offset`` of UAR page ``uar``."""

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        """Call ``handler`` when the function raises MSI-X ``vector``; None masks it."""


class FunctionPort(Protocol):
    """What a guest's driver has of a VF: commands, doorbells, interrupts, and its memory in reach."""

    @property
    def regions(self) -> Sequence[RegionSpec]:
        """Guest memory that the port needs for itself, beside what the guest's work needs."""

    def connect_memory(self, memory: GuestMemory) -> None:
        """Let the function reach ``memory``, which has :attr:`regions`. OSError."""

    def disconnect_memory(self, memory: GuestMemory) -> None:
        """The function can't reach it any more."""

    def power_on(self) -> None:
        """Make the function ready for commands; not where a migration brings one that is."""

    def execute(self, inbox: bytes) -> bytes:
        """Run one command and wait for its outbox."""

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        """Write ``data`` (8 bytes, as the bus carries them) at ``offset`` of UAR page ``uar``."""

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        """Call ``handler`` when the function raises MSI-X ``vector``; None masks it."""
