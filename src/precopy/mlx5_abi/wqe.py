"""What queues in memory hold: work queue entries, completions, events, doorbell records.

Sources: include/linux/mlx5/qp.h, device.h, cq.h and eq handling in mlx5_core (Linux 7.3). All are
big-endian. These structures are moved often, so they are ``struct.Struct`` and offsets, not layouts.
"""

import enum
import struct

# --- Send queue -------------------------------------------------------------------------------

#: A send queue is made of building blocks of 64 bytes; a WQE takes one or more.
WQEBB_BYTES = 64

#: Control segment: ``index << 8 | opcode``, ``qpn << 8 | ds`` (ds: 16-byte units), signature and
#: flags (see :class:`CtrlFlags`), immediate (as it goes on the wire).
CTRL_SEG = struct.Struct(">II3xBI")

#: Remote address segment: address, rkey.
RADDR_SEG = struct.Struct(">QI4x")

#: Data segment: byte count (0 means 2^31), lkey, address. Receive WQEs are made of these.
DATA_SEG = struct.Struct(">IIQ")

#: ``lkey`` of a data segment that ends a scatter list early (MLX5_INVALID_LKEY).
INVALID_LKEY = 0x100


class WqeOpcode(enum.IntEnum):
    """``MLX5_OPCODE_*`` that the software adapter carries out."""

    NOP = 0x00
    RDMA_WRITE = 0x08
    RDMA_WRITE_IMM = 0x09
    SEND = 0x0A
    SEND_IMM = 0x0B
    RDMA_READ = 0x10


class CtrlFlags(enum.IntFlag):
    """``fm_ce_se`` of a control segment."""

    SOLICITED = 0x02
    #: Completion always.
    CQ_UPDATE = 0x08


# --- Completion queue -------------------------------------------------------------------------

CQE_BYTES = 64


class CqeOpcode(enum.IntEnum):
    """High nibble of a CQE's last byte."""

    REQ = 0x0
    RESP_WR_IMM = 0x1
    RESP_SEND = 0x2
    RESP_SEND_IMM = 0x3
    REQ_ERR = 0xD
    RESP_ERR = 0xE
    INVALID = 0xF


#: A CQE from byte 36 on: immediate (``imm_inval_pkey``), 4 bytes unused, byte count, timestamp,
#: ``wqe opcode << 24 | qpn``, wqe_counter, signature, ``CQE opcode << 4 | format | owner``.
CQE_TAIL = struct.Struct(">I4xIQIHBB")
CQE_TAIL_OFFSET = 36

#: The same bytes of an error CQE from byte 54 on: vendor syndrome, syndrome, then as above.
CQE_ERROR_TAIL = struct.Struct(">BBIHBB")
CQE_ERROR_TAIL_OFFSET = 54

#: Where opcode and ownership bit are. Software owns an entry when the bit equals the parity of its
#: pass over the queue: 0 in the first, 1 in the second, ...; an entry never used reads INVALID.
CQE_OP_OWN = 63
CQE_INVALID_BYTE = CqeOpcode.INVALID << 4 | 1


class CqeSyndrome(enum.IntEnum):
    """``MLX5_CQE_SYNDROME_*`` of error CQEs."""

    LOCAL_LENGTH_ERR = 0x01
    LOCAL_QP_OP_ERR = 0x02
    LOCAL_PROT_ERR = 0x04
    WR_FLUSH_ERR = 0x05
    BAD_RESP_ERR = 0x10
    LOCAL_ACCESS_ERR = 0x11
    REMOTE_INVAL_REQ_ERR = 0x12
    REMOTE_ACCESS_ERR = 0x13
    REMOTE_OP_ERR = 0x14
    TRANSPORT_RETRY_EXC_ERR = 0x15
    RNR_RETRY_EXC_ERR = 0x16
    REMOTE_ABORTED_ERR = 0x22


# --- Event queue ------------------------------------------------------------------------------

EQE_BYTES = 64


class EventType(enum.IntEnum):
    """``MLX5_EVENT_TYPE_*``."""

    COMP = 0x00
    CQ_ERROR = 0x04
    WQ_CATAS_ERROR = 0x05
    PAGE_REQUEST = 0x0B
    CMD = 0x0A
    WQ_INVAL_REQ_ERROR = 0x10
    WQ_ACCESS_ERROR = 0x11
    OBJECT_CHANGE = 0x27


#: Type and subtype of an EQE are its bytes 1 and 3; its data starts at byte 32; owner is byte 63.
EQE_TYPE = 1
EQE_SUBTYPE = 3
EQE_DATA = 32
EQE_OWNER = 63

#: A completion event's data: be32 at byte 24 of the data, the CQ's number.
EQE_COMP_CQN = EQE_DATA + 24
#: A CQ error's data: be32 CQ number at 0, syndrome at byte 7.
EQE_CQ_ERROR_CQN = EQE_DATA
EQE_CQ_ERROR_SYNDROME = EQE_DATA + 7
#: A QP event's data: be32 at byte 24 of the data, ``type << 24 | qpn``.
EQE_QP_QPN = EQE_DATA + 24

# --- Doorbells --------------------------------------------------------------------------------

#: Doorbell record of a QP: receive counter (WQEs), send counter (WQEBBs); both mod 2^16.
QP_DBR = struct.Struct(">II")

#: Doorbell record of a CQ: consumer counter (mod 2^24), arm word.
CQ_DBR = struct.Struct(">II")

#: Where a send doorbell is written in a UAR page: the first 8 bytes of the control segment.
UAR_SEND_DOORBELL = 0x800
#: Where a CQ is armed: the arm word (``sn << 28 | solicited << 24 | consumer``), then the CQ number.
UAR_CQ_DOORBELL = 0x20
#: Where an EQ is armed (0x40) or its consumer counter is told without arming (0x48):
#: ``eqn << 24 | consumer``.
UAR_EQ_ARM = 0x40
UAR_EQ_UPDATE = 0x48

CQ_ARM_SOLICITED = 1 << 24
