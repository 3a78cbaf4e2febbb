"""The workload: messages through QP pairs, each with a sequence number and a checksum.

It drives the VF as a guest's driver could: work queue entries and doorbell records in its memory,
doorbells, completions, interrupts. All that it knows is in its memory, so whoever holds a copy of
the memory and a VF in the same state goes on where it was.
"""

import errno
import threading
import time
from collections.abc import Mapping, Sequence

from precopy.guest import layout, messages
from precopy.guest.bringup import Driver
from precopy.guest.layout import (
    BASE,
    CONTROL,
    COUNTS,
    NAMES,
    PAIR,
    WINDOW,
    Control,
    Count,
    Pair,
    WorkloadConfig,
)
from precopy.guest.pace import Pace
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.port import FunctionPort
from precopy.mlx5_abi.wqe import CqeOpcode, CtrlFlags, WqeOpcode
from precopy.pci.memory import GuestMemory, RegionSpec
from precopy.vfio.errors import refuse
from precopy.vfio.guest import GuestCounts

_RDMA = frozenset({WqeOpcode.RDMA_WRITE, WqeOpcode.RDMA_READ})

#: How long a step may leave the vCPU at a time, in seconds, so that a pause is prompt.
_BURST = 0.002

_RESPONSES = frozenset({CqeOpcode.RESP_SEND, CqeOpcode.RESP_SEND_IMM})


