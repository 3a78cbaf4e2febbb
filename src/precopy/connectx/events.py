"""Completions and events: entries that the adapter writes into queues in guest memory."""

from precopy.connectx.slots import PAGE_ADDRESS, CqSlot, EqSlot, QpSlot, SlotFlags
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.contexts import CqState
from precopy.mlx5_abi.wqe import CqeOpcode, CqeSyndrome, EventType

_CQE = wqe.CQE_TAIL
_HEAD = bytes(wqe.CQE_TAIL_OFFSET)
_ERROR_HEAD = bytes(wqe.CQE_ERROR_TAIL_OFFSET)

#: ``cqc.status`` after an overrun.
_CQ_OVERRUN = 0x9
_SYNDROME_OVERRUN = 0x1


def queue_address(slot: QpSlot | CqSlot | EqSlot, offset: int) -> int:
    """Device address of byte ``offset`` of a queue, counted from its first page."""
    shift = 12 + slot.log_page_size
    page = offset >> shift
    if page >= min(slot.num_pages, slot.MAX_PAGES):
        raise IndexError("beyond the queue's memory")
    (address,) = PAGE_ADDRESS.unpack_from(slot.buf, slot.PAS + page * PAGE_ADDRESS.size)
    return int(address) + (offset & ((1 << shift) - 1))


def complete(
    vhca: Vhca,
    cqn: int,
    opcode: CqeOpcode,
    qpn: int,
    wqe_counter: int,
    *,
    wqe_opcode: int = 0,
    immediate: int = 0,
    byte_count: int = 0,
    syndrome: CqeSyndrome | None = None,
) -> None:
    """Write a CQE into CQ ``cqn``, and an event where the consumer has armed the CQ."""
    if not vhca.in_use("cq", cqn):
        return
    cq = CqSlot(vhca.table("cq").edit(cqn))
    log, producer = cq.log_cq_size, cq.producer_counter
    if cq.status == _CQ_OVERRUN:
        return
    try:
        consumer, _ = wqe.CQ_DBR.unpack(vhca.dma.read(cq.dbr_addr, wqe.CQ_DBR.size))
        if (producer - consumer) & 0xFFFFFF >= 1 << log and not cq.oi:
            cq.status = _CQ_OVERRUN
            _event_cq_error(vhca, cqn)
            return
        own = opcode << 4 | (producer >> log & 1)
        tail = wqe_opcode << 24 | qpn
        if syndrome is None:
            entry = _HEAD + _CQE.pack(immediate, byte_count, 0, tail, wqe_counter & 0xFFFF, 0, own)
        else:
            entry = _ERROR_HEAD + wqe.CQE_ERROR_TAIL.pack(
                0, syndrome, tail, wqe_counter & 0xFFFF, 0, own
            )
        at = cq.page_offset * 64 + (producer & ((1 << log) - 1)) * wqe.CQE_BYTES
        vhca.dma.write(queue_address(cq, at), entry)
    except (OSError, IndexError):
        # The queue's memory is gone: a real adapter's write is dropped by the IOMMU.
        cq.status = _CQ_OVERRUN
        return
    cq.producer_counter = (producer + 1) & 0xFFFFFF
    if cq.st == CqState.ARMED or (cq.st == CqState.SOLICITED_ARMED and syndrome is not None):
        _fire(vhca, cq, cqn)


def works(vhca: Vhca, cqn: int) -> bool:
    """Whether CQ ``cqn`` is there and has never been too full for a completion."""
    return vhca.in_use("cq", cqn) and CqSlot(vhca.table("cq").slot(cqn)).status != _CQ_OVERRUN


def arm(vhca: Vhca, cqn: int, word: int) -> None:
    """A CQ doorbell: tell of the next completion, or at once of those the consumer has not seen."""
    if not vhca.in_use("cq", cqn):
        return
    cq = CqSlot(vhca.table("cq").edit(cqn))
    solicited = bool(word & wqe.CQ_ARM_SOLICITED)
    cq.st = CqState.SOLICITED_ARMED if solicited else CqState.ARMED
    if cq.producer_counter != word & 0xFFFFFF and not solicited:
        _fire(vhca, cq, cqn)


def _fire(vhca: Vhca, cq: CqSlot, cqn: int) -> None:
    cq.st = CqState.FIRED
    data = bytearray(wqe.EQE_BYTES)
    data[wqe.EQE_COMP_CQN : wqe.EQE_COMP_CQN + 4] = cqn.to_bytes(4, "big")
    event(vhca, cq.c_eqn, EventType.COMP, data)


def _event_cq_error(vhca: Vhca, cqn: int) -> None:
    # Not to the EQ of the CQ's completions, which a driver reads as such, whatever the type.
    eqn = queue_for(vhca, EventType.CQ_ERROR)
    if eqn is None:
        return
    data = bytearray(wqe.EQE_BYTES)
    data[wqe.EQE_CQ_ERROR_CQN : wqe.EQE_CQ_ERROR_CQN + 4] = cqn.to_bytes(4, "big")
    data[wqe.EQE_CQ_ERROR_SYNDROME] = _SYNDROME_OVERRUN
    event(vhca, eqn, EventType.CQ_ERROR, data)


def queue_for(vhca: Vhca, kind: EventType) -> int | None:
    """The EQ that has asked for events of ``kind`` of the function itself, or None."""
    table = vhca.table("eq")
    for number in table.flagged_slots(EqSlot.flags.first, SlotFlags.IN_USE).tolist():
        if EqSlot(table.slot(number)).event_bitmask >> kind & 1:
            return int(number)
    return None


def notify(vhca: Vhca, kind: EventType, data: bytes) -> None:
    """An event of the function itself, with ``data`` from byte 32 of the EQE on."""
    with vhca.lock:
        eqn = queue_for(vhca, kind)
        if eqn is not None:
            entry = bytearray(wqe.EQE_BYTES)
            entry[wqe.EQE_DATA : wqe.EQE_DATA + len(data)] = data
            event(vhca, eqn, kind, entry)


def event(vhca: Vhca, eqn: int, kind: EventType, data: bytearray) -> None:
    """Write ``data`` (an EQE but for type and owner) into EQ ``eqn`` and raise its MSI-X vector."""
    if not vhca.in_use("eq", eqn):
        return
    eq = EqSlot(vhca.table("eq").edit(eqn))
    producer, log = eq.producer_counter, eq.log_eq_size
    data[wqe.EQE_TYPE] = kind
    data[wqe.EQE_OWNER] = producer >> log & 1
    at = eq.page_offset * 64 + (producer & ((1 << log) - 1)) * wqe.EQE_BYTES
    try:
        vhca.dma.write(queue_address(eq, at), data)
    except (OSError, IndexError):
        return
    eq.producer_counter = (producer + 1) & 0xFFFFFF
    vhca.interrupt(eq.intr)


def raise_all(vhca: Vhca) -> None:
    """Raise the vector of every EQ: what was told before a move may not have been heard."""
    table = vhca.table("eq")
    for number in table.flagged_slots(EqSlot.flags.first, SlotFlags.IN_USE):
        vhca.interrupt(EqSlot(table.slot(int(number))).intr)
