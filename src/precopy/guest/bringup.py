"""The commands by which a driver in a guest gets its objects."""

from precopy.guest import layout
from precopy.guest.layout import BASE, BIG_PAGE_SHIFT, NAMES, PAGE, WorkloadConfig
from precopy.mlx5_abi.commands import (
    COMMANDS,
    AllocPdOut,
    AllocUarOut,
    CreateCqIn,
    CreateCqOut,
    CreateEqIn,
    CreateEqOut,
    CreateMkeyIn,
    CreateMkeyOut,
    CreateQpIn,
    CreateQpOut,
    Inbox,
    ModifyQpIn,
    Opcode,
    Outbox,
)
from precopy.mlx5_abi.contexts import AccessMode
from precopy.mlx5_abi.port import FunctionPort
from precopy.mlx5_abi.status import Status, name_of
from precopy.mlx5_abi.wqe import EventType

#: A receiver that is not ready is waited for, for ever.
_RNR_FOREVER = 7
_MTU_4096 = 5
_ANY_QP = 0xFFFFFF


class BringUpError(RuntimeError):
    """The function refused what a driver needs."""


def run(port: FunctionPort, opcode: Opcode, inbox: Inbox) -> Outbox:
    """One command. BringUpError for a status other than OK."""
    inbox.opcode = opcode
    out = COMMANDS[opcode].outbox(port.execute(bytes(inbox.buf)))
    if out.status != Status.OK:
        raise BringUpError(
            f"{opcode.name} failed: {name_of(out.status)}, syndrome {out.syndrome:#x}"
        )
    return out


def _with_pages(kind: type[Inbox], pages: list[int]) -> Inbox:
    inbox = kind(bytearray(kind.SIZE + 8 * len(pages)))
    inbox.buf[kind.SIZE :] = b"".join(page.to_bytes(8, "big") for page in pages)
    return inbox


def _set_page(inbox: Inbox, address: int) -> None:
    inbox.buf[inbox.SIZE : inbox.SIZE + 8] = address.to_bytes(8, "big")


