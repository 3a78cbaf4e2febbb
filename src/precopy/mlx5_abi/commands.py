"""Commands of the firmware: opcodes, and the layout of each inbox and outbox.

Source: include/linux/mlx5/mlx5_ifc.h (Linux 7.3). Where a command carries a list (translation
entries, page addresses), the list follows the layout's ``SIZE`` bytes.
"""

import enum
from dataclasses import dataclass

from precopy.mlx5_abi.contexts import Cqc, Eqc, Mkc, Qpc
from precopy.mlx5_abi.general_object import PageTrack
from precopy.mlx5_abi.layout import Field, Layout, Nested


class Opcode(enum.IntEnum):
    """``MLX5_CMD_OP_*``."""

    QUERY_HCA_CAP = 0x100
    QUERY_ADAPTER = 0x101
    INIT_HCA = 0x102
    TEARDOWN_HCA = 0x103
    ENABLE_HCA = 0x104
    DISABLE_HCA = 0x105
    QUERY_PAGES = 0x107
    MANAGE_PAGES = 0x108
    SET_HCA_CAP = 0x109
    QUERY_ISSI = 0x10A
    SET_ISSI = 0x10B
    SUSPEND_VHCA = 0x115
    RESUME_VHCA = 0x116
    QUERY_VHCA_MIGRATION_STATE = 0x117
    SAVE_VHCA_STATE = 0x118
    LOAD_VHCA_STATE = 0x119
    CREATE_MKEY = 0x200
    QUERY_MKEY = 0x201
    DESTROY_MKEY = 0x202
    CREATE_EQ = 0x301
    DESTROY_EQ = 0x302
    QUERY_EQ = 0x303
    CREATE_CQ = 0x400
    DESTROY_CQ = 0x401
    QUERY_CQ = 0x402
    CREATE_QP = 0x500
    DESTROY_QP = 0x501
    RST2INIT_QP = 0x502
    INIT2RTR_QP = 0x503
    RTR2RTS_QP = 0x504
    MODIFY_2ERR_QP = 0x507
    MODIFY_2RST_QP = 0x50A
    QUERY_QP = 0x50B
    ALLOC_PD = 0x800
    DEALLOC_PD = 0x801
    ALLOC_UAR = 0x802
    DEALLOC_UAR = 0x803
    ACCESS_REG = 0x805
    CREATE_GENERAL_OBJECT = 0xA00
    MODIFY_GENERAL_OBJECT = 0xA01
    QUERY_GENERAL_OBJECT = 0xA02
    DESTROY_GENERAL_OBJECT = 0xA03


class Inbox(Layout):
    """What every inbox begins with."""

    SIZE = 16
    opcode = Field(0x00, 0x10)
    uid = Field(0x10, 0x10)
    op_mod = Field(0x30, 0x10)


class Outbox(Layout):
    """What every outbox begins with."""

    SIZE = 16
    status = Field(0x00, 8)
    syndrome = Field(0x20, 0x20)


class CapType(enum.IntEnum):
    """The capability pages of QUERY_HCA_CAP; op_mod is ``type << 1 | current``."""

    GENERAL = 0x0
    GENERAL_2 = 0x20
    ADV_VIRTUALIZATION = 0x26


class QueryHcaCapIn(Inbox):
    other_function = Field(0x40, 1)
    ec_vf_function = Field(0x41, 1)
    function_id_type = Field(0x43, 1)
    function_id = Field(0x50, 0x10)


class QueryHcaCapOut(Outbox):
    """``capability`` is 4096 bytes from byte 16 on (see ``capabilities``)."""

    SIZE = 4112


# --- The function itself ----------------------------------------------------------------------


class EnableHcaIn(Inbox):
    """ENABLE_HCA, DISABLE_HCA. ``function_id`` 0: the function itself; n + 1: VF n, by the PF."""

    function_id = Field(0x50, 0x10)


class TeardownHcaOut(Outbox):
    """``state``: 1 where a forced teardown is not complete."""

    state = Field(0x7F, 1)


class QueryAdapterOut(Outbox):
    SIZE = 272
    ieee_vendor_id = Field(0x148, 0x18)


