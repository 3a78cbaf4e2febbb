"""The workload: messages through QP pairs, each with a sequence number and a checksum.

It drives the VF as a guest's driver could: work queue entries and doorbell records in its memory,
doorbells, completions, interrupts. All that it knows is in its memory, so whoever holds a copy of
the memory and a VF in the same state goes on where it was.
"""

import threading
import time
from collections.abc import Sequence

import xxhash

from precopy.guest import layout
from precopy.guest.bringup import Driver
from precopy.guest.layout import (
    BASE,
    CONTROL,
    COUNTS,
    MESSAGE,
    NAMES,
    PAIR,
    WINDOW,
    Control,
    Pair,
    WorkloadConfig,
)
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.port import FunctionPort
from precopy.mlx5_abi.wqe import CqeOpcode, CtrlFlags, WqeOpcode
from precopy.pci.memory import GuestMemory, RegionSpec
from precopy.vfio.guest import GuestCounts

_RDMA = frozenset({WqeOpcode.RDMA_WRITE, WqeOpcode.RDMA_READ})

#: How long a step may leave the vCPU at a time, in seconds, so that a pause is prompt.
_BURST = 0.002

_SENT, _RECEIVED, _LOST, _DOUBLED, _REORDERED, _DAMAGED, _FAILED = range(7)


