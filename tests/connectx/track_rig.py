"""The PF's end of a page tracker, by commands and bytes: queues, buffers, and what comes in them."""

from dataclasses import dataclass

from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.commands import (
    CreateCqIn,
    CreateEqIn,
    CreateMkeyIn,
    CreateQpIn,
    GeneralObjectIn,
    Inbox,
    ModifyQpIn,
    Opcode,
    Outbox,
    PageTrackIn,
)
from precopy.mlx5_abi.contexts import AccessMode
from precopy.mlx5_abi.general_object import OBJECT_CHANGE, ObjectType, PageTrackState, pack_ranges
from precopy.mlx5_abi.status import Status
from precopy.mlx5_abi.wqe import CqeOpcode, EventType
from tests.connectx.rig import command, small_adapter

PAGE = 4096
PF_BASE = 1 << 20
LOG_EQ = 6
_CQ_RECORD, _QP_RECORD = 0, 64
_CQ, _RQ, _EQ, _BUFFERS = PAGE, 2 * PAGE, 3 * PAGE, 4 * PAGE

EVENTS = sum(
    1 << kind for kind in (EventType.CQ_ERROR, EventType.OBJECT_CHANGE, EventType.WQ_CATAS_ERROR)
)


@dataclass(frozen=True)
class Message:
    """What one completion of the host's QP told."""

    state: int
    pages: list[int]