class QueryIssiOut(Outbox):
    SIZE = 112
    current_issi = Field(0x50, 0x10)
    #: Bit n: ISSI n is there.
    supported_issi_dw0 = Field(0x360, 0x20)


class SetIssiIn(Inbox):
    current_issi = Field(0x50, 0x10)


class SetHcaCapIn(Inbox):
    """``capability`` is 4096 bytes from byte 16 on; ``op_mod`` is the type, shifted left by one."""

    other_function = Field(0x40, 1)
    function_id = Field(0x50, 0x10)


class PagesKind(enum.IntEnum):
    """``op_mod`` of QUERY_PAGES: what the pages are for."""

    BOOT = 1
    INIT = 2
    REGULAR = 3


class QueryPagesIn(Inbox):
    function_id = Field(0x50, 0x10)


class QueryPagesOut(Outbox):
    """``num_pages`` is signed: negative where the function gives pages back."""

    function_id = Field(0x50, 0x10)
    num_pages = Field(0x60, 0x20)


class ManagePagesKind(enum.IntEnum):
    """``op_mod`` of MANAGE_PAGES."""

    CANNOT_GIVE = 0
    GIVE = 1
    TAKE = 2


class ManagePagesIn(Inbox):
    """Page addresses (be64 each) follow where pages are given."""

    function_id = Field(0x50, 0x10)
    input_num_entries = Field(0x60, 0x20)


class ManagePagesOut(Outbox):
    """Page addresses (be64 each) follow where pages are taken."""

    output_num_entries = Field(0x40, 0x20)


class AccessRegIn(Inbox):
    """The register's data follow; ``op_mod`` 0 writes it, 1 reads it."""

    register_id = Field(0x50, 0x10)
    argument = Field(0x60, 0x20)


# --- Migration --------------------------------------------------------------------------------


class SuspendKind(enum.IntEnum):
    """``op_mod`` of SUSPEND_VHCA."""

    INITIATOR = 0
    RESPONDER = 1


class ResumeKind(enum.IntEnum):
    """``op_mod`` of RESUME_VHCA: numbered the other way round than SUSPEND_VHCA's."""

    RESPONDER = 0
    INITIATOR = 1


class SuspendVhcaIn(Inbox):
    vhca_id = Field(0x50, 0x10)


class ResumeVhcaIn(Inbox):
    vhca_id = Field(0x50, 0x10)


class QueryVhcaMigrationStateIn(Inbox):
    incremental = Field(0x40, 1)
    chunk = Field(0x41, 1)
    vhca_id = Field(0x50, 0x10)


class VhcaMigrationState(enum.IntEnum):
    """``migration_state``, where the capability of that name is there."""

    UNINIT = 0
    IDLE = 1
    READY = 2
    DIRTY = 3
    #: There is new initial state: REINIT to the user of INFOv2.
    INIT = 4


class QueryVhcaMigrationStateOut(Outbox):
    """Sizes in bytes: of the buffer that the next save needs, and of all that remains."""

    SIZE = 64
    migration_state = Field(0x60, 4)
    required_umem_size = Field(0x80, 0x20)
    remaining_total_size = Field(0xC0, 0x40)


class SaveVhcaStateIn(Inbox):
    SIZE = 32
    incremental = Field(0x40, 1)
    set_track = Field(0x41, 1)
    vhca_id = Field(0x50, 0x10)
    va = Field(0x80, 0x40)
    mkey = Field(0xC0, 0x20)
    size = Field(0xE0, 0x20)


class SaveVhcaStateOut(Outbox):
    actual_image_size = Field(0x40, 0x20)
    next_required_umem_size = Field(0x60, 0x20)


class LoadVhcaStateIn(Inbox):
    SIZE = 32
    vhca_id = Field(0x50, 0x10)
    va = Field(0x80, 0x40)
    mkey = Field(0xC0, 0x20)
    size = Field(0xE0, 0x20)


class AllocPdOut(Outbox):
    pd = Field(0x48, 0x18)


class DeallocPdIn(Inbox):
    pd = Field(0x48, 0x18)


class AllocUarOut(Outbox):
    uar = Field(0x48, 0x18)


class DeallocUarIn(Inbox):
    uar = Field(0x48, 0x18)