class WorkloadGuest:
    """A guest with one vCPU (a thread). :meth:`power_on` makes a new one, :meth:`attach` one to be filled."""

    def __init__(self, port: FunctionPort, memory: GuestMemory) -> None:
        self._port = port
        self._memory = memory
        port.dma.map_guest(memory)
        port.set_interrupt(0, self._interrupt)
        self._view = memory.regions[0].view
        self._cpu = threading.RLock()
        self._wake = threading.Event()
        self._events = False
        self._running = False
        self._thread: threading.Thread | None = None
        self._config: WorkloadConfig | None = None
        self._closed = False

    @classmethod
    def power_on(cls, port: FunctionPort, config: WorkloadConfig) -> "WorkloadGuest":
        """A guest that has brought up its VF, not yet started. RuntimeError where the VF refuses."""
        guest = cls(port, GuestMemory([config.region]))
        Driver(port, config, guest._view).bring_up()
        return guest

    @classmethod
    def attach(cls, port: FunctionPort, specs: Sequence[RegionSpec]) -> "WorkloadGuest":
        """A guest whose memory another one's will be copied into."""
        return cls(port, GuestMemory(specs))

    @property
    def memory(self) -> GuestMemory:
        return self._memory

    # --- The vCPU -----------------------------------------------------------------------------

    def _control(self) -> Control:
        control = Control(*CONTROL.unpack_from(self._view, 0))
        if control.magic != layout.MAGIC:
            raise RuntimeError("the guest's memory holds no workload")
        return control

    def _take_up(self) -> None:
        """Read from the memory what does not change while the guest runs."""
        control = self._control()
        self._config = control.config()
        self._names = [
            NAMES.unpack_from(self._view, layout.NAMES_AT + index * NAMES.size)
            for index in range(control.active)
        ]

    def start(self) -> None:
        with self._cpu:
            if self._running:
                return
            self._take_up()
            self._running = True
            # Interrupts may have come while nobody was there to hear them.
            self._events = True
            self._set_control(settling=0)
        self._thread = threading.Thread(target=self._run, name="vcpu", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        with self._cpu:
            self._running = False
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None

    def _interrupt(self) -> None:
        self._events = True
        self._wake.set()

    def _run(self) -> None:
        assert self._config is not None
        rate = self._config.rate
        began, owed_from = time.monotonic(), self._counts()[_SENT]
        while self._running:
            with self._cpu:
                if not self._running:
                    break
                if self._events:
                    self._handle_events()
                sent = self._counts()[_SENT] - owed_from
                due = 1 << 30 if not rate else int((time.monotonic() - began) * rate) - sent
                if due > rate // 10 and rate:
                    # It was held up; what was missed is not made up for in one burst.
                    began, owed_from, due = time.monotonic(), owed_from + sent, 1
                progress = self._burst(due) if due > 0 else False
            if not progress or rate:
                self._wake.wait(0.001)
                self._wake.clear()

    def step(self, messages: int) -> None:
        """Send ``messages`` messages in the calling thread, paused or not; tests drive it so."""
        with self._cpu:
            self._take_up()
            self._handle_events()
            self._burst(messages, for_ever=True)

    def _burst(self, due: int, *, for_ever: bool = False) -> bool:
        """Send up to ``due`` messages, one pair after another; whether any could be sent."""
        control = self._control()
        if control.settling or not control.active:
            return False
        end = time.monotonic() + _BURST
        cursor, blocked, any_sent = control.cursor, 0, False
        while due > 0 and blocked < control.active:
            if self._send(cursor % control.active):
                due, blocked, any_sent = due - 1, 0, True
            else:
                blocked += 1
            cursor += 1
            if not for_ever and time.monotonic() > end:
                break
        self._set_control(cursor=cursor % control.active)
        return any_sent

    def _set_control(self, **changes: int) -> None:
        CONTROL.pack_into(self._view, 0, *self._control()._replace(**changes))

    # --- Sending ------------------------------------------------------------------------------

    def _pair(self, index: int) -> Pair:
        assert self._config is not None
        at = self._config.pair_at(index)
        pair = Pair(*PAIR.unpack_from(self._view, at + layout.PAIR_AT))
        if not pair.ready:
            # First use: entries that were never written belong to the adapter.
            for entry in range(1 << layout.LOG_CQ):
                self._view[at + layout.CQ_QUEUE + entry * 64 + wqe.CQE_OP_OWN] = (
                    wqe.CQE_INVALID_BYTE
                )
            pair = pair._replace(ready=1)
            pair = self._post_receives(index, pair)
            self._put_pair(index, pair)
        return pair

    def _put_pair(self, index: int, pair: Pair) -> None:
        assert self._config is not None
        PAIR.pack_into(self._view, self._config.pair_at(index) + layout.PAIR_AT, *pair)

    def _post_receives(self, index: int, pair: Pair) -> Pair:
        """Receive entries for every message that may come next; slot n takes sequence number n."""
        config = self._config
        assert config is not None
        at = config.pair_at(index)
        mkey = self._control().mkey
        while pair.receives < (1 << layout.LOG_RQ) and not pair.next_send:
            pair = self._post_receive(config, index, at, pair, mkey)
        return pair

    def _post_receive(
        self, config: WorkloadConfig, index: int, at: int, pair: Pair, mkey: int
    ) -> Pair:
        number = pair.receives
        wqe.DATA_SEG.pack_into(
            self._view,
            at + layout.RECEIVE_QUEUE + (number % (1 << layout.LOG_RQ)) * wqe.DATA_SEG.size,
            config.slot_bytes,
            mkey,
            BASE + config.receive_slot(index, number),
        )
        pair = pair._replace(receives=(number + 1) & 0xFFFF)
        wqe.QP_DBR.pack_into(self._view, at + layout.RECEIVE_DBR, pair.receives, 0)
        return pair

    def _payload(self, index: int, sequence: int, length: int) -> bytes:
        assert self._config is not None
        seed = (self._config.seed, index, sequence)
        block = xxhash.xxh3_128_digest(b"%d %d %d" % seed)
        return (block * (length // 16 + 1))[:length]

    def _message(self, index: int, sequence: int) -> bytes:
        assert self._config is not None
        payload = self._payload(index, sequence, self._config.size - MESSAGE.size)
        return (
            MESSAGE.pack(sequence, index, len(payload), xxhash.xxh3_64_intdigest(payload)) + payload
        )

    def _operation(self, sequence: int) -> WqeOpcode:
        assert self._config is not None
        mix = self._config.mix
        return layout.OPERATIONS[mix[sequence % len(mix)]]

    def _send(self, index: int) -> bool:
        """Send the next message of a pair, where its window has room."""
        config = self._config
        assert config is not None
        pair = self._pair(index)
        if pair.dead or pair.posted - pair.done >= WINDOW:
            return False
        control = self._control()
        at, sequence = config.pair_at(index), pair.next_send
        opcode = self._operation(sequence)
        message = self._message(index, sequence)
        mine, its = config.send_slot(index, sequence), config.rdma_slot(index, sequence)
        # A READ brings the message over from the other end, where the guest puts it first.
        source = its if opcode == WqeOpcode.RDMA_READ else mine
        self._view[source : source + len(message)] = message
        counter = pair.posted & 0xFFFF
        qpn = self._names[index][0]
        rdma = opcode in _RDMA
        ds = 3 if rdma else 2
        entry = wqe.CTRL_SEG.pack(
            counter << 8 | opcode, qpn << 8 | ds, CtrlFlags.CQ_UPDATE, sequence & 0xFFFFFFFF
        )
        if rdma:
            entry += wqe.RADDR_SEG.pack(BASE + its, control.mkey)
        entry += wqe.DATA_SEG.pack(len(message), control.mkey, BASE + mine)
        slot = at + layout.SEND_QUEUE + 64 + (counter % (1 << layout.LOG_SQ)) * wqe.WQEBB_BYTES
        self._view[slot : slot + len(entry)] = entry
        posted = pair.posted + 1
        wqe.QP_DBR.pack_into(self._view, at + layout.SEND_DBR, 0, posted & 0xFFFF)
        self._put_pair(index, pair._replace(next_send=sequence + 1, posted=posted & 0xFFFFFFFF))
        self._count(_SENT)
        self._port.ring(control.uar, wqe.UAR_SEND_DOORBELL, entry[:8])
        self._poll_cq(index)
        return True

    # --- Completions --------------------------------------------------------------------------

    def _handle_events(self) -> None:
        """Read the EQ; poll every CQ that it names."""
        self._events = False
        control = self._control()
        consumer = control.eq_consumer
        names = {cqn: index for index, (_, _, cqn) in enumerate(self._names)}
        while True:
            at = layout.PAGE + (consumer & ((1 << layout.LOG_EQ) - 1)) * wqe.EQE_BYTES
            if self._view[at + wqe.EQE_OWNER] & 1 != consumer >> layout.LOG_EQ & 1:
                break
            kind = self._view[at + wqe.EQE_TYPE]
            cqn = int.from_bytes(
                self._view[at + wqe.EQE_COMP_CQN : at + wqe.EQE_COMP_CQN + 4], "big"
            )
            consumer = consumer + 1 & 0xFFFFFF
            self._set_control(eq_consumer=consumer)
            if kind == wqe.EventType.COMP and cqn in names:
                self._poll_cq(names[cqn])
            elif kind != wqe.EventType.COMP:
                self._count(_FAILED)
        word = (control.eqn << 24 | consumer).to_bytes(8, "big")
        self._port.ring(control.uar, wqe.UAR_EQ_ARM, word)

    def _poll_cq(self, index: int) -> None:
        """Take every completion there is; ask to be told of the next where messages are under way."""
        config = self._config
        assert config is not None
        at = config.pair_at(index)
        pair = self._pair(index)
        mkey = self._control().mkey
        mask = (1 << layout.LOG_CQ) - 1
        took = False
        while True:
            entry = at + layout.CQ_QUEUE + (pair.cq_consumer & mask) * wqe.CQE_BYTES
            own = self._view[entry + wqe.CQE_OP_OWN]
            opcode = own >> 4
            if opcode == CqeOpcode.INVALID or own & 1 != pair.cq_consumer >> layout.LOG_CQ & 1:
                break
            tail = wqe.CQE_TAIL.unpack_from(self._view, entry + wqe.CQE_TAIL_OFFSET)
            pair = pair._replace(cq_consumer=(pair.cq_consumer + 1) & 0xFFFFFF)
            pair = self._completion(index, pair, opcode, tail[0], tail[1])
            if opcode in (CqeOpcode.RESP_SEND, CqeOpcode.RESP_SEND_IMM):
                pair = self._post_receive(config, index, at, pair, mkey)
            took = True
        if took:
            wqe.CQ_DBR.pack_into(self._view, at + layout.CQ_DBR, pair.cq_consumer, 0)
            self._put_pair(index, pair)
        if pair.done != pair.posted and not pair.dead:
            cqn = self._names[index][2]
            word = pair.cq_consumer.to_bytes(4, "big") + cqn.to_bytes(4, "big")
            self._port.ring(self._control().uar, wqe.UAR_CQ_DOORBELL, word)

    def _completion(self, index: int, pair: Pair, opcode: int, immediate: int, count: int) -> Pair:
        config = self._config
        assert config is not None
        if opcode in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR):
            self._count(_FAILED)
            return pair._replace(dead=1)
        if opcode in (CqeOpcode.RESP_SEND, CqeOpcode.RESP_SEND_IMM):
            # Which message it should be; the n-th receive entry took the n-th SEND.
            number = self._receives_done(pair)
            where = config.receive_slot(index, number)
            arrived = self._arrive(index, pair, where, count)
            if opcode == CqeOpcode.RESP_SEND_IMM and immediate != pair.next_arrival & 0xFFFFFFFF:
                self._count(_DAMAGED)
            return arrived
        sequence = pair.next_send - (pair.posted - pair.done)
        operation = self._operation(sequence)
        if operation in _RDMA:
            read = operation == WqeOpcode.RDMA_READ
            where = config.send_slot(index, sequence) if read else config.rdma_slot(index, sequence)
            pair = self._arrive(index, pair, where, config.size)
        return pair._replace(done=pair.done + 1 & 0xFFFFFFFF)

    @staticmethod
    def _receives_done(pair: Pair) -> int:
        """Number of the receive entry that is done now: all but those that are still posted."""
        return (pair.receives - (1 << layout.LOG_RQ)) & 0xFFFF

    def _arrive(self, index: int, pair: Pair, where: int, count: int) -> Pair:
        """Check one message that has arrived at offset ``where``."""
        config = self._config
        assert config is not None
        sequence, of, length, digest = MESSAGE.unpack_from(self._view, where)
        payload = bytes(self._view[where + MESSAGE.size : where + config.size])
        self._count(_RECEIVED)
        if (
            count != config.size
            or of != index
            or length != len(payload)
            or xxhash.xxh3_64_intdigest(payload) != digest
            or payload != self._payload(index, sequence, length)
        ):
            self._count(_DAMAGED)
            return pair._replace(next_arrival=pair.next_arrival + 1)
        if sequence < pair.next_arrival:
            self._count(_DOUBLED)
            return pair
        if sequence > pair.next_arrival:
            self._count(_REORDERED)
            self._count(_LOST, sequence - pair.next_arrival)
        return pair._replace(next_arrival=sequence + 1)

    # --- Counts -------------------------------------------------------------------------------

    def _counts(self) -> tuple[int, ...]:
        return COUNTS.unpack_from(self._view, layout.COUNTS_AT)

    def _count(self, which: int, by: int = 1) -> None:
        at = layout.COUNTS_AT + 8 * which
        value = int.from_bytes(self._view[at : at + 8], "little") + by
        self._view[at : at + 8] = value.to_bytes(8, "little")

    def counts(self) -> GuestCounts:
        return GuestCounts(*self._counts())

    def settle(self, timeout: float) -> GuestCounts:
        deadline = time.monotonic() + timeout
        with self._cpu:
            self._set_control(settling=1)
        while True:
            with self._cpu:
                self._handle_events()
                for index in range(len(self._names)):
                    if self._touched(index):
                        self._poll_cq(index)
                counts = self.counts()
                missing = counts.sent - counts.received
                if missing <= 0 or time.monotonic() >= deadline:
                    if missing > 0:
                        self._count(_LOST, missing - counts.lost if missing > counts.lost else 0)
                    return self.counts()
            self._wake.wait(0.001)
            self._wake.clear()

    def _touched(self, index: int) -> bool:
        assert self._config is not None
        at = self._config.pair_at(index) + layout.PAIR_AT
        return bool(PAIR.unpack_from(self._view, at)[0])

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.pause()
        self._port.set_interrupt(0, None)
        for region in self._memory.regions:
            self._port.dma.unmap(region.spec.iova)
        del self._view
        self._memory.close()