class TrackRig:
    """Receive queue and CQ have 2^``log_entries`` and 2^``log_cq`` entries; messages 2^``log_msg`` bytes."""

    def __init__(
        self, log_entries: int = 2, log_cq: int = 4, log_msg: int = 12, **options: object
    ) -> None:
        self.adapter = small_adapter(**options)  # type: ignore[arg-type]
        self.pf, self.vf = self.adapter.pf, self.adapter.vfs[0]
        self.log_entries, self.log_cq, self.log_msg = log_entries, log_cq, log_msg
        buffers = 1 << log_entries + log_msg
        self.view = memoryview(bytearray(_BUFFERS + buffers))
        self.pf.dma.map(PF_BASE, self.view)
        for at in range(_CQ, _CQ + (64 << log_cq), 64):
            self.view[at + wqe.CQE_OP_OWN] = wqe.CQE_INVALID_BYTE
        for at in range(_EQ, _EQ + (64 << LOG_EQ), 64):
            self.view[at + wqe.EQE_OWNER] = 1
        self.consumer = self.posted = self.events_taken = 0
        self.interrupts: list[None] = []
        self.pf.set_interrupt(3, lambda: self.interrupts.append(None))
        self.uar: int = self.ok(Opcode.ALLOC_UAR).uar  # type: ignore[attr-defined]
        self.pd: int = self.ok(Opcode.ALLOC_PD).pd  # type: ignore[attr-defined]
        eq = CreateEqIn(bytearray(CreateEqIn.SIZE) + (PF_BASE + _EQ).to_bytes(8, "big"))
        eq.eqc.log_eq_size, eq.eqc.uar_page, eq.eqc.intr = LOG_EQ, self.uar, 3
        eq.event_bitmask = EVENTS
        eqn = self.ok(Opcode.CREATE_EQ, eq).eq_number  # type: ignore[attr-defined]
        cq = CreateCqIn(bytearray(CreateCqIn.SIZE) + (PF_BASE + _CQ).to_bytes(8, "big"))
        cq.cqc.log_cq_size, cq.cqc.c_eqn, cq.cqc.uar_page = log_cq, eqn, self.uar
        cq.cqc.dbr_addr = PF_BASE + _CQ_RECORD
        self.cqn: int = self.ok(Opcode.CREATE_CQ, cq).cqn  # type: ignore[attr-defined]
        self.mkey = self._mkey(buffers)
        host = CreateQpIn(bytearray(CreateQpIn.SIZE) + (PF_BASE + _RQ).to_bytes(8, "big"))
        host.qpc.pd, host.qpc.no_sq, host.qpc.cqn_rcv = self.pd, 1, self.cqn
        host.qpc.log_rq_size, host.qpc.dbr_addr = log_entries, PF_BASE + _QP_RECORD
        self.host: int = self.ok(Opcode.CREATE_QP, host).qpn  # type: ignore[attr-defined]
        ours = CreateQpIn()
        ours.qpc.pd, ours.qpc.no_sq, ours.qpc.rq_type = self.pd, 1, 3
        self.fw: int = self.ok(Opcode.CREATE_QP, ours).qpn  # type: ignore[attr-defined]
        for qpn, remote in ((self.host, self.fw), (self.fw, self.host)):
            modify = ModifyQpIn(qpn=qpn)
            modify.qpc.remote_qpn, modify.qpc.rnr_retry = remote, 7
            self.ok(Opcode.RST2INIT_QP, modify)
            self.ok(Opcode.INIT2RTR_QP, modify)
        modify = ModifyQpIn(qpn=self.fw)
        modify.qpc.rnr_retry = modify.qpc.retry_count = 7
        self.ok(Opcode.RTR2RTS_QP, modify)

    def _mkey(self, length: int) -> int:
        count = -(-length // PAGE)
        inbox = CreateMkeyIn(bytearray(CreateMkeyIn.SIZE + 16 * -(-count // 2)))
        inbox.translations_octword_actual_size = -(-count // 2)
        mkc = inbox.mkc
        mkc.access_mode_1_0, mkc.lr, mkc.lw, mkc.qpn = AccessMode.MTT, 1, 1, 0xFFFFFF
        mkc.pd, mkc.log_page_size, mkc.len = self.pd, 12, length
        for n in range(count):
            entry = (PF_BASE + _BUFFERS + n * PAGE).to_bytes(8, "big")
            inbox.buf[CreateMkeyIn.SIZE + 8 * n : CreateMkeyIn.SIZE + 8 * n + 8] = entry
        index = self.ok(Opcode.CREATE_MKEY, inbox).mkey_index  # type: ignore[attr-defined]
        return int(index) << 8

    def ok(self, opcode: Opcode, inbox: Inbox | None = None, **fields: int) -> Outbox:
        out = command(self.pf, opcode, inbox, **fields)
        assert out.status == Status.OK, (opcode, hex(out.syndrome))
        return out

    # --- The object ---------------------------------------------------------------------------

    def inbox(self, ranges: list[tuple[int, int]], **fields: int) -> PageTrackIn:
        """CREATE of an object over ``ranges``, whose fields may be other ones."""
        inbox = PageTrackIn(bytearray(PageTrackIn.SIZE) + pack_ranges(ranges))
        inbox.obj_type = ObjectType.PAGE_TRACK
        total = sum(length for _, length in ranges)
        given = {
            "vhca_id": self.vf.vhca.vhca_id,
            "track_type": 1,
            "log_addr_space_size": max((total - 1).bit_length(), 12),
            "log_page_size": 12,
            "log_msg_size": self.log_msg,
            "reporting_qpn": self.fw,
            "num_ranges": len(ranges),
        }
        for name, value in (given | fields).items():
            setattr(inbox.page_track, name, value)
        return inbox

    def create(self, ranges: list[tuple[int, int]], **fields: int) -> int:
        out = self.ok(Opcode.CREATE_GENERAL_OBJECT, self.inbox(ranges, **fields))
        return int(out.obj_id)  # type: ignore[attr-defined]

    def modify(self, number: int, iova: int, length: int, /, **fields: int) -> Outbox:
        inbox = PageTrackIn(obj_type=ObjectType.PAGE_TRACK, obj_id=number)
        given = {
            "modify_field_select": 3,
            "state": 1,
            "range_start_address": iova,
            "length": length,
        }
        for name, value in (given | fields).items():
            setattr(inbox.page_track, name, value)
        return command(self.pf, Opcode.MODIFY_GENERAL_OBJECT, inbox)

    def query(self, number: int) -> Outbox:
        inbox = GeneralObjectIn(obj_type=ObjectType.PAGE_TRACK, obj_id=number)
        return command(self.pf, Opcode.QUERY_GENERAL_OBJECT, inbox)

    def state(self, number: int) -> PageTrackState:
        out = self.query(number)
        assert out.status == Status.OK
        return PageTrackState(out.page_track.state)  # type: ignore[attr-defined]

    def destroy(self, number: int) -> Outbox:
        inbox = GeneralObjectIn(obj_type=ObjectType.PAGE_TRACK, obj_id=number)
        return command(self.pf, Opcode.DESTROY_GENERAL_OBJECT, inbox)

    # --- Queues -------------------------------------------------------------------------------

    def post(self, count: int = 1, length: int | None = None) -> None:
        """Post ``count`` receive entries, each over the buffer of its place in the queue."""
        for _ in range(count):
            index = self.posted & ((1 << self.log_entries) - 1)
            size = 1 << self.log_msg
            segment = (size if length is None else length, self.mkey, index * size)
            wqe.DATA_SEG.pack_into(self.view, _RQ + 16 * index, *segment)
            self.posted += 1
        wqe.QP_DBR.pack_into(self.view, _QP_RECORD, self.posted & 0xFFFF, 0)

    def arm(self) -> None:
        self.pf.ring(
            self.uar, wqe.UAR_CQ_DOORBELL, wqe.CQ_DBR.pack(self.consumer & 0xFFFFFF, self.cqn)
        )

    def messages(self, *, consume: bool = True) -> list[Message]:
        """What has come since the last call; ``consume``: and tell the CQ so."""
        found = []
        while True:
            at = _CQ + (self.consumer & ((1 << self.log_cq) - 1)) * 64
            own = self.view[at + wqe.CQE_OP_OWN]
            if own >> 4 == CqeOpcode.INVALID or own & 1 != self.consumer >> self.log_cq & 1:
                break
            assert own >> 4 == CqeOpcode.RESP_SEND_IMM
            immediate, length, _, tail, counter, _, _ = wqe.CQE_TAIL.unpack_from(self.view, at + 36)
            assert tail & 0xFFFFFF == self.host
            assert length % 8 == 0
            index = counter & ((1 << self.log_entries) - 1)
            start = _BUFFERS + (index << self.log_msg)
            entries = self.view[start : start + length]
            pages = [
                int.from_bytes(entries[n : n + 4], "big") << 32
                | int.from_bytes(entries[n + 4 : n + 8], "big")
                for n in range(0, length, 8)
            ]
            assert immediate & 0x0FFF_FFFF == 0
            found.append(Message(immediate >> 28, pages))
            self.consumer += 1
        if consume:
            wqe.CQ_DBR.pack_into(self.view, _CQ_RECORD, self.consumer & 0xFFFFFF, 0)
        return found

    def report(self, number: int, iova: int, length: int) -> list[Message]:
        """A whole report: entries are posted and the CQ armed until it is over."""
        assert self.modify(number, iova, length).status == Status.OK
        found: list[Message] = []
        while not found or found[-1].state == PageTrackState.REPORTING:
            got = self.messages()
            found += got
            self.post((1 << self.log_entries) - (self.posted - self.consumer))
            self.arm()
            assert got or self.messages_wait(), "the report stands still"
        return found

    def messages_wait(self) -> bool:
        """Whether something has come that was not there before the CQ was armed."""
        at = _CQ + (self.consumer & ((1 << self.log_cq) - 1)) * 64
        own = self.view[at + wqe.CQE_OP_OWN]
        return own >> 4 != CqeOpcode.INVALID and own & 1 == self.consumer >> self.log_cq & 1

    def pages(self, number: int, iova: int, length: int) -> list[int]:
        """The addresses of a whole report."""
        return [page for message in self.report(number, iova, length) for page in message.pages]

    def events(self) -> list[tuple[EventType, bytes]]:
        """Type and data of every event since the last call, but for completions."""
        found: list[tuple[EventType, bytes]] = []
        while True:
            at = _EQ + (self.events_taken & ((1 << LOG_EQ) - 1)) * 64
            if self.view[at + wqe.EQE_OWNER] & 1 != self.events_taken >> LOG_EQ & 1:
                return found
            kind = EventType(self.view[at + wqe.EQE_TYPE])
            if kind is not EventType.COMP:
                found.append((kind, bytes(self.view[at + wqe.EQE_DATA : at + 60])))
            self.events_taken += 1

    def changed(self) -> list[int]:
        """Numbers of the objects whose change was told."""
        told = []
        for kind, data in self.events():
            if kind is EventType.OBJECT_CHANGE:
                object_type, number = OBJECT_CHANGE.unpack_from(data)
                assert object_type == ObjectType.PAGE_TRACK
                told.append(number)
        return told
