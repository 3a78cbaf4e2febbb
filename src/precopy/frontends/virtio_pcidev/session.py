"""What one connection of a front end asks for, and what stands because of it. No socket of its own.

The order that makes it fast and exact: a kick is answered only when all that was in the queue has
been carried out. The guest waits for that answer, so that it finds each read answered when it looks,
and posted writes take effect in the order in which it made them, over all functions.
"""

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from precopy.frontends.virtio_pcidev import messages
from precopy.frontends.virtio_pcidev.device import (
    INTERRUPTS,
    Accesses,
    Caller,
    Counts,
    Interrupts,
)
from precopy.frontends.virtio_pcidev.memory import GuestTable
from precopy.frontends.virtio_pcidev.messages import (
    Payload,
    ProtocolError,
    Region,
    Request,
    VringAddress,
    VringState,
)
from precopy.frontends.virtio_pcidev.queue import Queue
from precopy.pci.function import PciFunction

FEATURES = messages.VERSION_1 | messages.PROTOCOL_FEATURES
PROTOCOL_FEATURES = messages.REPLY_ACK | messages.SLAVE_REQ | messages.INBAND_NOTIFICATIONS

#: The driver has 20 buffers for posted writes and takes back those that are done when it is called,
#: or waits for an answer. So it need not be called for each.
POSTED_BEFORE_CALL = 8


@dataclass(slots=True)
class _Ring:
    """A queue as the front end has set it up; ``queue`` is there while it is enabled."""

    entries: int = 0
    base: int = 0
    address: VringAddress | None = None
    queue: Queue | None = None


