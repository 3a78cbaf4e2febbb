"""A VF as its driver in a guest has it on the bus: BAR 0, and a command queue in the guest's memory.

What mlx5_core does to bring up a function (``mlx5_function_enable`` and the like, Linux 7.3), as far
as the firmware insists on it. All that must survive a migration is in the guest's memory or in the
VF, so a port on another host goes on where this one was.
"""

import contextlib
import functools
import itertools
import operator
import struct
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from precopy.guest.bringup import BringUpError, run
from precopy.mlx5_abi.commands import (
    EnableHcaIn,
    Inbox,
    Opcode,
    SetIssiIn,
)
from precopy.mlx5_abi.port import Done
from precopy.pci.memory import GuestMemory, RegionSpec

#: The command queue's region: one page of entries, then mailboxes; far above the workload's.
COMMANDS_AT = 1 << 36
_QUEUE_BYTES = 4096
_BLOCK_DATA, _BLOCK_BYTES, _BLOCK_STEP = 512, 576, 1024
_MAILBOXES = 60
REGION = RegionSpec(COMMANDS_AT, _QUEUE_BYTES + _MAILBOXES * _BLOCK_STEP)

_PAGE = 4096
_UAR_BYTES = 4096

# Registers of the initialization segment (struct mlx5_init_seg).
_CMDIF_REV, _CMDQ_HIGH, _CMDQ_LOW, _DOORBELL, _INITIALIZING = 0x04, 0x10, 0x14, 0x18, 0x1FC
_CMDIF_VERSION = 5

_ENTRY = struct.Struct(">B3xIQ16s16sQIBBxB")
_OWN_AT, _OUT_AT = 63, 32
_TRANSPORT_PCI, _OWNED_BY_HARDWARE = 7, 1
_LINK = struct.Struct(">QIxBBB")
_LINK_AT = 560

#: Largest outbox of a command that a guest's driver gives here.
_MAX_OUTBOX = 4112


class Bus(Protocol):
    """What a driver of a function reaches it by: registers, DMA mappings, interrupts."""

    def read(self, offset: int, size: int) -> bytes:
        """``size`` bytes of BAR 0."""

    def write(self, offset: int, data: bytes) -> None:
        """Write to BAR 0."""

    def map_guest(self, memory: GuestMemory) -> None:
        """Let the function reach ``memory`` at its regions' addresses. OSError."""

    def unmap_guest(self, memory: GuestMemory) -> None: ...

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        """Call ``handler`` when the function raises MSI-X ``vector``."""


class PciPort:
    """``FunctionPort`` over a bus. BringUpError where the function does not answer as it should."""

    regions: Sequence[RegionSpec] = (REGION,)

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._lock = threading.Lock()
        self._view: memoryview | None = None
        self._tokens = itertools.cycle(range(1, 256))

    # --- Memory -------------------------------------------------------------------------------

    def connect_memory(self, memory: GuestMemory) -> None:
        # A guest that was switched on without a command queue has no memory for one, nor needs it:
        # it has given all its commands.
        with contextlib.suppress(OSError):
            self._view = memory.view(*REGION)
        self._bus.map_guest(memory)

    def disconnect_memory(self, memory: GuestMemory) -> None:
        self._view = None
        self._bus.unmap_guest(memory)

    # --- Bring-up -----------------------------------------------------------------------------

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._bus.read(offset, 4), "big")

    def power_on(self) -> None:
        """Set up the command queue and switch the function on."""
        if self._word(_CMDIF_REV) >> 16 != _CMDIF_VERSION:
            raise BringUpError("the function's command interface has another version")
        if self._word(_INITIALIZING) >> 31:
            raise BringUpError("the function is still initializing")
        self._bus.write(_CMDQ_HIGH, (COMMANDS_AT >> 32).to_bytes(4, "big"))
        self._bus.write(_CMDQ_LOW, (COMMANDS_AT & 0xFFFF_F000).to_bytes(4, "big"))
        run(self, Opcode.ENABLE_HCA, EnableHcaIn())
        run(self, Opcode.SET_ISSI, SetIssiIn(current_issi=1))
        run(self, Opcode.INIT_HCA, Inbox())

    # --- Commands -----------------------------------------------------------------------------

    def execute(self, inbox: bytes) -> bytes:
        """One command, in slot 0, polled."""
        with self._lock:
            return self._execute(inbox)

    def _execute(self, inbox: bytes) -> bytes:
        view = self._view
        if view is None:
            raise BringUpError("the guest has no memory for a command queue")
        token = next(self._tokens)
        inputs = max(0, -(-(len(inbox) - 16) // _BLOCK_DATA))
        outputs = -(-(_MAX_OUTBOX - 16) // _BLOCK_DATA)
        if inputs + outputs > _MAILBOXES:
            raise BringUpError(f"a command of {len(inbox)} bytes is more than the mailboxes hold")
        in_ptr = self._chain(0, inputs, token)
        out_ptr = self._chain(inputs, outputs, token)
        for index in range(inputs):
            piece = inbox[16 + index * _BLOCK_DATA : 16 + (index + 1) * _BLOCK_DATA]
            at = _QUEUE_BYTES + index * _BLOCK_STEP
            view[at : at + len(piece)] = piece
        entry = _ENTRY.pack(
            _TRANSPORT_PCI,
            len(inbox),
            in_ptr,
            inbox[:16],
            bytes(16),
            out_ptr,
            _MAX_OUTBOX,
            token,
            0,
            _OWNED_BY_HARDWARE,
        )
        signature = functools.reduce(operator.xor, entry) ^ 0xFF
        view[: len(entry)] = entry[:61] + bytes((signature,)) + entry[62:]
        self._bus.write(_DOORBELL, (1).to_bytes(4, "big"))
        own = view[_OWN_AT]
        if own & _OWNED_BY_HARDWARE:
            raise BringUpError("the function did not answer a command")
        if own >> 1:
            raise BringUpError(f"a command was not delivered (status {own >> 1:#x})")
        pieces = [bytes(view[_OUT_AT : _OUT_AT + 16])]
        for index in range(inputs, inputs + outputs):
            at = _QUEUE_BYTES + index * _BLOCK_STEP
            pieces.append(bytes(view[at : at + _BLOCK_DATA]))
        return b"".join(pieces)[:_MAX_OUTBOX]

    def _chain(self, first: int, count: int, token: int) -> int:
        """Links ``count`` mailboxes; the address of the first, 0 for none."""
        view = self._view
        assert view is not None
        for index in range(count):
            at = _QUEUE_BYTES + (first + index) * _BLOCK_STEP
            following = COMMANDS_AT + at + _BLOCK_STEP if index < count - 1 else 0
            _LINK.pack_into(view, at + _LINK_AT, following, index, token, 0, 0)
        return COMMANDS_AT + _QUEUE_BYTES + first * _BLOCK_STEP if count else 0

    def submit(self, inbox: bytes, done: Done) -> None:
        done(self.execute(inbox))

    # --- Doorbells and interrupts -------------------------------------------------------------

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        self._bus.write(uar * _UAR_BYTES + offset, data)

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        self._bus.set_interrupt(vector, handler)