class CreateMkeyIn(Inbox):
    """Translation entries (be64 each) follow, padded to an even number."""

    SIZE = 272
    pg_access = Field(0x60, 1)
    mkey_umem_valid = Field(0x61, 1)
    mkc = Nested(0x80, Mkc)
    #: Translation entries, in units of 16 bytes (two entries).
    translations_octword_actual_size = Field(0x300, 0x20)


class CreateMkeyOut(Outbox):
    """The key itself is ``mkey_index << 8 | mkey_7_0``."""

    mkey_index = Field(0x48, 0x18)


class DestroyMkeyIn(Inbox):
    mkey_index = Field(0x48, 0x18)


class QueryMkeyIn(Inbox):
    mkey_index = Field(0x48, 0x18)


class QueryMkeyOut(Outbox):
    SIZE = 272
    mkc = Nested(0x80, Mkc)


class CreateEqIn(Inbox):
    """Page addresses (be64 each) follow."""

    SIZE = 272
    eqc = Nested(0x80, Eqc)
    #: The first 64 event types; all that exist here.
    event_bitmask = Field(0x2C0, 0x40)


class CreateEqOut(Outbox):
    eq_number = Field(0x58, 8)


class DestroyEqIn(Inbox):
    eq_number = Field(0x58, 8)


class QueryEqIn(Inbox):
    eq_number = Field(0x58, 8)


class QueryEqOut(Outbox):
    SIZE = 272
    eqc = Nested(0x80, Eqc)


class CreateCqIn(Inbox):
    """Page addresses (be64 each) follow."""

    SIZE = 272
    cqc = Nested(0x80, Cqc)


class CreateCqOut(Outbox):
    cqn = Field(0x48, 0x18)


class DestroyCqIn(Inbox):
    cqn = Field(0x48, 0x18)


class QueryCqIn(Inbox):
    cqn = Field(0x48, 0x18)


class QueryCqOut(Outbox):
    SIZE = 272
    cqc = Nested(0x80, Cqc)


class CreateQpIn(Inbox):
    """Page addresses (be64 each) follow: the receive queue first, then the send queue."""

    SIZE = 272
    opt_param_mask = Field(0x80, 0x20)
    qpc = Nested(0xC0, Qpc)


class CreateQpOut(Outbox):
    qpn = Field(0x48, 0x18)


class DestroyQpIn(Inbox):
    qpn = Field(0x48, 0x18)


class ModifyQpIn(Inbox):
    """RST2INIT_QP, INIT2RTR_QP, RTR2RTS_QP."""

    SIZE = 272
    qpn = Field(0x48, 0x18)
    opt_param_mask = Field(0x80, 0x20)
    qpc = Nested(0xC0, Qpc)


class Modify2QpIn(Inbox):
    """MODIFY_2ERR_QP, MODIFY_2RST_QP."""

    qpn = Field(0x48, 0x18)


class QueryQpIn(Inbox):
    qpn = Field(0x48, 0x18)


class QueryQpOut(Outbox):
    """Page addresses follow."""

    SIZE = 272
    opt_param_mask = Field(0x80, 0x20)
    qpc = Nested(0xC0, Qpc)


class GeneralObjectIn(Inbox):
    """DESTROY_GENERAL_OBJECT, QUERY_GENERAL_OBJECT, and what the others begin with."""

    vhca_tunnel_id = Field(0x20, 0x10)
    obj_type = Field(0x30, 0x10)
    obj_id = Field(0x40, 0x20)


class PageTrackIn(GeneralObjectIn):
    """CREATE_GENERAL_OBJECT, MODIFY_GENERAL_OBJECT of a page tracker; for CREATE its ranges follow."""

    SIZE = 64
    page_track = Nested(0x80, PageTrack)


class GeneralObjectOut(Outbox):
    obj_id = Field(0x40, 0x20)


class PageTrackOut(GeneralObjectOut):
    """QUERY_GENERAL_OBJECT of a page tracker, the only kind of object that is here."""

    SIZE = 64
    page_track = Nested(0x80, PageTrack)


@dataclass(frozen=True, slots=True)
class Command:
    """What travels for one opcode."""

    opcode: Opcode
    inbox: type[Inbox]
    outbox: type[Outbox]


