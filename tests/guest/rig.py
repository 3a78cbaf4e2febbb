"""A guest on a software VF, with somebody between them who listens and may interfere."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from precopy.connectx.adapter import Port
from precopy.guest import WorkloadConfig, WorkloadGuest, layout
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.commands import Opcode, ResumeVhcaIn, SuspendVhcaIn
from precopy.pci.memory import GuestMemory, RegionSpec
from tests.connectx.rig import command, small_adapter

#: Longer than anything here takes; reached only where something hangs.
PATIENCE = 30.0

INITIATOR_ON, RESPONDER_ON = 0, 1
RESPONDER_OFF, INITIATOR_OFF = 0, 1


class Listener:
    """``FunctionPort`` of a VF that remembers the send doorbells."""

    def __init__(self, port: Port) -> None:
        self.port = port
        self.sent: list[bytes] = []
        self._waiting: tuple[int, threading.Event] | None = None

    @property
    def regions(self) -> Sequence[RegionSpec]:
        return self.port.regions

    def connect_memory(self, memory: GuestMemory) -> None:
        self.port.connect_memory(memory)

    def disconnect_memory(self, memory: GuestMemory) -> None:
        self.port.disconnect_memory(memory)

    def power_on(self) -> None:
        self.port.power_on()

    def execute(self, inbox: bytes) -> bytes:
        return self.port.execute(inbox)

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        self.port.set_interrupt(vector, handler)

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        self.port.ring(uar, offset, data)
        if offset == wqe.UAR_SEND_DOORBELL:
            self.sent.append(data)
            waiting = self._waiting
            if waiting is not None and len(self.sent) >= waiting[0]:
                waiting[1].set()

    def once(self, count: int) -> threading.Event:
        """An event that is set once ``count`` messages have been sent, of all there ever were."""
        event = threading.Event()
        self._waiting = count, event
        if len(self.sent) >= count:
            event.set()
        return event

    def wait_for(self, count: int) -> None:
        """Return once ``count`` messages have been sent, of all there ever were."""
        assert self.once(count).wait(PATIENCE), f"{len(self.sent)} of {count}"


class GuestRig:
    """A guest of ``config`` that has been powered on."""

    def __init__(self, **config: int | str) -> None:
        self.adapter = small_adapter()
        self.config = WorkloadConfig(**{"pairs": 1, "active": 1, **config})  # type: ignore[arg-type]
        self.port = Listener(self.adapter.vfs[0])
        self.guest = WorkloadGuest.power_on(self.port, self.config)
        self.view = self.guest.memory.regions[0].view

    def close(self) -> None:
        self.guest.close()

    # --- The VF standing still ----------------------------------------------------------------

    def suspend(self, *kinds: int) -> None:
        for kind in kinds or (INITIATOR_ON,):
            inbox = SuspendVhcaIn(vhca_id=self.port.port.vhca.vhca_id, op_mod=kind)
            assert command(self.adapter.pf, Opcode.SUSPEND_VHCA, inbox).status == 0

    def resume(self, *kinds: int) -> None:
        for kind in kinds or (INITIATOR_OFF,):
            inbox = ResumeVhcaIn(vhca_id=self.port.port.vhca.vhca_id, op_mod=kind)
            assert command(self.adapter.pf, Opcode.RESUME_VHCA, inbox).status == 0

    @contextmanager
    def posted(self, count: int = layout.WINDOW) -> Iterator[None]:
        """Post ``count`` messages that the VF carries out at the end, so that they can be changed."""
        self.suspend()
        self.guest.step(count)
        yield
        self.resume()

    # --- Where things are ---------------------------------------------------------------------

    def names(self, index: int = 0) -> tuple[int, int, int]:
        """Sending QP, receiving QP, CQ."""
        at = layout.NAMES_AT + index * layout.NAMES.size
        sender, receiver, cqn = layout.NAMES.unpack_from(self.view, at)
        return sender, receiver, cqn

    def message_at(self, sequence: int, index: int = 0) -> int:
        """Where a SEND's or WRITE's message is before it goes."""
        return self.config.send_slot(index, sequence)

    def entry_at(self, sequence: int, index: int = 0) -> int:
        """Its send queue entry: control segment, then a data segment (or the remote address)."""
        queue = self.config.pair_at(index) + layout.SEND_QUEUE + 64
        return queue + sequence % (1 << layout.LOG_SQ) * 64

    def completion_at(self, number: int, index: int = 0) -> int:
        """The completion entry that is ``number``-th, counted from 0."""
        queue = self.config.pair_at(index) + layout.CQ_QUEUE
        return queue + number % (1 << layout.LOG_CQ) * 64

    def put(self, at: int, data: bytes) -> None:
        self.view[at : at + len(data)] = data

    def take(self, at: int, size: int) -> bytes:
        return bytes(self.view[at : at + size])
