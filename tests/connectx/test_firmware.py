"""Commands: statuses, capabilities, objects, injected faults."""

import pytest

from precopy.connectx import FaultPlan
from precopy.mlx5_abi.capabilities import GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import (
    CapType,
    CreateCqIn,
    CreateMkeyIn,
    CreateQpIn,
    Inbox,
    ModifyQpIn,
    Opcode,
    Outbox,
    QueryHcaCapIn,
)
from precopy.mlx5_abi.contexts import AccessMode
from precopy.mlx5_abi.status import Status
from tests.connectx.rig import PairRig, command, small_adapter


def test_unknown_and_short_commands() -> None:
    vf = small_adapter().vfs[0]
    assert Outbox(vf.execute(bytes(Inbox(opcode=0xFFF)))).status == Status.BAD_OP
    assert Outbox(vf.execute(b"\x02\x00")).status == Status.BAD_INP_LEN
    assert Outbox(vf.execute(b"")).status == Status.BAD_OP


def test_a_vf_may_not_migrate() -> None:
    vf = small_adapter().vfs[0]
    for opcode in (Opcode.SUSPEND_VHCA, Opcode.SAVE_VHCA_STATE, Opcode.LOAD_VHCA_STATE):
        assert command(vf, opcode).status == Status.BAD_OP


def test_nobody_migrates_a_pf_or_a_stranger() -> None:
    adapter = small_adapter()
    for vhca_id in (adapter.pf.vhca.vhca_id, 0x7777):
        out = command(adapter.pf, Opcode.SUSPEND_VHCA, vhca_id=vhca_id)
        assert out.status == Status.BAD_RES


@pytest.mark.parametrize(
    "switch", ["migration", "multi_load", "tracking_state", "chunk_mode", "migration_state"]
)
@pytest.mark.parametrize("on", [True, False])
def test_capability_switches(switch: str, on: bool) -> None:
    pf = small_adapter("", **{switch: on}).pf
    general = GeneralCap(_cap(pf, CapType.GENERAL))
    general2 = GeneralCap2(_cap(pf, CapType.GENERAL_2))
    seen = {
        "migration": general.migration,
        "multi_load": general2.migration_multi_load,
        "tracking_state": general2.migration_tracking_state,
        "chunk_mode": general2.migration_in_chunks,
        "migration_state": general2.migration_state,
    }
    assert seen[switch] == on
    assert all(value for name, value in seen.items() if name != switch)


def _cap(port: object, kind: CapType, function: int = 0) -> bytes:
    inbox = QueryHcaCapIn(op_mod=kind << 1 | 1, function_id=function, other_function=bool(function))
    out = command(port, Opcode.QUERY_HCA_CAP, inbox)  # type: ignore[arg-type]
    assert out.status == Status.OK
    return bytes(out.buf[16:])


def test_functions_have_vhca_ids_of_their_own() -> None:
    pf = small_adapter(num_vfs=2).pf
    ids = [GeneralCap(_cap(pf, CapType.GENERAL, function)).vhca_id for function in (0, 1, 2)]
    assert len(set(ids)) == 3
    inbox = QueryHcaCapIn(op_mod=1, function_id=3, other_function=1)
    assert command(pf, Opcode.QUERY_HCA_CAP, inbox).status == Status.BAD_PARAM


def test_numbers_are_used_again() -> None:
    vf = small_adapter().vfs[0]
    first = command(vf, Opcode.ALLOC_PD).pd  # type: ignore[attr-defined]
    second = command(vf, Opcode.ALLOC_PD).pd  # type: ignore[attr-defined]
    assert first != second
    assert command(vf, Opcode.DEALLOC_PD, pd=first).status == Status.OK
    assert command(vf, Opcode.DEALLOC_PD, pd=first).status == Status.BAD_RES
    assert command(vf, Opcode.ALLOC_PD).pd == first  # type: ignore[attr-defined]


def test_uars_run_out_with_a_status() -> None:
    vf = small_adapter().vfs[0]
    statuses = [command(vf, Opcode.ALLOC_UAR).status for _ in range(300)]
    assert statuses[0] == Status.OK
    assert statuses[-1] == Status.LIM


