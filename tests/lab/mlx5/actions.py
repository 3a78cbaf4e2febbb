"""What a program inside can have done to the card from outside, by a mark of a certain number.

Things that a real card does by itself: writes in great number, errors of queues, events of them.
"""

import enum
from collections.abc import Callable

from precopy.connectx import events
from precopy.connectx.slots import FLAGS_BYTE, SlotFlags
from precopy.lab.card import Card
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.commands import Modify2QpIn, Opcode
from precopy.mlx5_abi.general_object import OBJECT_CHANGE, ObjectType
from precopy.mlx5_abi.wqe import EventType

#: Marks from here on are actions.
FIRST = 1 << 31

GIB = 1 << 30
#: What is written by :attr:`Action.WRITE_MUCH`: more pages than the receive entries have room for.
MUCH = 3 * GIB
#: What is written by :attr:`Action.WRITE_HERE_AND_THERE`: addresses and lengths.
PLACES = [(n * 5 * 4096 + n, 1 + n * 3 % 9000) for n in range(1000)]


class Action(enum.IntEnum):
    """All are done to VF 0, or to the objects of the PF's driver."""

    WRITE_MUCH = FIRST
    WRITE_HERE_AND_THERE = enum.auto()
    #: The QP that reports are sent from, and the one that they come to.
    BREAK_SENDER = enum.auto()
    BREAK_RECEIVER = enum.auto()
    CQ_ERROR = enum.auto()
    WQ_CATAS_ERROR = enum.auto()
    WQ_ACCESS_ERROR = enum.auto()
    WQ_INVAL_REQ_ERROR = enum.auto()
    #: Of a queue and of an object that are not the tracker's.
    OTHERS = enum.auto()


def _write(card: Card, address: int, length: int) -> None:
    card.adapter.vfs[0].vhca.dma.wrote(address, length)


def _here_and_there(card: Card) -> None:
    for address, length in PLACES:
        _write(card, address, length)


def _numbers(card: Card, table: str) -> list[int]:
    """The objects of the PF in a table, oldest first."""
    found = card.adapter.pf.vhca.table(table).flagged_slots(FLAGS_BYTE[table], SlotFlags.IN_USE)
    return [int(each) for each in found]


def _break(card: Card, index: int) -> None:
    qpn = _numbers(card, "qp")[index]
    card.adapter.pf.execute(bytes(Modify2QpIn(opcode=Opcode.MODIFY_2ERR_QP, qpn=qpn)))


def _tell(card: Card, kind: EventType, data: bytes) -> None:
    events.notify(card.adapter.pf.vhca, kind, data)


def _cq_error(card: Card) -> None:
    _tell(card, EventType.CQ_ERROR, _numbers(card, "cq")[0].to_bytes(4, "big"))


def _about_qp(qpn: int, kind: int = 0) -> bytes:
    """``mlx5_eqe_qp_srq``: the kind of queue at byte 20, its number at byte 24."""
    data = bytearray(wqe.EQE_BYTES - wqe.EQE_DATA - 4)
    data[20] = kind
    data[24:28] = qpn.to_bytes(4, "big")
    return bytes(data)


def _wq_error(kind: EventType) -> Callable[[Card], None]:
    return lambda card: _tell(card, kind, _about_qp(_numbers(card, "qp")[0]))


def _others(card: Card) -> None:
    _tell(card, EventType.WQ_ACCESS_ERROR, _about_qp(99999))
    _tell(card, EventType.WQ_ACCESS_ERROR, _about_qp(_numbers(card, "qp")[0], kind=1))
    _tell(card, EventType.OBJECT_CHANGE, OBJECT_CHANGE.pack(ObjectType.PAGE_TRACK, 99999))


ACTIONS: dict[int, Callable[[Card], None]] = {
    Action.WRITE_MUCH: lambda card: _write(card, 0, MUCH),
    Action.WRITE_HERE_AND_THERE: _here_and_there,
    Action.BREAK_SENDER: lambda card: _break(card, 1),
    Action.BREAK_RECEIVER: lambda card: _break(card, 0),
    Action.CQ_ERROR: _cq_error,
    Action.WQ_CATAS_ERROR: _wq_error(EventType.WQ_CATAS_ERROR),
    Action.WQ_ACCESS_ERROR: _wq_error(EventType.WQ_ACCESS_ERROR),
    Action.WQ_INVAL_REQ_ERROR: _wq_error(EventType.WQ_INVAL_REQ_ERROR),
    Action.OTHERS: _others,
}
