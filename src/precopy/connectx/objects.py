"""Commands that make, change, show and destroy objects: PD, UAR, MKEY, EQ, CQ, QP.

Each works on slots alone: an object is its slot. A refused command has changed nothing.
"""

from collections.abc import Callable
from typing import TypeVar

from precopy.connectx.memory_keys import write_entries
from precopy.connectx.migration import Refused
from precopy.connectx.slots import (
    FLAGS_BYTE,
    CqSlot,
    EqSlot,
    MkeySlot,
    QpSlot,
    SlotFlags,
    receive_queue_bytes,
)
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.commands import (
    CreateCqIn,
    CreateEqIn,
    CreateMkeyIn,
    CreateQpIn,
    DeallocPdIn,
    DeallocUarIn,
    DestroyCqIn,
    DestroyEqIn,
    DestroyMkeyIn,
    DestroyQpIn,
    Modify2QpIn,
    ModifyQpIn,
    Opcode,
    Outbox,
    QueryQpOut,
)
from precopy.mlx5_abi.contexts import AccessMode, Cqc, Eqc, Mkc, Qpc, QpState, ServiceType
from precopy.mlx5_abi.layout import Layout
from precopy.mlx5_abi.status import Status

_ENTRY = 8


def _number(vhca: Vhca, table: str) -> int:
    number = vhca.numbers(table).get()
    if number is None:
        raise Refused(Status.LIM, 0x5C01, f"no {table} is left")
    return number


def _require(vhca: Vhca, table: str, number: int) -> None:
    if not vhca.in_use(table, number):
        raise Refused(Status.BAD_RES, 0x5C02, f"no {table} {number}")


def _free(vhca: Vhca, table: str, number: int) -> None:
    slot = vhca.table(table).edit(number)
    slot[:] = bytes(len(slot))
    vhca.numbers(table).put(number)