class Session:
    """One connection to ``function``. ``fail`` is told of trouble that another thread ran into."""

    def __init__(self, function: PciFunction, counts: Counts, fail: Callable[[str], None]) -> None:
        self._function = function
        self._counts = counts
        self._accesses = Accesses(function)
        self._interrupts = Interrupts(counts, fail)
        self._rings = (_Ring(), _Ring())
        self._table: GuestTable | None = None
        self._posted = 0
        function.connect_msi(self._interrupts.deliver)

    def carry_out(self, request: Request, payload: Payload, fds: list[int]) -> bytes | None:
        """Do what was asked; the payload of the answer, for a request that has one.

        Descriptors that are kept are taken out of ``fds``. ProtocolError ends the connection.
        """
        if isinstance(payload, VringState | VringAddress) and payload.queue >= len(self._rings):
            raise ProtocolError(f"{request.name} for queue {payload.queue} of {len(self._rings)}")
        return _HANDLERS[request](self, payload, fds)

    def kick(self, index: int) -> None:
        """Carry out all that the driver has put into a queue."""
        if index == INTERRUPTS:
            self._interrupts.flush()
            return
        ring = self._rings[index]
        queue = ring.queue
        if queue is None:
            return
        posted = self._posted
        # As many as there can be at the time of the kick: what comes later has a kick of its own.
        for _ in range(ring.entries):
            chain = queue.pop()
            if chain is None:
                break
            self._counts.accesses += 1
            written = self._accesses.serve(chain)
            queue.push(chain, written)
            posted = 0 if written else posted + 1
        if posted >= POSTED_BEFORE_CALL and self._interrupts.call_for_commands():
            posted = 0
        self._posted = posted

    def close(self) -> None:
        """As when the machine around the function is switched off: it is reset, its memory gone."""
        for ring in self._rings:
            ring.queue = None
        with contextlib.ExitStack() as last_first:
            last_first.callback(self._show, None)
            last_first.callback(self._function.reset)
            last_first.callback(self._interrupts.close)
            last_first.callback(self._function.connect_msi, None)

    def _show(self, table: GuestTable | None) -> None:
        """Map ``table`` for the function instead of the one before."""
        old = [address for address, _ in self._table.mappings] if self._table else []
        try:
            self._function.dma.replace(old, table.mappings if table else ())
        except OSError as error:
            raise ProtocolError(f"memory table: {error.strerror}") from error
        self._table = table

    def _start(self, index: int) -> None:
        """Look at the rings of a queue, wherever they are in the memory of now."""
        ring = self._rings[index]
        table, address = self._table, ring.address
        if table is None or address is None:
            raise ProtocolError(f"queue {index} is enabled before its memory and rings are known")
        ring.queue = Queue(
            table.space,
            ring.entries,
            desc=table.guest_address(address.desc),
            avail=table.guest_address(address.avail),
            used=table.guest_address(address.used),
            base=ring.base,
        )
        if index == INTERRUPTS:
            self._interrupts.set_queue(ring.queue)

    def _stop(self, index: int) -> None:
        ring = self._rings[index]
        if ring.queue is not None:
            ring.base, ring.queue = ring.queue.base, None
        if index == INTERRUPTS:
            self._interrupts.set_queue(None)

    def _resting(self, index: int) -> _Ring:
        """A queue that may be changed."""
        ring = self._rings[index]
        if ring.queue is not None:
            raise ProtocolError(f"queue {index} is changed while it is enabled")
        return ring

    # Handlers, in the order in which User-Mode Linux asks.

    def _set_owner(self, payload: None, fds: list[int]) -> None:
        pass

    def _get_features(self, payload: None, fds: list[int]) -> bytes:
        return messages.U64.pack(FEATURES)

    def _get_protocol_features(self, payload: None, fds: list[int]) -> bytes:
        return messages.U64.pack(PROTOCOL_FEATURES)

    def _set_protocol_features(self, chosen: int, fds: list[int]) -> None:
        if chosen != PROTOCOL_FEATURES:
            raise ProtocolError(
                f"protocol features {chosen:#x} are chosen, all of {PROTOCOL_FEATURES:#x} are needed"
            )

    def _set_slave_req_fd(self, payload: None, fds: list[int]) -> None:
        self._interrupts.set_caller(Caller(fds[0]))
        fds.clear()

    def _set_features(self, chosen: int, fds: list[int]) -> None:
        if chosen != FEATURES:
            raise ProtocolError(f"features {chosen:#x} are chosen, all of {FEATURES:#x} are needed")

    def _set_mem_table(self, regions: tuple[Region, ...], fds: list[int]) -> None:
        self._show(GuestTable(regions, fds))
        for index, ring in enumerate(self._rings):
            if ring.queue is not None:
                ring.base = ring.queue.base
                self._start(index)

    def _set_vring_num(self, state: VringState, fds: list[int]) -> None:
        self._resting(state.queue).entries = state.number

    def _set_vring_base(self, state: VringState, fds: list[int]) -> None:
        self._resting(state.queue).base = state.number

    def _get_vring_base(self, state: VringState, fds: list[int]) -> bytes:
        self._stop(state.queue)
        return messages.pack_state(VringState(state.queue, self._rings[state.queue].base))

    def _set_vring_addr(self, address: VringAddress, fds: list[int]) -> None:
        self._resting(address.queue).address = address

    def _set_vring_enable(self, state: VringState, fds: list[int]) -> None:
        if not state.number:
            self._stop(state.queue)
        elif self._rings[state.queue].queue is None:
            self._start(state.queue)
            self.kick(state.queue)

    def _vring_kick(self, state: VringState, fds: list[int]) -> None:
        self.kick(state.queue)


#: By request; each takes the payload that :data:`messages.REQUESTS` names for it.
_HANDLERS: Mapping[Request, Callable[..., bytes | None]] = {
    Request.SET_OWNER: Session._set_owner,
    Request.GET_FEATURES: Session._get_features,
    Request.GET_PROTOCOL_FEATURES: Session._get_protocol_features,
    Request.SET_PROTOCOL_FEATURES: Session._set_protocol_features,
    Request.SET_SLAVE_REQ_FD: Session._set_slave_req_fd,
    Request.SET_FEATURES: Session._set_features,
    Request.SET_MEM_TABLE: Session._set_mem_table,
    Request.SET_VRING_NUM: Session._set_vring_num,
    Request.SET_VRING_BASE: Session._set_vring_base,
    Request.GET_VRING_BASE: Session._get_vring_base,
    Request.SET_VRING_ADDR: Session._set_vring_addr,
    Request.SET_VRING_ENABLE: Session._set_vring_enable,
    Request.VRING_KICK: Session._vring_kick,
}