class Driver:
    """Brings up a function for ``config``, writing what it gets into ``memory`` (the region)."""

    def __init__(self, port: FunctionPort, config: WorkloadConfig, memory: memoryview) -> None:
        self._port, self._config, self._memory = port, config, memory

    def bring_up(self) -> None:
        """All commands, then the control page. BringUpError as :func:`run`."""
        port, config = self._port, self._config
        uar_out = run(port, Opcode.ALLOC_UAR, Inbox())
        pd_out = run(port, Opcode.ALLOC_PD, Inbox())
        assert isinstance(uar_out, AllocUarOut)
        assert isinstance(pd_out, AllocPdOut)
        uar, pd = uar_out.uar, pd_out.pd
        mkey = self._mkey(pd)
        eqn = self._eq(uar)
        self._pairs(uar, pd, eqn)
        layout.CONTROL.pack_into(
            self._memory,
            0,
            layout.MAGIC,
            config.pairs,
            config.active,
            config.size,
            config.rate,
            config.seed,
            config.mix_code(),
            uar,
            mkey,
            eqn,
            0,
            0,
            0,
            config.memory,
            config.writes,
            config.working,
            config.fill,
            config.zeros,
        )

    def _mkey(self, pd: int) -> int:
        length = self._config.region.length
        pages = length >> BIG_PAGE_SHIFT
        octwords = -(-pages // 2)
        inbox = CreateMkeyIn(bytearray(CreateMkeyIn.SIZE + 16 * octwords))
        inbox.translations_octword_actual_size = octwords
        mkc = inbox.mkc
        mkc.access_mode_1_0 = AccessMode.MTT
        mkc.lr = mkc.lw = mkc.rr = mkc.rw = 1
        mkc.qpn = _ANY_QP
        mkc.pd, mkc.mkey_7_0, mkc.start_addr, mkc.len = pd, 0x42, BASE, length
        mkc.log_page_size, mkc.translations_octword_size = BIG_PAGE_SHIFT, octwords
        for page in range(pages):
            at = CreateMkeyIn.SIZE + 8 * page
            inbox.buf[at : at + 8] = (BASE + (page << BIG_PAGE_SHIFT)).to_bytes(8, "big")
        out = run(self._port, Opcode.CREATE_MKEY, inbox)
        assert isinstance(out, CreateMkeyOut)
        return out.mkey_index << 8 | 0x42

    def _eq(self, uar: int) -> int:
        pages = [BASE + PAGE + at for at in range(0, layout.EQ_BYTES, PAGE)]
        inbox = _with_pages(CreateEqIn, pages)
        assert isinstance(inbox, CreateEqIn)
        eqc = inbox.eqc
        eqc.log_eq_size, eqc.uar_page, eqc.intr = layout.LOG_EQ, uar, 0
        inbox.event_bitmask = 1 << EventType.CQ_ERROR
        # Entries never written belong to the adapter: their owner bit reads 1 in the first pass.
        for at in range(PAGE, PAGE + layout.EQ_BYTES, 64):
            self._memory[at + 63] = 1
        out = run(self._port, Opcode.CREATE_EQ, inbox)
        assert isinstance(out, CreateEqOut)
        return out.eq_number

    def _pairs(self, uar: int, pd: int, eqn: int) -> None:
        port, config = self._port, self._config
        cq = _with_pages(CreateCqIn, [0])
        send = _with_pages(CreateQpIn, [0])
        receive = _with_pages(CreateQpIn, [0])
        assert isinstance(cq, CreateCqIn)
        assert isinstance(send, CreateQpIn)
        assert isinstance(receive, CreateQpIn)
        cqc, sender, receiver = cq.cqc, send.qpc, receive.qpc
        cqc.log_cq_size, cqc.uar_page, cqc.c_eqn = layout.LOG_CQ, uar, eqn
        cqc.page_offset = layout.CQ_QUEUE // 64
        for qpc in (sender, receiver):
            qpc.pd, qpc.uar_page, qpc.log_rq_size = pd, uar, layout.LOG_RQ
        sender.log_sq_size, sender.page_offset = layout.LOG_SQ, layout.SEND_QUEUE // 64
        receiver.no_sq, receiver.page_offset = 1, layout.RECEIVE_QUEUE // 64
        modify = ModifyQpIn()
        given = modify.qpc
        given.rre = given.rwe = 1
        given.mtu, given.log_msg_max, given.rnr_retry, given.retry_count = (
            _MTU_4096,
            30,
            _RNR_FOREVER,
            7,
        )
        given.primary_address_path.fl = given.primary_address_path.vhca_port_num = 1
        for index in range(config.pairs):
            page = BASE + config.pair_at(index)
            _set_page(cq, page)
            cqc.dbr_addr = page + layout.CQ_DBR
            cq_out = run(port, Opcode.CREATE_CQ, cq)
            assert isinstance(cq_out, CreateCqOut)
            cqn = cq_out.cqn
            numbers = []
            for inbox, qpc, record in (
                (send, sender, layout.SEND_DBR),
                (receive, receiver, layout.RECEIVE_DBR),
            ):
                _set_page(inbox, page)
                qpc.dbr_addr = page + record
                qpc.cqn_snd = qpc.cqn_rcv = cqn
                qp_out = run(port, Opcode.CREATE_QP, inbox)
                assert isinstance(qp_out, CreateQpOut)
                numbers.append(qp_out.qpn)
            for qpn, remote in (numbers, reversed(numbers)):
                modify.qpn, given.remote_qpn = qpn, remote
                for opcode in (Opcode.RST2INIT_QP, Opcode.INIT2RTR_QP, Opcode.RTR2RTS_QP):
                    run(port, opcode, modify)
            NAMES.pack_into(self._memory, layout.NAMES_AT + index * NAMES.size, *numbers, cqn)
