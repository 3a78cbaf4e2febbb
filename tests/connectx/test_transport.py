"""Work queue entries, carried out."""

from collections.abc import Iterator

import pytest

from precopy.guest import layout
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.contexts import QpState
from precopy.mlx5_abi.wqe import CqeOpcode, CqeSyndrome, WqeOpcode
from tests.connectx.rig import Cqe, PairRig


@pytest.fixture
def rig() -> Iterator[PairRig]:
    rig = PairRig()
    yield rig
    rig.close()


def test_send_scatters_into_the_receive_entry_and_completes_on_both_ends(rig: PairRig) -> None:
    rig.receive_here()
    rig.send(b"hello, other end")
    assert bytes(rig.view[rig.its : rig.its + 16]) == b"hello, other end"
    assert rig.completions() == [
        Cqe(CqeOpcode.RESP_SEND, rig.receiver, 0, 0, 0, 16),
        Cqe(CqeOpcode.REQ, rig.sender, 0, 0, 0, 16),
    ]


def test_send_with_immediate_carries_it(rig: PairRig) -> None:
    rig.receive_here()
    rig.send(b"x" * 32, WqeOpcode.SEND_IMM, immediate=0xDEADBEEF)
    first, _ = rig.completions()
    assert (first.opcode, first.immediate) == (CqeOpcode.RESP_SEND_IMM, 0xDEADBEEF)


def test_write_needs_no_receive_entry_and_completes_at_the_requester_only(rig: PairRig) -> None:
    rig.send(b"written", WqeOpcode.RDMA_WRITE, remote=(rig.address(rig.its), rig.mkey))
    assert bytes(rig.view[rig.its : rig.its + 7]) == b"written"
    assert [cqe.opcode for cqe in rig.completions()] == [CqeOpcode.REQ]


def test_write_with_immediate_takes_a_receive_entry(rig: PairRig) -> None:
    rig.receive_here()
    rig.send(
        b"written",
        WqeOpcode.RDMA_WRITE_IMM,
        remote=(rig.address(rig.its), rig.mkey),
        immediate=7,
    )
    first, second = rig.completions()
    assert (first.opcode, first.immediate) == (CqeOpcode.RESP_WR_IMM, 7)
    assert second.opcode == CqeOpcode.REQ


def test_read_fetches(rig: PairRig) -> None:
    rig.view[rig.its : rig.its + 5] = b"there"
    segment = (5, rig.mkey, rig.address(rig.mine))
    rig.post(WqeOpcode.RDMA_READ, segment, remote=(rig.address(rig.its), rig.mkey))
    assert bytes(rig.view[rig.mine : rig.mine + 5]) == b"there"
    assert [cqe.opcode for cqe in rig.completions()] == [CqeOpcode.REQ]


def test_an_unsignaled_entry_completes_nowhere_at_the_requester(rig: PairRig) -> None:
    rig.post(WqeOpcode.NOP, signaled=False)
    rig.post(WqeOpcode.NOP)
    assert [cqe.counter for cqe in rig.completions()] == [1]


def test_gather_of_many_segments_over_two_building_blocks(rig: PairRig) -> None:
    rig.receive_here()
    rig.view[rig.mine : rig.mine + 8] = b"abcdefgh"
    segments = [(1, rig.mkey, rig.address(rig.mine + n)) for n in (7, 6, 5, 4, 3)]
    rig.post(WqeOpcode.SEND, *segments)
    assert bytes(rig.view[rig.its : rig.its + 5]) == b"hgfed"
    assert rig.posted == 2
    rig.post(WqeOpcode.NOP)
    assert [cqe.opcode for cqe in rig.completions()][-1] == CqeOpcode.REQ


def test_queues_wrap_and_ownership_bits_turn(rig: PairRig) -> None:
    for number in range(100):
        rig.receive_here()
        rig.send(bytes([number]) * 16)
        assert rig.view[rig.its] == number
        assert len(rig.completions()) == 2


@pytest.mark.parametrize(
    ("opcode", "segment_key", "remote_key", "syndrome", "receiver_ends"),
    [
        (WqeOpcode.SEND, 0x9900, None, CqeSyndrome.LOCAL_PROT_ERR, False),
        (WqeOpcode.RDMA_WRITE, 0x9900, 0, CqeSyndrome.LOCAL_PROT_ERR, False),
        (WqeOpcode.RDMA_WRITE, 0, 0x9900, CqeSyndrome.REMOTE_ACCESS_ERR, True),
        (WqeOpcode.RDMA_READ, 0, 0x9900, CqeSyndrome.REMOTE_ACCESS_ERR, True),
        (0x3F, 0, None, CqeSyndrome.LOCAL_QP_OP_ERR, False),
    ],
)
def test_bad_keys_and_opcodes(
    rig: PairRig,
    opcode: int,
    segment_key: int,
    remote_key: int | None,
    syndrome: CqeSyndrome,
    receiver_ends: bool,
) -> None:
    rig.receive_here()
    segment = (16, segment_key or rig.mkey, rig.address(rig.mine))
    remote = None if remote_key is None else (rig.address(rig.its), remote_key or rig.mkey)
    before = bytes(rig.view[rig.its : rig.its + 16])
    rig.post(opcode, segment, remote=remote)
    errors = [cqe for cqe in rig.completions() if cqe.opcode == CqeOpcode.REQ_ERR]
    assert [cqe.syndrome for cqe in errors] == [syndrome]
    assert rig.state_of(rig.sender) is QpState.ERR
    assert (rig.state_of(rig.receiver) is QpState.ERR) == receiver_ends
    assert bytes(rig.view[rig.its : rig.its + 16]) == before