def _mkey(pd: int, pages: int, entries: int, **fields: int) -> CreateMkeyIn:
    inbox = CreateMkeyIn(bytearray(CreateMkeyIn.SIZE + entries * 8))
    inbox.translations_octword_actual_size = -(-pages // 2)
    mkc = inbox.mkc
    mkc.access_mode_1_0, mkc.pd, mkc.log_page_size, mkc.len = AccessMode.MTT, pd, 12, pages * 4096
    for name, value in fields.items():
        setattr(mkc, name, value)
    return inbox


def test_memory_keys_are_checked() -> None:
    vf = small_adapter().vfs[0]
    pd = command(vf, Opcode.ALLOC_PD).pd  # type: ignore[attr-defined]
    create = Opcode.CREATE_MKEY
    assert command(vf, create, _mkey(pd, 4, 4)).status == Status.OK
    assert command(vf, create, _mkey(pd + 1, 4, 4)).status == Status.BAD_RES
    assert command(vf, create, _mkey(pd, 4, 2)).status == Status.BAD_INP_LEN
    assert command(vf, create, _mkey(pd, 4, 4, len=5 * 4096)).status == Status.BAD_PARAM
    assert command(vf, create, _mkey(pd, 4, 4, log_page_size=3)).status == Status.BAD_PARAM
    assert command(vf, create, _mkey(pd, 4, 4, access_mode_1_0=2)).status == Status.BAD_PARAM
    assert command(vf, Opcode.DESTROY_MKEY, mkey_index=4000).status == Status.BAD_RES


def test_queues_are_checked() -> None:
    vf = small_adapter().vfs[0]
    cq = CreateCqIn(bytearray(CreateCqIn.SIZE + 8))
    cq.cqc.log_cq_size = 31
    assert command(vf, Opcode.CREATE_CQ, cq).status == Status.BAD_PARAM
    cq.cqc.log_cq_size = 8
    assert command(vf, Opcode.CREATE_CQ, cq).status == Status.BAD_INP_LEN
    cq.cqc.log_cq_size, cq.cqc.c_eqn = 4, 33
    assert command(vf, Opcode.CREATE_CQ, cq).status == Status.BAD_RES
    qp = CreateQpIn(bytearray(CreateQpIn.SIZE + 8))
    qp.qpc.st = 3
    assert command(vf, Opcode.CREATE_QP, qp).status == Status.BAD_PARAM
    qp.qpc.st = 0
    assert command(vf, Opcode.CREATE_QP, qp).status == Status.BAD_RES


def test_qp_transitions_come_in_order() -> None:
    rig = PairRig()
    inbox = ModifyQpIn(qpn=rig.sender)
    assert command(rig.port, Opcode.INIT2RTR_QP, inbox).status == Status.BAD_QP_STATE
    assert command(rig.port, Opcode.MODIFY_2RST_QP, qpn=rig.sender).status == Status.OK
    assert command(rig.port, Opcode.RST2INIT_QP, inbox).status == Status.OK
    assert command(rig.port, Opcode.RTR2RTS_QP, inbox).status == Status.BAD_QP_STATE
    rig.close()


def test_the_nth_command_of_an_opcode_fails_with_the_status_asked_for() -> None:
    vf = small_adapter("ALLOC_PD:2:0x8").vfs[0]
    statuses = [command(vf, Opcode.ALLOC_PD).status for _ in range(3)]
    assert statuses == [Status.OK, Status.LIM, Status.OK]
    assert command(vf, Opcode.ALLOC_UAR).status == Status.OK


@pytest.mark.parametrize(
    "text", ["X:1:1", "ALLOC_PD:1", "ALLOC_PD:0:1", "ALLOC_PD:1:0", "ALLOC_PD:a:1"]
)
def test_fault_plans_that_make_no_sense(text: str) -> None:
    with pytest.raises(ValueError, match=r"fault|nth"):
        FaultPlan.parse(text)
