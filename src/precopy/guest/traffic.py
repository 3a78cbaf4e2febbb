"""Messages through the queue pairs: how they are sent, what their completions say, what is counted.

It drives the VF as a guest's driver could: work queue entries and doorbell records in its memory,
doorbells, completions.
"""

import time
from collections.abc import Mapping

from precopy.guest import layout, messages
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
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.port import FunctionPort
from precopy.mlx5_abi.wqe import CqeOpcode, CtrlFlags, WqeOpcode

_RDMA = frozenset({WqeOpcode.RDMA_WRITE, WqeOpcode.RDMA_READ})

#: How long a burst may leave the vCPU at a time, in seconds, so that a pause is prompt.
_BURST = 0.002

_RESPONSES = frozenset({CqeOpcode.RESP_SEND, CqeOpcode.RESP_SEND_IMM})


def control_of(view: memoryview) -> Control:
    """The control page's words. RuntimeError where they are none."""
    control = Control(*CONTROL.unpack_from(view, 0))
    if control.magic != layout.MAGIC:
        raise RuntimeError("the guest's memory holds no workload")
    return control


def counts_of(view: memoryview) -> tuple[int, ...]:
    """What has been counted, in the order of :class:`Count`."""
    return COUNTS.unpack_from(view, layout.COUNTS_AT)


class Traffic:
    """The messages of a workload whose memory is ``view``. One thread at a time."""

    def __init__(self, port: FunctionPort, config: WorkloadConfig, view: memoryview) -> None:
        self._port, self._config, self._view = port, config, view
        control = control_of(view)
        self._uar, self._mkey, self._eqn = control.uar, control.mkey, control.eqn
        self._names: list[tuple[int, int, int]] = [
            NAMES.unpack_from(view, layout.NAMES_AT + index * NAMES.size)
            for index in range(config.active)
        ]

    def _control(self) -> Control:
        return control_of(self._view)

    def set_control(self, **changes: int) -> None:
        CONTROL.pack_into(self._view, 0, *self._control()._replace(**changes))

    def burst(self, due: int, *, for_ever: bool = False) -> bool:
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
        self.set_control(cursor=cursor % control.active)
        return any_sent

    # --- Sending ------------------------------------------------------------------------------

    def _pair(self, index: int) -> Pair:
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
        PAIR.pack_into(self._view, self._config.pair_at(index) + layout.PAIR_AT, *pair)

    def _post_receives(self, index: int, pair: Pair) -> Pair:
        """Receive entries for every message that may come next; slot n takes sequence number n."""
        config = self._config
        at = config.pair_at(index)
        while pair.receives < (1 << layout.LOG_RQ) and not pair.next_send:
            pair = self._post_receive(index, at, pair)
        return pair

    def _post_receive(self, index: int, at: int, pair: Pair) -> Pair:
        config = self._config
        number = pair.receives
        wqe.DATA_SEG.pack_into(
            self._view,
            at + layout.RECEIVE_QUEUE + (number % (1 << layout.LOG_RQ)) * wqe.DATA_SEG.size,
            config.slot_bytes,
            self._mkey,
            BASE + config.receive_slot(index, number),
        )
        pair = pair._replace(receives=(number + 1) & 0xFFFF)
        wqe.QP_DBR.pack_into(self._view, at + layout.RECEIVE_DBR, pair.receives, 0)
        return pair

    def _send(self, index: int) -> bool:
        """Send the next message of a pair, where its window has room."""
        config = self._config
        pair = self._pair(index)
        if pair.dead or pair.under_way >= WINDOW:
            return False
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
            entry += wqe.RADDR_SEG.pack(BASE + its, self._mkey)
        entry += wqe.DATA_SEG.pack(len(message), self._mkey, BASE + mine)
        slot = at + layout.SEND_QUEUE + 64 + (counter % (1 << layout.LOG_SQ)) * wqe.WQEBB_BYTES
        self._view[slot : slot + len(entry)] = entry
        posted = pair.posted + 1
        wqe.QP_DBR.pack_into(self._view, at + layout.SEND_DBR, 0, posted & 0xFFFF)
        self._put_pair(index, pair._replace(next_send=sequence + 1, posted=posted & 0xFFFFFFFF))
        self._count(Count.SENT)
        self._port.ring(self._uar, wqe.UAR_SEND_DOORBELL, entry[:8])
        self._poll_cq(index)
        return True

    # --- Completions --------------------------------------------------------------------------

    def handle_events(self) -> None:
        """Read the EQ; then poll every CQ that it names.

        Not while it reads: a CQ that is armed may tell at once, and for ever of what is not there.
        """
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
        self.set_control(eq_consumer=consumer)
        word = (self._eqn << 24 | consumer).to_bytes(8, "big")
        self._port.ring(self._uar, wqe.UAR_EQ_ARM, word)
        for index in sorted(told):
            self._poll_cq(index)

    def _poll_cq(self, index: int) -> None:
        """Take every completion there is; ask to be told of the next where messages are under way."""
        config = self._config
        at = config.pair_at(index)
        pair = self._pair(index)
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
                pair = self._post_receive(index, at, pair)
            took = True
        if took:
            wqe.CQ_DBR.pack_into(self._view, at + layout.CQ_DBR, pair.cq_consumer, 0)
            self._put_pair(index, pair)
        if pair.under_way and not pair.dead:
            cqn = self._names[index][2]
            word = pair.cq_consumer.to_bytes(4, "big") + cqn.to_bytes(4, "big")
            self._port.ring(self._uar, wqe.UAR_CQ_DOORBELL, word)

    def _completion(self, index: int, pair: Pair, opcode: int, entry: int) -> Pair:
        """Take the completion at offset ``entry``: an error, a message that came, or one that went."""
        config = self._config
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

    def _count(self, which: Count, by: int = 1) -> None:
        at = layout.COUNTS_AT + 8 * which
        value = int.from_bytes(self._view[at : at + 8], "little") + by
        self._view[at : at + 8] = value.to_bytes(8, "little")

    def _add(self, tally: Mapping[Count, int]) -> None:
        for which, by in tally.items():
            self._count(which, by)

    def outstanding(self) -> list[int]:
        """Pairs of which a message or a completion has yet to come, after a look at their CQs."""
        found = []
        for index in range(len(self._names)):
            if self._touched(index):
                self._poll_cq(index)
                pair = self._pair(index)
                if pair.next_arrival < pair.next_send or (pair.under_way and not pair.dead):
                    found.append(index)
        return found

    def give_up(self, index: int) -> None:
        """What has not come by now is lost; a queue that has told of no error stands still."""
        pair, tally = messages.pass_over(self._pair(index), self._pair(index).next_send)
        self._add(tally)
        if pair.under_way and not pair.dead:
            self._count(Count.FAILED)
            pair = pair._replace(dead=1)
        self._put_pair(index, pair)

    def _touched(self, index: int) -> bool:
        at = self._config.pair_at(index) + layout.PAIR_AT
        return bool(PAIR.unpack_from(self._view, at)[0])
