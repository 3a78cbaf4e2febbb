"""RC queue pairs in loopback: send queue entries carried out against the remote QP's receive queue.

Work is done when a doorbell rings, in the order of the send queue. A queue that can't go on (the
function is suspended, the other end has no receive entry) is marked PENDING in its slot, so that it
goes on later, on whatever adapter the slot is then.
"""

from collections.abc import Callable, Iterator

from precopy.connectx import events, memory_keys
from precopy.connectx.memory_keys import KeyFault
from precopy.connectx.slots import QpSlot, SlotFlags, receive_queue_bytes
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.contexts import QpState
from precopy.mlx5_abi.wqe import CqeOpcode, CqeSyndrome, WqeOpcode

_SENDS = frozenset({WqeOpcode.SEND, WqeOpcode.SEND_IMM})
_WRITES = frozenset({WqeOpcode.RDMA_WRITE, WqeOpcode.RDMA_WRITE_IMM})
_IMMEDIATE = frozenset({WqeOpcode.SEND_IMM, WqeOpcode.RDMA_WRITE_IMM})
_RESPONSES = {
    WqeOpcode.SEND: CqeOpcode.RESP_SEND,
    WqeOpcode.SEND_IMM: CqeOpcode.RESP_SEND_IMM,
    WqeOpcode.RDMA_WRITE_IMM: CqeOpcode.RESP_WR_IMM,
}
_READY_TO_RECEIVE = frozenset({QpState.RTR, QpState.RTS})

#: ``rnr_retry`` of a QP that waits for ever.
_RNR_FOREVER = 7