COMMANDS: dict[int, Command] = {
    command.opcode: command
    for command in (
        Command(Opcode.QUERY_HCA_CAP, QueryHcaCapIn, QueryHcaCapOut),
        Command(Opcode.QUERY_ADAPTER, Inbox, QueryAdapterOut),
        Command(Opcode.INIT_HCA, Inbox, Outbox),
        Command(Opcode.TEARDOWN_HCA, Inbox, TeardownHcaOut),
        Command(Opcode.ENABLE_HCA, EnableHcaIn, Outbox),
        Command(Opcode.DISABLE_HCA, EnableHcaIn, Outbox),
        Command(Opcode.QUERY_PAGES, QueryPagesIn, QueryPagesOut),
        Command(Opcode.MANAGE_PAGES, ManagePagesIn, ManagePagesOut),
        Command(Opcode.SET_HCA_CAP, SetHcaCapIn, Outbox),
        Command(Opcode.QUERY_ISSI, Inbox, QueryIssiOut),
        Command(Opcode.SET_ISSI, SetIssiIn, Outbox),
        Command(Opcode.ACCESS_REG, AccessRegIn, Outbox),
        Command(Opcode.SUSPEND_VHCA, SuspendVhcaIn, Outbox),
        Command(Opcode.RESUME_VHCA, ResumeVhcaIn, Outbox),
        Command(
            Opcode.QUERY_VHCA_MIGRATION_STATE,
            QueryVhcaMigrationStateIn,
            QueryVhcaMigrationStateOut,
        ),
        Command(Opcode.SAVE_VHCA_STATE, SaveVhcaStateIn, SaveVhcaStateOut),
        Command(Opcode.LOAD_VHCA_STATE, LoadVhcaStateIn, Outbox),
        Command(Opcode.CREATE_MKEY, CreateMkeyIn, CreateMkeyOut),
        Command(Opcode.QUERY_MKEY, QueryMkeyIn, QueryMkeyOut),
        Command(Opcode.DESTROY_MKEY, DestroyMkeyIn, Outbox),
        Command(Opcode.CREATE_EQ, CreateEqIn, CreateEqOut),
        Command(Opcode.DESTROY_EQ, DestroyEqIn, Outbox),
        Command(Opcode.QUERY_EQ, QueryEqIn, QueryEqOut),
        Command(Opcode.CREATE_CQ, CreateCqIn, CreateCqOut),
        Command(Opcode.DESTROY_CQ, DestroyCqIn, Outbox),
        Command(Opcode.QUERY_CQ, QueryCqIn, QueryCqOut),
        Command(Opcode.CREATE_QP, CreateQpIn, CreateQpOut),
        Command(Opcode.DESTROY_QP, DestroyQpIn, Outbox),
        Command(Opcode.RST2INIT_QP, ModifyQpIn, Outbox),
        Command(Opcode.INIT2RTR_QP, ModifyQpIn, Outbox),
        Command(Opcode.RTR2RTS_QP, ModifyQpIn, Outbox),
        Command(Opcode.MODIFY_2ERR_QP, Modify2QpIn, Outbox),
        Command(Opcode.MODIFY_2RST_QP, Modify2QpIn, Outbox),
        Command(Opcode.QUERY_QP, QueryQpIn, QueryQpOut),
        Command(Opcode.ALLOC_PD, Inbox, AllocPdOut),
        Command(Opcode.DEALLOC_PD, DeallocPdIn, Outbox),
        Command(Opcode.ALLOC_UAR, Inbox, AllocUarOut),
        Command(Opcode.DEALLOC_UAR, DeallocUarIn, Outbox),
        Command(Opcode.CREATE_GENERAL_OBJECT, PageTrackIn, GeneralObjectOut),
        Command(Opcode.MODIFY_GENERAL_OBJECT, PageTrackIn, GeneralObjectOut),
        Command(Opcode.QUERY_GENERAL_OBJECT, GeneralObjectIn, PageTrackOut),
        Command(Opcode.DESTROY_GENERAL_OBJECT, GeneralObjectIn, GeneralObjectOut),
    )
}
