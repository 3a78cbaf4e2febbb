"""A firmware with a page tracker that reports what a test tells it, right or wrong."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.capabilities import AdvVirtualizationCap, GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import COMMANDS, CapType, Inbox, Opcode, Outbox
from precopy.mlx5_abi.general_object import OBJECT_CHANGE, ObjectType
from precopy.mlx5_abi.port import Done
from precopy.mlx5_abi.wqe import CqeOpcode, EventType
from tests.mlx5.fake_firmware import WatchedDma

#: Every number that the firmware hands out.
NUMBER = 7
LOG_MSG = 12

LIMITS = {
    "pg_track_log_max_num": 1,
    "pg_track_max_num_range": 8,
    "pg_track_log_min_addr_space": 12,
    "pg_track_log_max_addr_space": 40,
    "pg_track_log_min_msg_size": 3,
    "pg_track_log_max_msg_size": LOG_MSG,
    "pg_track_log_min_page_size": 12,
    "pg_track_log_max_page_size": 21,
}

Action = Callable[[], None]


@dataclass
class FakeTracker:
    """``DoorbellPort`` of a PF. Each report takes the next of ``on_report``, each CQ doorbell of ``on_arm``."""

    limits: dict[str, int] = field(default_factory=lambda: dict(LIMITS))
    on_report: deque[Action] = field(default_factory=deque)
    on_arm: deque[Action] = field(default_factory=deque)
    state: int = 0
    dma: WatchedDma = field(default_factory=WatchedDma)
    log: list[Opcode] = field(default_factory=list)
    asked: list[tuple[int, int]] = field(default_factory=list)
    refuse: dict[Opcode, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._interrupt: Callable[[], None] | None = None
        self._qpns = deque([0x11, 0x12])
        self._queues: dict[str, tuple[int, int]] = {}
        self._record = self._rq = self._buffers = 0
        self._taken = self._completed = self._told = 0

    # --- The port -----------------------------------------------------------------------------

    def execute(self, inbox: bytes) -> bytes:
        opcode = Opcode(int.from_bytes(inbox[:2], "big"))
        command = COMMANDS[opcode]
        out, asked = command.outbox(), command.inbox(inbox)
        self.log.append(opcode)
        status = self.refuse.get(opcode, 0)
        if status:
            out.status = status
        elif opcode == Opcode.CREATE_GENERAL_OBJECT:
            out.obj_id = NUMBER  # type: ignore[attr-defined]
        else:
            self._execute(opcode, asked, out)
        return bytes(out)

    def submit(self, inbox: bytes, done: Done) -> None:
        done(self.execute(inbox))

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        if offset == wqe.UAR_CQ_DOORBELL and self.on_arm:
            self.on_arm.popleft()()

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        self._interrupt = handler

    def _execute(self, opcode: Opcode, asked: Inbox, out: Outbox) -> None:
        answer = out
        if opcode == Opcode.QUERY_HCA_CAP:
            self._query_hca_cap(asked.op_mod >> 1, out)
        elif opcode == Opcode.CREATE_EQ:
            self._queues["eq"] = self._pages(asked), asked.eqc.log_eq_size  # type: ignore[attr-defined]
            answer.eq_number = NUMBER  # type: ignore[attr-defined]
        elif opcode == Opcode.CREATE_CQ:
            self._queues["cq"] = self._pages(asked), asked.cqc.log_cq_size  # type: ignore[attr-defined]
            answer.cqn = NUMBER  # type: ignore[attr-defined]
        elif opcode == Opcode.CREATE_QP:
            qpc = asked.qpc  # type: ignore[attr-defined]
            if len(asked.buf) > asked.SIZE:
                self._rq, self._record = self._pages(asked), qpc.dbr_addr
                self._log_rq = qpc.log_rq_size
            answer.qpn = self._qpns[0]  # type: ignore[attr-defined]
            self._qpns.rotate(1)
        elif opcode == Opcode.CREATE_MKEY:
            self._buffers = self._pages(asked)
            answer.mkey_index = NUMBER  # type: ignore[attr-defined]
        elif opcode == Opcode.MODIFY_GENERAL_OBJECT:
            track = asked.page_track  # type: ignore[attr-defined]
            self.asked.append((track.range_start_address, track.length))
            self.on_report.popleft()()
        elif opcode == Opcode.QUERY_GENERAL_OBJECT:
            answer.page_track.state = self.state  # type: ignore[attr-defined]

    @staticmethod
    def _pages(asked: Inbox) -> int:
        return int.from_bytes(asked.buf[asked.SIZE : asked.SIZE + 8], "big")

    def _query_hca_cap(self, kind: int, out: Outbox) -> None:
        body = memoryview(out.buf)[Outbox.SIZE :]
        if kind == CapType.GENERAL:
            GeneralCap(body, migration=1, vhca_id=5, adv_virtualization=1, cqe_version=1)
        elif kind == CapType.GENERAL_2:
            GeneralCap2(body, migration_multi_load=1, migration_tracking_state=1, migratable=1)
        elif kind == CapType.ADV_VIRTUALIZATION:
            AdvVirtualizationCap(body, **self.limits)

    # --- What a test makes it do --------------------------------------------------------------

    def send(
        self,
        pages: list[int],
        state: int = 0,
        *,
        opcode: int = CqeOpcode.RESP_SEND_IMM,
        length: int | None = None,
    ) -> Action:
        """A message, and its completion and event; ``length`` is what the completion claims."""

        def send() -> None:
            counter = self._taken
            posted, _ = wqe.QP_DBR.unpack(self.dma.read(self._record, 8))
            assert posted != counter & 0xFFFF, "no receive entry"
            mask = (1 << self._log_rq) - 1
            at = self._rq + (counter & mask) * 16
            size, key, offset = wqe.DATA_SEG.unpack(self.dma.read(at, 16))
            assert (size, key) == (1 << LOG_MSG, NUMBER << 8)
            payload = b"".join(page.to_bytes(8, "big") for page in pages)
            if payload:
                self.dma.write(self._buffers + offset, payload)
            self._taken += 1
            count = len(payload) if length is None else length
            self._complete(opcode, state << 28, count, counter)

        return send

    def _complete(self, opcode: int, immediate: int, count: int, counter: int) -> None:
        base, log = self._queues["cq"]
        own = opcode << 4 | self._completed >> log & 1
        entry = bytes(36) + wqe.CQE_TAIL.pack(immediate, count, 0, 0x11, counter & 0xFFFF, 0, own)
        self.dma.write(base + (self._completed & ((1 << log) - 1)) * 64, entry)
        self._completed += 1
        self.event(EventType.COMP, bytes(24) + NUMBER.to_bytes(4, "big"))()

    def event(self, kind: EventType, data: bytes) -> Action:
        """An event with ``data`` from byte 32 of the EQE on, and an interrupt."""

        def tell() -> None:
            base, log = self._queues["eq"]
            entry = bytearray(64)
            entry[wqe.EQE_TYPE] = kind
            entry[wqe.EQE_DATA : wqe.EQE_DATA + len(data)] = data
            entry[wqe.EQE_OWNER] = self._told >> log & 1
            self.dma.write(base + (self._told & ((1 << log) - 1)) * 64, entry)
            self._told += 1
            assert self._interrupt is not None
            self._interrupt()

        return tell

    def object_change(self, state: int, number: int = NUMBER) -> Action:
        """The object's state has changed, and an event tells so."""

        def change() -> None:
            self.state = state
            self.event(EventType.OBJECT_CHANGE, OBJECT_CHANGE.pack(ObjectType.PAGE_TRACK, number))()

        return change


def all_of(*actions: Action) -> Action:
    """One after another."""

    def act() -> None:
        for action in actions:
            action()

    return act


def nothing() -> None:
    """A firmware that does not react."""