class WorkloadGuest:
    """A guest with one vCPU (a thread). :meth:`power_on` makes a new one, :meth:`attach` one to be filled."""

    def __init__(self, port: FunctionPort, memory: GuestMemory) -> None:
        self._port = port
        self._memory = memory
        self._view = memory.regions[0].view
        self._cpu = threading.RLock()
        self._wake = threading.Event()
        self._events = False
        self._running = False
        self._thread: threading.Thread | None = None
        self._config: WorkloadConfig | None = None
        self._names: list[tuple[int, int, int]] = []
        self._closed = False
        try:
            port.connect_memory(memory)
        except BaseException:
            del self._view
            memory.close()
            raise
        port.set_interrupt(0, self._interrupt)

    @classmethod
    def power_on(cls, port: FunctionPort, config: WorkloadConfig) -> "WorkloadGuest":
        """A guest that has brought up its VF, not yet started. RuntimeError where the VF refuses."""
        guest = cls(port, GuestMemory([config.region, *port.regions]))
        try:
            port.power_on()
            Driver(port, config, guest._view).bring_up()
        except BaseException:
            guest.close()
            raise
        return guest

    @classmethod
    def attach(cls, port: FunctionPort, specs: Sequence[RegionSpec]) -> "WorkloadGuest":
        """A guest whose memory another one's will be copied into. OSError as GuestMemory."""
        if not specs:
            raise refuse(errno.EINVAL, "a guest needs memory")
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
        """Read from the memory what does not change while the guest runs. RuntimeError, ValueError."""
        control = self._control()
        config = control.config()
        if config.region != self._memory.regions[0].spec:
            raise RuntimeError(
                f"the guest's memory is not that of a workload of {config.pairs} pairs"
            )
        self._config = config
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
        pace = Pace(rate, time.monotonic(), self._counts()[Count.SENT])
        while self._running:
            with self._cpu:
                if not self._running:
                    break
                if self._events:
                    self._handle_events()
                due = pace.due(time.monotonic(), self._counts()[Count.SENT])
                progress = self._burst(due) if due > 0 else False
            if not progress or rate:
                self._wake.wait(0.001)
                self._wake.clear()

    def step(self, count: int) -> None:
        """Send up to ``count`` messages in the calling thread, paused or not; tests drive it so."""
        with self._cpu:
            self._take_up()
            self._handle_events()
            self._burst(count, for_ever=True)

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

    def _send(self, index: int) -> bool:
        """Send the next message of a pair, where its window has room."""
        config = self._config
        assert config is not None
        pair = self._pair(index)
        if pair.dead or pair.under_way >= WINDOW:
            return False
        control = self._control()
        at, sequence = config.pair_at(index), pair.next_send
        opcode = messages.operation(config, sequence)
        message = messages.build(config, index, sequence)
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
        self._count(Count.SENT)
        self._port.ring(control.uar, wqe.UAR_SEND_DOORBELL, entry[:8])
        self._poll_cq(index)
        return True

    # --- Completions --------------------------------------------------------------------------

    def _handle_events(self) -> None:
        """Read the EQ; then poll every CQ that it names.

        Not while it reads: a CQ that is armed may tell at once, and for ever of what is not there.
        """
        self._events = False
        control = self._control()
        consumer = control.eq_consumer
        names = {cqn: index for index, (_, _, cqn) in enumerate(self._names)}
        told: set[int] = set()
        while True:
            at = layout.PAGE + (consumer & ((1 << layout.LOG_EQ) - 1)) * wqe.EQE_BYTES
            if self._view[at + wqe.EQE_OWNER] & 1 != consumer >> layout.LOG_EQ & 1:
                break
            kind = self._view[at + wqe.EQE_TYPE]
            cqn = int.from_bytes(
                self._view[at + wqe.EQE_COMP_CQN : at + wqe.EQE_COMP_CQN + 4], "big"
            )
            consumer = consumer + 1 & 0xFFFFFF
            if kind == wqe.EventType.COMP and cqn in names:
                told.add(names[cqn])
            elif kind != wqe.EventType.COMP:
                self._count(Count.FAILED)
        self._set_control(eq_consumer=consumer)
        word = (control.eqn << 24 | consumer).to_bytes(8, "big")
        self._port.ring(control.uar, wqe.UAR_EQ_ARM, word)
        for index in sorted(told):
            self._poll_cq(index)

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
            pair = pair._replace(cq_consumer=(pair.cq_consumer + 1) & 0xFFFFFF)
            pair = self._completion(index, pair, opcode, entry)
            if opcode in _RESPONSES:
                pair = self._post_receive(config, index, at, pair, mkey)
            took = True
        if took:
            wqe.CQ_DBR.pack_into(self._view, at + layout.CQ_DBR, pair.cq_consumer, 0)
            self._put_pair(index, pair)
        if pair.under_way and not pair.dead:
            cqn = self._names[index][2]
            word = pair.cq_consumer.to_bytes(4, "big") + cqn.to_bytes(4, "big")
            self._port.ring(self._control().uar, wqe.UAR_CQ_DOORBELL, word)

    def _completion(self, index: int, pair: Pair, opcode: int, entry: int) -> Pair:
        """Take the completion at offset ``entry``: an error, a message that came, or one that went."""
        config = self._config
        assert config is not None
        tail = wqe.CQE_TAIL.unpack_from(self._view, entry + wqe.CQE_TAIL_OFFSET)
        immediate, count, _, last, counter, _, _ = tail
        sender, receiver, _ = self._names[index]
        where = (last & 0xFFFFFF, counter)
        if opcode in _RESPONSES and where == (receiver, self._receives_done(pair)):
            # The n-th receive entry took the n-th SEND.
            slot = config.receive_slot(index, counter)
            carried = immediate if opcode == CqeOpcode.RESP_SEND_IMM else None
            return self._arrive(index, pair, slot, count, carried)
        if opcode == CqeOpcode.REQ and where == (sender, pair.done & 0xFFFF) and pair.under_way:
            sequence = pair.next_send - pair.under_way
            operation = messages.operation(config, sequence)
            if operation in _RDMA:
                read = operation == WqeOpcode.RDMA_READ
                slot = (config.send_slot if read else config.rdma_slot)(index, sequence)
                pair = self._arrive(index, pair, slot, config.size, None)
            return pair._replace(done=(pair.done + 1) & 0xFFFFFFFF)
        # An error, or one that is not due: what the pair still has under way can't be told any more.
        self._count(Count.FAILED)
        return pair._replace(dead=1)

    @staticmethod
    def _receives_done(pair: Pair) -> int:
        """Number of the receive entry that is done now: all but those that are still posted."""
        return (pair.receives - (1 << layout.LOG_RQ)) & 0xFFFF

    def _arrive(self, index: int, pair: Pair, slot: int, count: int, carried: int | None) -> Pair:
        """Check one message of ``count`` bytes that has arrived at offset ``slot``."""
        config = self._config
        assert config is not None
        self._count(Count.RECEIVED)
        sequence = messages.sequence_of(config, index, bytes(self._view[slot : slot + config.size]))
        if (
            sequence is None
            or sequence >= pair.next_send
            or count != config.size
            or carried != messages.immediate(config, sequence)
        ):
            pair, tally = messages.arrive_damaged(pair)
        else:
            pair, tally = messages.arrive(pair, sequence)
        self._add(tally)
        return pair

    # --- Counts -------------------------------------------------------------------------------

    def _counts(self) -> tuple[int, ...]:
        return COUNTS.unpack_from(self._view, layout.COUNTS_AT)

    def _count(self, which: Count, by: int = 1) -> None:
        at = layout.COUNTS_AT + 8 * which
        value = int.from_bytes(self._view[at : at + 8], "little") + by
        self._view[at : at + 8] = value.to_bytes(8, "little")

    def _add(self, tally: Mapping[Count, int]) -> None:
        for which, by in tally.items():
            self._count(which, by)

    def counts(self) -> GuestCounts:
        return GuestCounts(*self._counts())

    def settle(self, timeout: float) -> GuestCounts:
        deadline = time.monotonic() + timeout
        with self._cpu:
            self._take_up()
            self._set_control(settling=1)
        while True:
            with self._cpu:
                self._handle_events()
                late = self._outstanding()
                if not late or time.monotonic() >= deadline:
                    for index in late:
                        self._give_up(index)
                    return self.counts()
            self._wake.wait(0.001)
            self._wake.clear()

    def _outstanding(self) -> list[int]:
        """Pairs of which a message or a completion has yet to come, after a look at their CQs."""
        found = []
        for index in range(len(self._names)):
            if self._touched(index):
                self._poll_cq(index)
                pair = self._pair(index)
                if pair.next_arrival < pair.next_send or (pair.under_way and not pair.dead):
                    found.append(index)
        return found

    def _give_up(self, index: int) -> None:
        """What has not come by now is lost; a queue that has told of no error stands still."""
        pair, tally = messages.pass_over(self._pair(index), self._pair(index).next_send)
        self._add(tally)
        if pair.under_way and not pair.dead:
            self._count(Count.FAILED)
            pair = pair._replace(dead=1)
        self._put_pair(index, pair)

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
        self._port.disconnect_memory(self._memory)
        del self._view
        self._memory.close()
