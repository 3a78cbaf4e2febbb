"""Contexts of QPs, CQs, EQs and memory keys, as commands carry them.

Offsets and widths: include/linux/mlx5/mlx5_ifc.h (``qpc``, ``cqc``, ``eqc``, ``mkc``), Linux 7.3.
"""

import enum

from precopy.mlx5_abi.layout import Field, Layout, Nested


class QpState(enum.IntEnum):
    """``qpc.state``."""

    RST = 0x0
    INIT = 0x1
    RTR = 0x2
    RTS = 0x3
    SQER = 0x4
    SQD = 0x5
    ERR = 0x6


class ServiceType(enum.IntEnum):
    """``qpc.st``; the software adapter moves data on RC."""

    RC = 0x0
    UC = 0x1
    UD = 0x2


class AddressPath(Layout):
    """``ads``: where the remote end is. In loopback only ``fl`` and the port matter."""

    SIZE = 44
    fl = Field(0x00, 1)
    pkey_index = Field(0x10, 0x10)
    grh = Field(0x28, 1)
    mlid = Field(0x29, 7)
    rlid = Field(0x30, 0x10)
    vhca_port_num = Field(0x128, 8)


class Qpc(Layout):
    """``qpc``: the context of a queue pair."""

    SIZE = 232
    state = Field(0x00, 4)
    st = Field(0x08, 8)
    pm_state = Field(0x13, 2)
    pd = Field(0x28, 0x18)
    mtu = Field(0x40, 3)
    log_msg_max = Field(0x43, 5)
    #: Entries of the receive queue, as a power of two.
    log_rq_size = Field(0x49, 4)
    #: Bytes of a receive entry: 16 << log_rq_stride.
    log_rq_stride = Field(0x4D, 3)
    no_sq = Field(0x50, 1)
    #: Entries (of 64 bytes) of the send queue, as a power of two.
    log_sq_size = Field(0x51, 4)
    rlky = Field(0x5B, 1)
    counter_set_id = Field(0x60, 8)
    uar_page = Field(0x68, 0x18)
    user_index = Field(0x88, 0x18)
    #: Page size of the queue's memory: 4096 << log_page_size.
    log_page_size = Field(0xA3, 5)
    remote_qpn = Field(0xA8, 0x18)
    primary_address_path = Nested(0xC0, AddressPath)
    secondary_address_path = Nested(0x220, AddressPath)
    log_ack_req_freq = Field(0x380, 4)
    log_sra_max = Field(0x388, 3)
    retry_count = Field(0x38D, 3)
    rnr_retry = Field(0x390, 3)
    next_send_psn = Field(0x3C8, 0x18)
    cqn_snd = Field(0x3E8, 0x18)
    last_acked_psn = Field(0x448, 0x18)
    ssn = Field(0x468, 0x18)
    log_rra_max = Field(0x488, 3)
    #: Whether the remote end may read (rre), write (rwe) or do atomics (rae) by RDMA.
    rre = Field(0x490, 1)
    rwe = Field(0x491, 1)
    rae = Field(0x492, 1)
    #: Where the queue starts in its first page, in units of 64 bytes.
    page_offset = Field(0x494, 6)
    min_rnr_nak = Field(0x4A3, 5)
    next_rcv_psn = Field(0x4A8, 0x18)
    xrcd = Field(0x4C8, 0x18)
    cqn_rcv = Field(0x4E8, 0x18)
    #: Doorbell record: be32 receive counter, be32 send counter.
    dbr_addr = Field(0x500, 0x40)
    q_key = Field(0x540, 0x20)
    rq_type = Field(0x565, 3)
    srqn_rmpn_xrqn = Field(0x568, 0x18)
    rmsn = Field(0x588, 0x18)
    hw_sq_wqebb_counter = Field(0x5A0, 0x10)
    sw_sq_wqebb_counter = Field(0x5B0, 0x10)
    hw_rq_counter = Field(0x5C0, 0x20)
    sw_rq_counter = Field(0x5E0, 0x20)


class CqState(enum.IntEnum):
    """``cqc.st``: what the consumer has asked to be told of."""

    SOLICITED_ARMED = 0x6
    ARMED = 0x9
    FIRED = 0xA


class Cqc(Layout):
    """``cqc``: the context of a completion queue."""

    SIZE = 64
    status = Field(0x00, 4)
    #: 0: entries of 64 bytes, 1: of 128.
    cqe_sz = Field(0x08, 3)
    cc = Field(0x0B, 1)
    #: Ignore overrun.
    oi = Field(0x0E, 1)
    st = Field(0x14, 4)
    page_offset = Field(0x54, 6)
    log_cq_size = Field(0x63, 5)
    uar_page = Field(0x68, 0x18)
    cq_period = Field(0x84, 0xC)
    cq_max_count = Field(0x90, 0x10)
    c_eqn = Field(0xA0, 0x20)
    log_page_size = Field(0xC3, 5)
    last_notified_index = Field(0x108, 0x18)
    last_solicit_index = Field(0x128, 0x18)
    consumer_counter = Field(0x148, 0x18)
    producer_counter = Field(0x168, 0x18)
    #: Doorbell record: be32 consumer counter, be32 arm word.
    dbr_addr = Field(0x1C0, 0x40)


class Eqc(Layout):
    """``eqc``: the context of an event queue."""

    SIZE = 64
    status = Field(0x00, 4)
    ec = Field(0x0D, 1)
    oi = Field(0x0E, 1)
    st = Field(0x14, 4)
    page_offset = Field(0x54, 6)
    log_eq_size = Field(0x63, 5)
    uar_page = Field(0x68, 0x18)
    intr = Field(0xB4, 0xC)
    log_page_size = Field(0xC3, 5)
    consumer_counter = Field(0x148, 0x18)
    producer_counter = Field(0x168, 0x18)


class AccessMode(enum.IntEnum):
    """``mkc.access_mode_1_0``."""

    #: Addresses are device addresses, untranslated.
    PA = 0x0
    #: Addresses go through the translation entries of the key.
    MTT = 0x1
    KLMS = 0x2
    KSM = 0x3


class Mkc(Layout):
    """``mkc``: the context of a memory key."""

    SIZE = 64
    free = Field(0x01, 1)
    umr_en = Field(0x10, 1)
    #: What work requests may do with it: remote write and read, local write and read.
    rw = Field(0x12, 1)
    rr = Field(0x13, 1)
    lw = Field(0x14, 1)
    lr = Field(0x15, 1)
    access_mode_1_0 = Field(0x16, 2)
    #: A QP that alone may use it; 0xffffff: any.
    qpn = Field(0x20, 0x18)
    mkey_7_0 = Field(0x38, 8)
    #: All of memory, whatever ``len`` says.
    length64 = Field(0x60, 1)
    pd = Field(0x68, 0x18)
    start_addr = Field(0x80, 0x40)
    len = Field(0xC0, 0x40)
    bsf_octword_size = Field(0x100, 0x20)
    #: Translation entries, in units of 16 bytes (two entries).
    translations_octword_size = Field(0x1A0, 0x20)
    #: Bytes of a page of the translation, as a power of two.
    log_page_size = Field(0x1DA, 6)