@pytest.mark.parametrize("beyond", [1, 4096, 1 << 40])
def test_bounds_of_a_key(rig: PairRig, beyond: int) -> None:
    end = rig.address(0) + rig.config.region.length
    rig.send(b"x" * 16, WqeOpcode.RDMA_WRITE, remote=(end - 16 + beyond, rig.mkey))
    assert [cqe.syndrome for cqe in rig.completions()] == [CqeSyndrome.REMOTE_ACCESS_ERR]


def test_a_message_longer_than_the_receive_entry_ends_both(rig: PairRig) -> None:
    rig.receive_here(8)
    rig.send(b"x" * 16)
    assert {cqe.syndrome for cqe in rig.completions()} == {
        CqeSyndrome.REMOTE_INVAL_REQ_ERR,
        CqeSyndrome.LOCAL_LENGTH_ERR,
    }
    assert rig.state_of(rig.receiver) is QpState.ERR


def test_entries_behind_a_failed_one_are_flushed(rig: PairRig) -> None:
    rig.receive_here()
    rig.post(WqeOpcode.SEND, (16, 0x9900, 0), ring=False)
    rig.post(WqeOpcode.NOP, ring=False)
    rig.post(WqeOpcode.NOP)
    assert [(cqe.counter, cqe.syndrome) for cqe in rig.completions()] == [
        (0, CqeSyndrome.LOCAL_PROT_ERR),
        (1, CqeSyndrome.WR_FLUSH_ERR),
        (2, CqeSyndrome.WR_FLUSH_ERR),
    ]


def test_a_receiver_that_is_not_ready_is_waited_for(rig: PairRig) -> None:
    rig.send(b"early bird here.")
    assert rig.completions() == []
    rig.receive_here()
    rig.arm()
    assert len(rig.completions()) == 2
    assert bytes(rig.view[rig.its : rig.its + 5]) == b"early"


def test_a_suspended_function_does_the_work_when_it_is_resumed(rig: PairRig) -> None:
    rig.receive_here()
    rig.suspend(0)
    rig.send(b"later")
    assert rig.completions() == []
    rig.resume(1)
    assert len(rig.completions()) == 2


def test_an_armed_cq_raises_one_interrupt_and_names_itself(rig: PairRig) -> None:
    raised: list[int] = []
    rig.port.set_interrupt(0, lambda: raised.append(1))
    rig.arm()
    rig.post(WqeOpcode.NOP)
    rig.post(WqeOpcode.NOP)
    assert raised == [1]
    eqe = layout.PAGE
    assert rig.view[eqe + wqe.EQE_TYPE] == wqe.EventType.COMP
    number = rig.view[eqe + wqe.EQE_COMP_CQN : eqe + wqe.EQE_COMP_CQN + 4]
    assert int.from_bytes(number, "big") == rig.cqn


def test_arming_behind_completions_fires_at_once(rig: PairRig) -> None:
    raised: list[int] = []
    rig.port.set_interrupt(0, lambda: raised.append(1))
    rig.post(WqeOpcode.NOP)
    rig.arm()
    assert raised == [1]


def test_a_full_cq_is_told_of_and_nothing_is_overwritten(rig: PairRig) -> None:
    for _ in range((1 << layout.LOG_CQ) + 1):
        rig.post(WqeOpcode.NOP)
    assert len(rig.completions()) == 1 << layout.LOG_CQ
    assert rig.view[layout.PAGE + wqe.EQE_TYPE] == wqe.EventType.CQ_ERROR


def test_a_doorbell_record_beyond_the_queue_ends_the_qp(rig: PairRig) -> None:
    wqe.QP_DBR.pack_into(rig.view, rig.at + layout.SEND_DBR, 0, 0x8000)
    rig.port.ring(rig.uar, wqe.UAR_SEND_DOORBELL, bytes(4) + (rig.sender << 8).to_bytes(4, "big"))
    assert rig.completions()[0].syndrome == CqeSyndrome.LOCAL_QP_OP_ERR
    assert rig.state_of(rig.sender) is QpState.ERR


def test_doorbells_of_nobody_are_dropped(rig: PairRig) -> None:
    rig.port.ring(200, wqe.UAR_SEND_DOORBELL, bytes(8))
    rig.port.ring(rig.uar, wqe.UAR_SEND_DOORBELL, b"\xff" * 8)
    rig.port.ring(rig.uar, wqe.UAR_CQ_DOORBELL, b"\xff" * 8)
    rig.port.ring(rig.uar, 0x123, bytes(8))
    assert rig.completions() == []