def _pages(inbox: bytes, at: int, needed: int, most: int, log_page_size: int) -> memoryview:
    """The page addresses behind a create command's inbox, for ``needed`` bytes of queue."""
    count = -(-needed // (4096 << log_page_size))
    if count > most:
        raise Refused(Status.BAD_PARAM, 0x5C03, f"{count} pages are more than a queue can have")
    entries = memoryview(inbox)[at : at + count * _ENTRY]
    if len(entries) != count * _ENTRY:
        raise Refused(Status.BAD_INP_LEN, 0x5C04, "page addresses are missing")
    return entries


# --- PD and UAR -------------------------------------------------------------------------------


def _alloc(table: str) -> Callable[[Vhca, bytes, Outbox], None]:
    def alloc(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
        number = _number(vhca, table)
        vhca.table(table).edit(number)[FLAGS_BYTE[table]] = SlotFlags.IN_USE
        setattr(out, table, number)

    return alloc


def _dealloc_pd(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    number = DeallocPdIn(inbox).pd
    _require(vhca, "pd", number)
    _free(vhca, "pd", number)


def _dealloc_uar(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    number = DeallocUarIn(inbox).uar
    _require(vhca, "uar", number)
    _free(vhca, "uar", number)


# --- Memory keys ------------------------------------------------------------------------------


def _create_mkey(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    asked = CreateMkeyIn(inbox)
    mkc = asked.mkc
    mode, count = mkc.access_mode_1_0, asked.translations_octword_actual_size * 2
    _require(vhca, "pd", mkc.pd)
    if mode not in (AccessMode.PA, AccessMode.MTT):
        raise Refused(Status.BAD_PARAM, 0x5C10, f"access mode {mode} is not supported")
    entries = memoryview(inbox)[CreateMkeyIn.SIZE : CreateMkeyIn.SIZE + count * _ENTRY]
    if mode == AccessMode.MTT:
        page = 1 << mkc.log_page_size
        if len(entries) != count * _ENTRY:
            raise Refused(Status.BAD_INP_LEN, 0x5C11, "translation entries are missing")
        if mkc.length64 or mkc.log_page_size < 12 or mkc.len > count * page:
            raise Refused(Status.BAD_PARAM, 0x5C12, "length and translation do not agree")
    else:
        count = 0
    number = _number(vhca, "mkey")
    first = vhca.mtt_runs().get(count) if count else 0
    if first is None:
        vhca.numbers("mkey").put(number)
        raise Refused(Status.LIM, 0x5C13, "no room for the translation entries")
    if count:
        write_entries(vhca, first, entries)
    slot = vhca.table("mkey").edit(number)
    slot[: Mkc.SIZE] = mkc.buf
    key = MkeySlot(slot)
    key.first_mtt, key.num_mtts, key.flags = first, count, SlotFlags.IN_USE
    out.mkey_index = number  # type: ignore[attr-defined]


def _destroy_mkey(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    number = DestroyMkeyIn(inbox).mkey_index
    _require(vhca, "mkey", number)
    key = MkeySlot(vhca.table("mkey").slot(number))
    vhca.mtt_runs().put(key.first_mtt, key.num_mtts)
    _free(vhca, "mkey", number)


# --- Queues -----------------------------------------------------------------------------------

Q = TypeVar("Q", EqSlot, CqSlot, QpSlot)


def _new_queue(
    vhca: Vhca, table: str, kind: type[Q], context: Layout, entries: memoryview
) -> tuple[int, Q]:
    """A slot that holds ``context`` and the page addresses; its number, and the slot."""
    number = _number(vhca, table)
    slot = vhca.table(table).edit(number)
    slot[: context.SIZE] = context.buf
    slot[kind.PAS : kind.PAS + len(entries)] = entries
    queue = kind(slot)
    queue.num_pages, queue.flags = len(entries) // _ENTRY, SlotFlags.IN_USE
    return number, queue


def _create_eq(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    asked = CreateEqIn(inbox)
    eqc = asked.eqc
    size = 64 << eqc.log_eq_size
    entries = _pages(inbox, CreateEqIn.SIZE, size, EqSlot.MAX_PAGES, eqc.log_page_size)
    number, eq = _new_queue(vhca, "eq", EqSlot, eqc, entries)
    eq.consumer_counter = eq.producer_counter = 0
    eq.event_bitmask = asked.event_bitmask
    out.eq_number = number  # type: ignore[attr-defined]


def _create_cq(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    cqc = CreateCqIn(inbox).cqc
    if cqc.cqe_sz:
        raise Refused(Status.BAD_PARAM, 0x5C20, "completions have 64 bytes here")
    if cqc.c_eqn and not vhca.in_use("eq", cqc.c_eqn):
        raise Refused(Status.BAD_RES, 0x5C21, f"no EQ {cqc.c_eqn}")
    size = 64 << cqc.log_cq_size
    entries = _pages(inbox, CreateCqIn.SIZE, size, CqSlot.MAX_PAGES, cqc.log_page_size)
    number, cq = _new_queue(vhca, "cq", CqSlot, cqc, entries)
    cq.consumer_counter = cq.producer_counter = 0
    out.cqn = number  # type: ignore[attr-defined]


def _create_qp(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    qpc = CreateQpIn(inbox).qpc
    if qpc.st != ServiceType.RC:
        raise Refused(Status.BAD_PARAM, 0x5C30, "only RC queue pairs are carried out here")
    _require(vhca, "pd", qpc.pd)
    size = receive_queue_bytes(qpc)
    if size:
        _require(vhca, "cq", qpc.cqn_rcv)
    if not qpc.no_sq:
        _require(vhca, "cq", qpc.cqn_snd)
        size += 64 << qpc.log_sq_size
    size += qpc.page_offset * 64 if size else 0
    entries = _pages(inbox, CreateQpIn.SIZE, size, QpSlot.MAX_PAGES, qpc.log_page_size)
    number, qp = _new_queue(vhca, "qp", QpSlot, qpc, entries)
    qp.state = QpState.RST
    out.qpn = number  # type: ignore[attr-defined]


def _destroy(
    table: str, number_of: Callable[[bytes], int]
) -> Callable[[Vhca, bytes, Outbox], None]:
    def destroy(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
        number = number_of(inbox)
        _require(vhca, table, number)
        _free(vhca, table, number)

    return destroy


def _show(table: str, offset: int, size: int) -> Callable[[Vhca, bytes, Outbox], None]:
    """QUERY_*: the context as it stands. All of them carry the number in bits 0x48 to 0x5f."""

    def show(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
        number = int.from_bytes(inbox[9:12], "big")
        _require(vhca, table, number)
        out.buf[offset : offset + size] = vhca.table(table).slot(number)[:size]

    return show


#: What each transition takes from its inbox; the state before it and after it.
_TRANSITIONS: dict[Opcode, tuple[QpState, QpState, tuple[str, ...]]] = {
    Opcode.RST2INIT_QP: (QpState.RST, QpState.INIT, ("rre", "rwe", "pm_state")),
    Opcode.INIT2RTR_QP: (
        QpState.INIT,
        QpState.RTR,
        (
            "remote_qpn",
            "next_rcv_psn",
            "mtu",
            "log_msg_max",
            "min_rnr_nak",
            "rre",
            "rwe",
            "log_rra_max",
        ),
    ),
    Opcode.RTR2RTS_QP: (
        QpState.RTR,
        QpState.RTS,
        ("next_send_psn", "retry_count", "rnr_retry", "log_ack_req_freq", "log_sra_max"),
    ),
}


def _modify(opcode: Opcode) -> Callable[[Vhca, bytes, Outbox], None]:
    before, after, fields = _TRANSITIONS[opcode]

    def modify(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
        asked = ModifyQpIn(inbox)
        number = asked.qpn
        _require(vhca, "qp", number)
        qp = QpSlot(vhca.table("qp").slot(number))
        if qp.state != before:
            raise Refused(Status.BAD_QP_STATE, 0x5C31, f"QP {number} is not in {before.name}")
        qp = QpSlot(vhca.table("qp").edit(number))
        given = asked.qpc
        for name in fields:
            setattr(qp, name, getattr(given, name))
        path = Qpc.primary_address_path
        if after is not QpState.RTS:
            end = path.start + path.kind.SIZE
            qp.buf[path.start : end] = given.buf[path.start : end]
        qp.state = after

    return modify


def _to_error(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    number = Modify2QpIn(inbox).qpn
    _require(vhca, "qp", number)
    QpSlot(vhca.table("qp").edit(number)).state = QpState.ERR


def _to_reset(vhca: Vhca, inbox: bytes, out: Outbox) -> None:
    number = Modify2QpIn(inbox).qpn
    _require(vhca, "qp", number)
    qp = QpSlot(vhca.table("qp").edit(number))
    qp.state = QpState.RST
    qp.hw_sq_wqebb_counter = qp.hw_rq_counter = qp.sw_sq_wqebb_counter = qp.sw_rq_counter = 0
    qp.rnr_attempts, qp.flags = 0, SlotFlags.IN_USE


#: Every command on objects, by opcode.
COMMANDS: dict[int, Callable[[Vhca, bytes, Outbox], None]] = {
    Opcode.ALLOC_PD: _alloc("pd"),
    Opcode.DEALLOC_PD: _dealloc_pd,
    Opcode.ALLOC_UAR: _alloc("uar"),
    Opcode.DEALLOC_UAR: _dealloc_uar,
    Opcode.CREATE_MKEY: _create_mkey,
    Opcode.QUERY_MKEY: _show("mkey", 16, Mkc.SIZE),
    Opcode.DESTROY_MKEY: _destroy_mkey,
    Opcode.CREATE_EQ: _create_eq,
    Opcode.QUERY_EQ: _show("eq", 16, Eqc.SIZE),
    Opcode.DESTROY_EQ: _destroy("eq", lambda inbox: DestroyEqIn(inbox).eq_number),
    Opcode.CREATE_CQ: _create_cq,
    Opcode.QUERY_CQ: _show("cq", 16, Cqc.SIZE),
    Opcode.DESTROY_CQ: _destroy("cq", lambda inbox: DestroyCqIn(inbox).cqn),
    Opcode.CREATE_QP: _create_qp,
    Opcode.QUERY_QP: _show("qp", QueryQpOut.qpc.start, Qpc.SIZE),
    Opcode.DESTROY_QP: _destroy("qp", lambda inbox: DestroyQpIn(inbox).qpn),
    Opcode.RST2INIT_QP: _modify(Opcode.RST2INIT_QP),
    Opcode.INIT2RTR_QP: _modify(Opcode.INIT2RTR_QP),
    Opcode.RTR2RTS_QP: _modify(Opcode.RTR2RTS_QP),
    Opcode.MODIFY_2ERR_QP: _to_error,
    Opcode.MODIFY_2RST_QP: _to_reset,
}