def _blocks(entry: bytes) -> int:
    """Building blocks that a send queue entry takes."""
    return max(1, -(-len(entry) // wqe.WQEBB_BYTES))


class _Wait(Exception):
    """The entry at the head can't be carried out yet."""


class _Fault(Exception):
    """The entry at the head failed: what the requester hears, and what the responder does."""

    def __init__(
        self,
        requester: CqeSyndrome,
        responder: CqeSyndrome | None = None,
        ends_responder: bool = False,
    ) -> None:
        super().__init__(requester.name)
        self.requester, self.responder = requester, responder
        self.ends_responder = ends_responder or responder is not None


class SendFailed(Exception):
    """A message of the adapter's own can't be delivered, now or later."""


class Transport:
    """Carries out the work of one function."""

    def __init__(self, vhca: Vhca) -> None:
        self._vhca = vhca
        #: QPs that wait for a receive entry, of generation ``_of``.
        self._waiting: set[int] = set()
        self._of = vhca.generation
        #: Called when a consumer looks for completions, which may also have made room for more.
        self.on_arm: Callable[[], None] | None = None

    # --- Doorbells ----------------------------------------------------------------------------

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        """A write to a UAR page. One to a page that nobody owns, or to nothing, is dropped."""
        vhca = self._vhca
        first, second = int.from_bytes(data[:4], "big"), int.from_bytes(data[4:8], "big")
        with vhca.lock:
            if not vhca.in_use("uar", uar):
                return
            if offset == wqe.UAR_SEND_DOORBELL:
                self._work(second >> 8)
            elif offset == wqe.UAR_CQ_DOORBELL:
                events.arm(vhca, second & 0xFFFFFF, first)
                self._retry()
                if self.on_arm is not None:
                    self.on_arm()

    def catch_up(self) -> None:
        """The function works again: do what was left, and tell of what may not have been heard."""
        vhca = self._vhca
        with vhca.lock:
            table = vhca.table("qp")
            for number in table.flagged_slots(QpSlot.flags.first, SlotFlags.PENDING).tolist():
                self._work(number)
            events.raise_all(vhca)

    def flush(self, qpn: int) -> None:
        """The QP is in ERR: its entries complete with WR_FLUSH_ERR."""
        with self._vhca.lock:
            if self._vhca.in_use("qp", qpn):
                qp = QpSlot(self._vhca.table("qp").edit(qpn))
                self._flush_sends(qpn, qp)
                self._flush_receives(qpn, qp)

    def _retry(self) -> None:
        if self._of != self._vhca.generation:
            self._waiting.clear()
            self._of = self._vhca.generation
        for qpn in list(self._waiting):
            self._work(qpn)

    # --- Messages of the adapter's own --------------------------------------------------------

    def send_own(self, qpn: int, data: bytes, immediate: int) -> bool:
        """SEND with immediate from QP ``qpn``, which needs no send queue; the caller has the lock.

        False where the other end has no receive entry; nothing has happened then. SendFailed where
        the QP, the other end or its completion queue is of no use.
        """
        vhca = self._vhca
        if not vhca.in_use("qp", qpn):
            raise SendFailed(f"no QP {qpn}")
        qp = QpSlot(vhca.table("qp").edit(qpn))
        if qp.state != QpState.RTS:
            raise SendFailed(f"QP {qpn} is not in RTS")
        try:
            remote = self._remote(qpn, qp)
            self._scatter(qp, remote, self._receive_entry(qp, remote), data)
            self._consume_receive(qp, remote, WqeOpcode.SEND_IMM, immediate, len(data))
        except _Wait:
            return False
        except _Fault as fault:
            if fault.ends_responder:
                self._fail_responder(qp.remote_qpn, fault.responder)
            qp.state = QpState.ERR
            raise SendFailed(str(fault)) from fault
        except (OSError, IndexError) as error:
            qp.state = QpState.ERR
            raise SendFailed(str(error)) from error
        qp.rnr_attempts = 0
        qp.next_send_psn = (qp.next_send_psn + 1) & 0xFFFFFF
        if not events.works(vhca, remote.cqn_rcv):
            raise SendFailed(f"CQ {remote.cqn_rcv} does not work")
        return True

    # --- The send queue -----------------------------------------------------------------------

    def _work(self, qpn: int) -> None:
        vhca = self._vhca
        self._waiting.discard(qpn)
        if not vhca.in_use("qp", qpn):
            return
        qp = QpSlot(vhca.table("qp").edit(qpn))
        if vhca.initiator_suspended:
            qp.flags |= SlotFlags.PENDING
            return
        qp.flags &= ~SlotFlags.PENDING
        if qp.state == QpState.ERR:
            self._flush_sends(qpn, qp)
        if qp.state != QpState.RTS or qp.no_sq:
            return
        try:
            end = self._send_counter(qp)
            while qp.hw_sq_wqebb_counter != end:
                self._one(qpn, qp, qp.hw_sq_wqebb_counter)
                if qp.state != QpState.RTS:
                    return
        except _Wait:
            qp.flags |= SlotFlags.PENDING
            self._waiting.add(qpn)
        except (OSError, IndexError):
            # Queue or doorbell record can't be read: the QP is of no use any more.
            self._fail(qpn, qp, qp.hw_sq_wqebb_counter, CqeSyndrome.LOCAL_QP_OP_ERR)

    def _send_counter(self, qp: QpSlot) -> int:
        counters = wqe.QP_DBR.unpack(self._vhca.dma.read(qp.dbr_addr, wqe.QP_DBR.size))
        end: int = counters[1] & 0xFFFF
        if (end - qp.hw_sq_wqebb_counter) & 0xFFFF > 1 << qp.log_sq_size:
            raise IndexError("more entries than the queue has room for")
        return end

    def _read_wqe(self, qp: QpSlot, counter: int) -> bytes:
        """The entry whose first building block is number ``counter``, its whole length."""
        mask = (1 << qp.log_sq_size) - 1
        base = qp.page_offset * 64 + receive_queue_bytes(qp)

        def block(index: int) -> bytes:
            at = events.queue_address(qp, base + (index & mask) * wqe.WQEBB_BYTES)
            return self._vhca.dma.read(at, wqe.WQEBB_BYTES)

        found = block(counter)
        size = (int.from_bytes(found[4:8], "big") & 0x3F) * 16
        for index in range(1, -(-size // wqe.WQEBB_BYTES)):
            found += block(counter + index)
        return found[: max(size, 16)]

    def _one(self, qpn: int, qp: QpSlot, counter: int) -> None:
        entry = self._read_wqe(qp, counter)
        head, _, flags, immediate = wqe.CTRL_SEG.unpack_from(entry)
        opcode = head & 0xFF
        blocks = _blocks(entry)
        try:
            if head >> 8 & 0xFFFF != counter:
                raise _Fault(CqeSyndrome.LOCAL_QP_OP_ERR)
            count = self._carry_out(qpn, qp, opcode, immediate, entry)
        except _Fault as fault:
            if fault.ends_responder:
                self._fail_responder(qp.remote_qpn, fault.responder)
            self._fail(qpn, qp, counter, fault.requester, opcode)
            return
        qp.rnr_attempts = 0
        qp.hw_sq_wqebb_counter = (counter + blocks) & 0xFFFF
        qp.next_send_psn = (qp.next_send_psn + 1) & 0xFFFFFF
        if flags & wqe.CtrlFlags.CQ_UPDATE:
            events.complete(
                self._vhca,
                qp.cqn_snd,
                CqeOpcode.REQ,
                qpn,
                counter,
                wqe_opcode=opcode,
                byte_count=count,
            )

    def _carry_out(self, qpn: int, qp: QpSlot, opcode: int, immediate: int, entry: bytes) -> int:
        """Do what one entry says; the bytes moved."""
        if opcode == WqeOpcode.NOP:
            return 0
        if opcode not in WqeOpcode._value2member_map_:
            raise _Fault(CqeSyndrome.LOCAL_QP_OP_ERR)
        remote = self._remote(qpn, qp)
        rdma = opcode not in _SENDS
        at = wqe.CTRL_SEG.size + (wqe.RADDR_SEG.size if rdma else 0)
        segments = [(n or 1 << 31, key, a) for n, key, a in wqe.DATA_SEG.iter_unpack(entry[at:])]
        length = sum(count for count, _, _ in segments)
        if length > 1 << 30:
            raise _Fault(CqeSyndrome.LOCAL_LENGTH_ERR)
        receive = None
        if opcode in _SENDS or opcode == WqeOpcode.RDMA_WRITE_IMM:
            receive = self._receive_entry(qp, remote)
        access = "lw" if opcode == WqeOpcode.RDMA_READ else "lr"
        local = self._local_runs(qpn, qp, segments, access)
        if opcode == WqeOpcode.RDMA_READ:
            source = self._remote_runs(qp, remote, entry, length, "rr", bool(remote.rre))
            self._write(local, self._read(source))
        elif opcode in _WRITES:
            target = self._remote_runs(qp, remote, entry, length, "rw", bool(remote.rwe))
            self._write(target, self._read(local))
        else:
            self._scatter(qp, remote, receive, self._read(local))
        if receive is not None:
            self._consume_receive(qp, remote, opcode, immediate, length)
        return length

    def _remote(self, qpn: int, qp: QpSlot) -> QpSlot:
        number = qp.remote_qpn
        if not self._vhca.in_use("qp", number):
            raise _Fault(CqeSyndrome.TRANSPORT_RETRY_EXC_ERR)
        remote = QpSlot(self._vhca.table("qp").edit(number))
        if remote.state not in _READY_TO_RECEIVE or remote.remote_qpn != qpn:
            raise _Fault(CqeSyndrome.TRANSPORT_RETRY_EXC_ERR)
        remote.next_rcv_psn = (remote.next_rcv_psn + 1) & 0xFFFFFF
        return remote

    # --- The receive queue --------------------------------------------------------------------

    def _receive_entry(self, qp: QpSlot, remote: QpSlot) -> list[tuple[int, int, int]]:
        """The scatter list of the entry at the head of the remote's receive queue."""
        counters = wqe.QP_DBR.unpack(self._vhca.dma.read(remote.dbr_addr, wqe.QP_DBR.size))
        head = remote.hw_rq_counter & 0xFFFF
        if counters[0] & 0xFFFF == head:
            remote.next_rcv_psn = (remote.next_rcv_psn - 1) & 0xFFFFFF
            if qp.rnr_retry != _RNR_FOREVER:
                if qp.rnr_attempts >= qp.rnr_retry:
                    raise _Fault(CqeSyndrome.RNR_RETRY_EXC_ERR)
                qp.rnr_attempts += 1
            raise _Wait
        stride = 16 << remote.log_rq_stride
        index = head & ((1 << remote.log_rq_size) - 1)
        at = events.queue_address(remote, remote.page_offset * 64 + index * stride)
        found = []
        for count, key, address in wqe.DATA_SEG.iter_unpack(self._vhca.dma.read(at, stride)):
            if key == wqe.INVALID_LKEY:
                break
            if count:
                found.append((count, key, address))
        return found

    def _scatter(
        self, qp: QpSlot, remote: QpSlot, segments: list[tuple[int, int, int]] | None, data: bytes
    ) -> None:
        assert segments is not None
        if sum(count for count, _, _ in segments) < len(data):
            raise _Fault(CqeSyndrome.REMOTE_INVAL_REQ_ERR, CqeSyndrome.LOCAL_LENGTH_ERR)
        used, left = [], len(data)
        for count, key, address in segments:
            if left:
                used.append((min(count, left), key, address))
                left -= used[-1][0]
        try:
            runs = list(self._runs(qp.remote_qpn, remote, used, "lw"))
        except KeyFault:
            raise _Fault(CqeSyndrome.REMOTE_OP_ERR, CqeSyndrome.LOCAL_PROT_ERR) from None
        self._write(runs, data)

    def _consume_receive(
        self, qp: QpSlot, remote: QpSlot, opcode: int, immediate: int, length: int
    ) -> None:
        counter = remote.hw_rq_counter & 0xFFFF
        remote.hw_rq_counter = (counter + 1) & 0xFFFF
        events.complete(
            self._vhca,
            remote.cqn_rcv,
            _RESPONSES[WqeOpcode(opcode)],
            qp.remote_qpn,
            counter,
            immediate=immediate if opcode in _IMMEDIATE else 0,
            byte_count=length,
        )

    # --- Memory -------------------------------------------------------------------------------

    def _runs(
        self, qpn: int, qp: QpSlot, segments: list[tuple[int, int, int]], access: str
    ) -> Iterator[tuple[int, int]]:
        pd = qp.pd
        for count, key, address in segments:
            yield from memory_keys.translate(
                self._vhca, key, address, count, access, pd=pd, qpn=qpn
            )

    def _local_runs(
        self, qpn: int, qp: QpSlot, segments: list[tuple[int, int, int]], access: str
    ) -> list[tuple[int, int]]:
        try:
            return list(self._runs(qpn, qp, segments, access))
        except KeyFault:
            raise _Fault(CqeSyndrome.LOCAL_PROT_ERR) from None

    def _remote_runs(
        self, qp: QpSlot, remote: QpSlot, entry: bytes, length: int, access: str, allowed: bool
    ) -> list[tuple[int, int]]:
        address, key = wqe.RADDR_SEG.unpack_from(entry, wqe.CTRL_SEG.size)
        if not length:
            return []
        if not allowed:
            raise _Fault(CqeSyndrome.REMOTE_ACCESS_ERR, ends_responder=True)
        try:
            return list(self._runs(qp.remote_qpn, remote, [(length, key, address)], access))
        except KeyFault:
            raise _Fault(CqeSyndrome.REMOTE_ACCESS_ERR, ends_responder=True) from None

    def _read(self, runs: list[tuple[int, int]]) -> bytes:
        return b"".join(self._vhca.dma.read(*run) for run in runs)

    def _write(self, runs: list[tuple[int, int]], data: bytes) -> None:
        offset = 0
        for address, count in runs:
            self._vhca.dma.write(address, data[offset : offset + count])
            offset += count

    # --- Errors -------------------------------------------------------------------------------

    def _fail(
        self, qpn: int, qp: QpSlot, counter: int, syndrome: CqeSyndrome, opcode: int = 0
    ) -> None:
        qp.state = QpState.ERR
        events.complete(
            self._vhca,
            qp.cqn_snd,
            CqeOpcode.REQ_ERR,
            qpn,
            counter,
            wqe_opcode=opcode,
            syndrome=syndrome,
        )
        try:
            blocks = _blocks(self._read_wqe(qp, counter))
        except (OSError, IndexError):
            blocks = 1
        qp.hw_sq_wqebb_counter = (counter + blocks) & 0xFFFF
        self._flush_sends(qpn, qp)
        self._flush_receives(qpn, qp)

    def _fail_responder(self, qpn: int, syndrome: CqeSyndrome | None) -> None:
        qp = QpSlot(self._vhca.table("qp").edit(qpn))
        qp.state = QpState.ERR
        if syndrome is not None:
            counter = qp.hw_rq_counter & 0xFFFF
            qp.hw_rq_counter = (counter + 1) & 0xFFFF
            events.complete(
                self._vhca, qp.cqn_rcv, CqeOpcode.RESP_ERR, qpn, counter, syndrome=syndrome
            )
        self._flush_sends(qpn, qp)
        self._flush_receives(qpn, qp)

    def _flush_sends(self, qpn: int, qp: QpSlot) -> None:
        try:
            end = self._send_counter(qp)
            while not qp.no_sq and qp.hw_sq_wqebb_counter != end:
                counter = qp.hw_sq_wqebb_counter
                blocks = _blocks(self._read_wqe(qp, counter))
                qp.hw_sq_wqebb_counter = (counter + blocks) & 0xFFFF
                if (end - counter) & 0xFFFF < blocks:
                    qp.hw_sq_wqebb_counter = end
                events.complete(
                    self._vhca,
                    qp.cqn_snd,
                    CqeOpcode.REQ_ERR,
                    qpn,
                    counter,
                    syndrome=CqeSyndrome.WR_FLUSH_ERR,
                )
        except (OSError, IndexError):
            return

    def _flush_receives(self, qpn: int, qp: QpSlot) -> None:
        try:
            counters = wqe.QP_DBR.unpack(self._vhca.dma.read(qp.dbr_addr, wqe.QP_DBR.size))
        except OSError:
            return
        end = counters[0] & 0xFFFF
        if (end - qp.hw_rq_counter) & 0xFFFF > 1 << qp.log_rq_size:
            return
        while (counter := qp.hw_rq_counter & 0xFFFF) != end:
            qp.hw_rq_counter = (counter + 1) & 0xFFFF
            events.complete(
                self._vhca,
                qp.cqn_rcv,
                CqeOpcode.RESP_ERR,
                qpn,
                counter,
                syndrome=CqeSyndrome.WR_FLUSH_ERR,
            )
