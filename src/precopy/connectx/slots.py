"""What a slot of context memory holds, table by table.

The first bytes of a QP, CQ, EQ or MKEY slot are the context as commands carry it (``contexts`` in
mlx5_abi), kept up to date as the queue works; behind it stands what only the adapter knows. Numbers
there are big-endian too. All that a function must remember is here: an image is made of these slots.
"""

import enum
import struct

from precopy.connectx.context_memory import TableSpec
from precopy.mlx5_abi.contexts import Cqc, Eqc, Mkc, Qpc
from precopy.mlx5_abi.layout import Field, Layout


class SlotFlags(enum.IntFlag):
    """The flags byte of a slot."""

    #: The slot belongs to an object.
    IN_USE = 1
    #: A doorbell came while the queue could not work (suspended, or no receive WQE): look again.
    PENDING = 2


class QpSlot(Qpc):
    """2048 bytes: the context, the adapter's own, and at ``PAS`` up to 128 page addresses (be64)."""

    SIZE = 2048
    PAS = 1024
    MAX_PAGES = 128
    flags = Field(0x740, 8)
    num_pages = Field(0x750, 0x10)
    #: Attempts made for the WQE at the head that found no receive WQE at the other end.
    rnr_attempts = Field(0x760, 8)


#: ``rq_type`` of a QP that receives nothing.
ZERO_LENGTH_RQ = 3


def receive_queue_bytes(qpc: Qpc) -> int:
    """Bytes of a QP's receive queue, which stands before its send queue."""
    if qpc.rq_type == ZERO_LENGTH_RQ:
        return 0
    return 16 << qpc.log_rq_stride << qpc.log_rq_size


class CqSlot(Cqc):
    """256 bytes: the context, the adapter's own, and at ``PAS`` up to 16 page addresses (be64)."""

    SIZE = 256
    PAS = 128
    MAX_PAGES = 16
    flags = Field(0x200, 8)
    num_pages = Field(0x210, 0x10)


class EqSlot(Eqc):
    """2048 bytes: the context, the adapter's own, and at ``PAS`` up to 128 page addresses (be64)."""

    SIZE = 2048
    PAS = 1024
    MAX_PAGES = 128
    flags = Field(0x200, 8)
    num_pages = Field(0x210, 0x10)
    event_bitmask = Field(0x240, 0x40)


class MkeySlot(Mkc):
    """128 bytes: the context, and where its translation entries stand in the ``mtt`` table."""

    SIZE = 128
    flags = Field(0x200, 8)
    first_mtt = Field(0x220, 0x20)
    num_mtts = Field(0x240, 0x20)


class HcaSlot(Layout):
    """64 bytes: the function itself, as its driver set it up. One a function."""

    SIZE = 64
    #: Where the command queue is, and which of its entries wait for the function to work again.
    cmdq_addr = Field(0x00, 0x40)
    cmdq_pending = Field(0x40, 0x20)
    enabled = Field(0x60, 1)
    initialized = Field(0x61, 1)
    issi = Field(0x70, 0x10)


#: PD and UAR slots are their flags byte (the first) and nothing else.
SMALL_SLOT = 64
SMALL_FLAGS_BYTE = 0

#: Byte of the flags in each table's slots.
FLAGS_BYTE: dict[str, int] = {
    "pd": SMALL_FLAGS_BYTE,
    "uar": SMALL_FLAGS_BYTE,
    "mkey": MkeySlot.flags.first,
    "eq": EqSlot.flags.first,
    "cq": CqSlot.flags.first,
    "qp": QpSlot.flags.first,
}

#: The number that the first object of a table gets (QPs 0 and 1 are special ones; key 0x100, which
#: is memory key 1, ends a scatter list; a UAR is a page of BAR 0, of which the first sixteen are for
#: other things).
FIRST_NUMBER: dict[str, int] = {"pd": 1, "uar": 16, "mkey": 2, "eq": 1, "cq": 1, "qp": 2}

PAGE_ADDRESS = struct.Struct(">Q")

MTT_BYTES = 8

PD_SLOTS = 1 << 12
UAR_SLOTS = 1 << 8
MKEY_SLOTS = 1 << 12
MTT_SLOTS = 1 << 22
EQ_SLOTS = 1 << 6


def tables(log_max_qp: int, log_max_cq: int, steering_bytes: int) -> dict[str, TableSpec]:
    """The tables of a function; ``steering_bytes`` (whole pages) is bulk state such as flow tables."""
    return {
        "pd": TableSpec(SMALL_SLOT, PD_SLOTS),
        "uar": TableSpec(SMALL_SLOT, UAR_SLOTS),
        "mkey": TableSpec(MkeySlot.SIZE, MKEY_SLOTS),
        "mtt": TableSpec(MTT_BYTES, MTT_SLOTS),
        "eq": TableSpec(EqSlot.SIZE, EQ_SLOTS),
        "cq": TableSpec(CqSlot.SIZE, 1 << log_max_cq),
        "qp": TableSpec(QpSlot.SIZE, 1 << log_max_qp),
        "steering": TableSpec(4096, steering_bytes // 4096),
        "hca": TableSpec(HcaSlot.SIZE, 1),
    }
