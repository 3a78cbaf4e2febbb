"""An adapter with one pair of QPs that a test posts work to, byte by byte."""

from dataclasses import dataclass

from precopy.connectx import Adapter, AdapterConfig, FaultPlan, InlineExecutor
from precopy.guest import WorkloadConfig, layout
from precopy.guest.bringup import Driver
from precopy.guest.layout import BASE, PAGE
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.commands import (
    COMMANDS,
    Inbox,
    Opcode,
    Outbox,
    QueryQpIn,
    ResumeVhcaIn,
    SuspendVhcaIn,
)
from precopy.mlx5_abi.contexts import QpState
from precopy.mlx5_abi.port import CommandPort
from precopy.mlx5_abi.wqe import CqeOpcode, CtrlFlags, WqeOpcode
from precopy.pci.memory import GuestMemory

SMALL = AdapterConfig(log_max_qp=8, log_max_cq=8)


def small_adapter(faults: str = "", **options: object) -> Adapter:
    config = AdapterConfig(**{"log_max_qp": 8, "log_max_cq": 8, **options})  # type: ignore[arg-type]
    return Adapter(config, faults=FaultPlan.parse(faults), executor=InlineExecutor())


def command(port: CommandPort, opcode: Opcode, inbox: Inbox | None = None, **fields: int) -> Outbox:
    """Run a command, whatever its status."""
    kind = COMMANDS[opcode]
    asked = inbox or kind.inbox()
    asked.opcode = opcode
    for name, value in fields.items():
        setattr(asked, name, value)
    return kind.outbox(port.execute(bytes(asked.buf)))


@dataclass(frozen=True)
class Cqe:
    opcode: int
    qpn: int
    counter: int
    syndrome: int
    immediate: int
    byte_count: int


class PairRig:
    """Sending and receiving QP in loopback, the send buffer at ``mine``, the receive buffers behind."""

    def __init__(self, adapter: Adapter | None = None) -> None:
        self.adapter = adapter or small_adapter()
        self.port = self.adapter.vfs[0]
        self.config = WorkloadConfig(pairs=1, active=1, size=256)
        self.memory = GuestMemory([self.config.region])
        self.view = self.memory.regions[0].view
        self.port.dma.map_guest(self.memory)
        Driver(self.port, self.config, self.view).bring_up()
        control = layout.Control(*layout.CONTROL.unpack_from(self.view, 0))
        self.uar, self.mkey = control.uar, control.mkey
        self.sender, self.receiver, self.cqn = layout.NAMES.unpack_from(self.view, layout.NAMES_AT)
        self.at = self.config.pair_at(0)
        self.mine = self.config.send_slot(0, 0)
        self.its = self.config.receive_slot(0, 0)
        self.posted = self.received = self.consumer = 0
        for entry in range(1 << layout.LOG_CQ):
            self.view[self.at + layout.CQ_QUEUE + entry * 64 + 63] = wqe.CQE_INVALID_BYTE

    def address(self, offset: int) -> int:
        return BASE + offset

    def receive(self, segment: tuple[int, int, int]) -> None:
        """Post a receive entry of one segment (a stride of 16 bytes holds one)."""
        slot = self.at + layout.RECEIVE_QUEUE + self.received % (1 << layout.LOG_RQ) * 16
        wqe.DATA_SEG.pack_into(self.view, slot, *segment)
        self.received += 1
        wqe.QP_DBR.pack_into(self.view, self.at + layout.RECEIVE_DBR, self.received & 0xFFFF, 0)

    def receive_here(self, length: int = 256) -> None:
        self.receive((length, self.mkey, self.address(self.its)))

    def post(
        self,
        opcode: int,
        *segments: tuple[int, int, int],
        remote: tuple[int, int] | None = None,
        immediate: int = 0,
        signaled: bool = True,
        ring: bool = True,
    ) -> None:
        ds = 1 + (remote is not None) + len(segments)
        entry = wqe.CTRL_SEG.pack(
            (self.posted & 0xFFFF) << 8 | opcode,
            self.sender << 8 | ds,
            CtrlFlags.CQ_UPDATE if signaled else 0,
            immediate,
        )
        if remote is not None:
            entry += wqe.RADDR_SEG.pack(*remote)
        entry += b"".join(wqe.DATA_SEG.pack(*segment) for segment in segments)
        base = self.at + layout.SEND_QUEUE + 64
        for block in range(-(-len(entry) // 64)):
            piece = entry[block * 64 : block * 64 + 64]
            slot = base + (self.posted + block) % (1 << layout.LOG_SQ) * 64
            self.view[slot : slot + len(piece)] = piece
        self.posted += -(-len(entry) // 64)
        wqe.QP_DBR.pack_into(self.view, self.at + layout.SEND_DBR, 0, self.posted & 0xFFFF)
        if ring:
            self.port.ring(self.uar, wqe.UAR_SEND_DOORBELL, entry[:8])

    def send(self, data: bytes, opcode: int = WqeOpcode.SEND, **options: object) -> None:
        self.view[self.mine : self.mine + len(data)] = data
        segment = (len(data), self.mkey, self.address(self.mine))
        self.post(opcode, segment, **options)  # type: ignore[arg-type]

    def completions(self) -> list[Cqe]:
        """What software owns in the CQ by its ownership bits, in order."""
        found = []
        mask = (1 << layout.LOG_CQ) - 1
        while True:
            at = self.at + layout.CQ_QUEUE + (self.consumer & mask) * 64
            own = self.view[at + wqe.CQE_OP_OWN]
            if own >> 4 == CqeOpcode.INVALID or own & 1 != self.consumer >> layout.LOG_CQ & 1:
                break
            immediate, count, _, tail, counter, _, _ = wqe.CQE_TAIL.unpack_from(self.view, at + 36)
            error = own >> 4 in (CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR)
            syndrome = self.view[at + wqe.CQE_ERROR_TAIL_OFFSET + 1] if error else 0
            found.append(
                Cqe(own >> 4, tail & 0xFFFFFF, counter, syndrome, immediate, 0 if error else count)
            )
            self.consumer += 1
        wqe.CQ_DBR.pack_into(self.view, self.at + layout.CQ_DBR, self.consumer & 0xFFFFFF, 0)
        return found

    def arm(self) -> None:
        word = (self.consumer & 0xFFFFFF).to_bytes(4, "big") + self.cqn.to_bytes(4, "big")
        self.port.ring(self.uar, wqe.UAR_CQ_DOORBELL, word)

    def state_of(self, qpn: int) -> QpState:
        out = command(self.port, Opcode.QUERY_QP, QueryQpIn(qpn=qpn))
        return QpState(out.qpc.state)  # type: ignore[attr-defined]

    def suspend(self, *kinds: int) -> None:
        for kind in kinds:
            inbox = SuspendVhcaIn(vhca_id=self.port.vhca.vhca_id, op_mod=kind)
            assert command(self.adapter.pf, Opcode.SUSPEND_VHCA, inbox).status == 0

    def resume(self, *kinds: int) -> None:
        for kind in kinds:
            inbox = ResumeVhcaIn(vhca_id=self.port.vhca.vhca_id, op_mod=kind)
            assert command(self.adapter.pf, Opcode.RESUME_VHCA, inbox).status == 0

    def close(self) -> None:
        del self.view
        self.memory.close()


__all__ = ["PAGE", "Cqe", "PairRig", "command", "small_adapter"]
