"""Every fault that a VF could have is one that the guest counts, and counts as what it is.

Messages are posted to a VF that stands still, something is changed in what it will do or has done,
and it goes on. A counter that these tests can't move would be worth nothing.
"""

from collections.abc import Callable, Iterator

import pytest

from precopy.connectx.slots import QpSlot
from precopy.guest import layout, messages
from precopy.guest.layout import MESSAGE, WINDOW
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.contexts import QpState
from precopy.mlx5_abi.wqe import CqeOpcode, WqeOpcode
from precopy.vfio.guest import GuestCounts
from tests.guest.rig import GuestRig

SIZE = 64

#: Offsets in a send queue entry: opcode, flags, immediate; the data segment of a SEND.
OPCODE, FLAGS, IMMEDIATE, SEGMENT = 3, 11, 12, 16


@pytest.fixture
def rig() -> Iterator[GuestRig]:
    rig = GuestRig(mix="s", size=SIZE)
    yield rig
    rig.close()


@pytest.fixture
def make() -> Iterator[Callable[..., GuestRig]]:
    rigs: list[GuestRig] = []

    def make(**config: int | str) -> GuestRig:
        rigs.append(GuestRig(**{"size": SIZE, **config}))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def settled(rig: GuestRig) -> GuestCounts:
    """What is counted once nothing more is waited for."""
    return rig.guest.settle(0.0)


def skip(rig: GuestRig, sequence: int) -> None:
    """Let the VF do nothing for this message, and say that it has."""
    rig.view[rig.entry_at(sequence) + OPCODE] = WqeOpcode.NOP


def test_nothing_is_counted_where_nothing_was_changed(rig: GuestRig) -> None:
    for _ in range(3):
        with rig.posted():
            pass
    assert settled(rig) == GuestCounts(sent=12, received=12)


# --- Lost, doubled, reordered ---------------------------------------------------------------------


@pytest.mark.parametrize("sequence", range(WINDOW))
def test_lost(rig: GuestRig, sequence: int) -> None:
    with rig.posted():
        skip(rig, sequence)
    assert settled(rig) == GuestCounts(sent=4, received=3, lost=1)


def test_all_of_a_window_lost(rig: GuestRig) -> None:
    rig.guest.step(2)
    with rig.posted():
        for sequence in range(2, 6):
            skip(rig, sequence)
    assert settled(rig) == GuestCounts(sent=6, received=2, lost=4)
    # Told once, however often it is asked.
    assert settled(rig) == GuestCounts(sent=6, received=2, lost=4)


def test_lost_while_it_is_still_waited_for(rig: GuestRig) -> None:
    """What comes only after the guest has given up was late, not lost."""
    rig.suspend()
    rig.guest.step(2)
    assert settled(rig) == GuestCounts(sent=2, lost=2, failed=1)
    rig.resume()
    assert settled(rig) == GuestCounts(sent=2, received=2, reordered=2, failed=1)


def test_doubled_in_place_of_another(rig: GuestRig) -> None:
    with rig.posted():
        first = rig.take(rig.entry_at(1) + SEGMENT, wqe.DATA_SEG.size)
        rig.put(rig.entry_at(2) + SEGMENT, first)
    assert settled(rig) == GuestCounts(sent=4, received=4, lost=1, doubled=1)


def test_doubled_by_a_vf_that_does_its_last_work_again(rig: GuestRig) -> None:
    """As after a move with a queue's counter of before."""
    rig.guest.step(3)
    vhca = rig.port.port.vhca
    qp = QpSlot(vhca.table("qp").edit(rig.names()[0]))
    qp.hw_sq_wqebb_counter -= 1
    rig.guest.step(1)
    # The completion comes again, too, and none is due.
    assert settled(rig) == GuestCounts(sent=4, received=5, doubled=1, failed=1)


def test_reordered(rig: GuestRig) -> None:
    with rig.posted():
        first, second = (rig.take(rig.message_at(n), SIZE) for n in (1, 2))
        rig.put(rig.message_at(1), second)
        rig.put(rig.message_at(2), first)
    assert settled(rig) == GuestCounts(sent=4, received=4, reordered=1)


@pytest.mark.parametrize("operation", ["w", "r"])
def test_rdma_that_is_not_carried_out(make: Callable[..., GuestRig], operation: str) -> None:
    rig = make(mix=operation)
    with rig.posted():
        skip(rig, 1)
    # There was nothing before; later there is the message of the round before.
    assert settled(rig) == GuestCounts(sent=4, received=4, damaged=1)
    rig = make(mix=operation)
    rig.guest.step(4)
    with rig.posted():
        skip(rig, 5)
    assert settled(rig) == GuestCounts(sent=8, received=8, lost=1, doubled=1)


# --- Damaged --------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", "siwr")
def test_damaged_at_any_byte(make: Callable[..., GuestRig], operation: str) -> None:
    rig = make(mix=operation)
    slot = rig.config.rdma_slot if operation == "r" else rig.config.send_slot
    for at in range(SIZE):
        with rig.posted(1):
            rig.view[slot(0, at) + at] ^= 0x10
    assert settled(rig) == GuestCounts(sent=SIZE, received=SIZE, damaged=SIZE)


def test_damaged_on_its_way_into_the_receive_buffer(rig: GuestRig) -> None:
    with rig.posted():
        pass
    rig.view[rig.config.receive_slot(0, 2) + 40] ^= 1
    assert settled(rig) == GuestCounts(sent=4, received=4, damaged=1)


def test_the_message_of_another_pair(make: Callable[..., GuestRig]) -> None:
    rig = make(mix="s", pairs=2, active=2)
    with rig.posted(2):
        rig.put(rig.message_at(0, 0), rig.take(rig.message_at(0, 1), SIZE))
    assert settled(rig) == GuestCounts(sent=2, received=2, damaged=1)


def test_a_message_that_was_not_sent_yet(rig: GuestRig) -> None:
    with rig.posted(2):
        rig.put(rig.message_at(0), messages.build(rig.config, 0, 2))
    assert settled(rig) == GuestCounts(sent=2, received=2, damaged=1)


@pytest.mark.parametrize("length", [0, 1, MESSAGE.size, SIZE - 1])
def test_a_message_cut_short(rig: GuestRig, length: int) -> None:
    with rig.posted(1):
        rig.put(rig.entry_at(0) + SEGMENT, length.to_bytes(4, "big"))
        if not length:  # 0 in a segment means 2^31, so the entry goes without one
            rig.view[rig.entry_at(0) + 7] = 1
    assert settled(rig) == GuestCounts(sent=1, received=1, damaged=1)


@pytest.mark.parametrize("at", range(44, 48))
def test_a_completion_that_tells_of_another_length(rig: GuestRig, at: int) -> None:
    with rig.posted(1):
        pass
    rig.view[rig.completion_at(0) + at] ^= 1
    assert settled(rig) == GuestCounts(sent=1, received=1, damaged=1)


@pytest.mark.parametrize("at", range(4))
def test_an_immediate_that_is_another(make: Callable[..., GuestRig], at: int) -> None:
    rig = make(mix="i")
    with rig.posted():
        rig.view[rig.entry_at(2) + IMMEDIATE + at] ^= 1
    assert settled(rig) == GuestCounts(sent=4, received=4, damaged=1)


@pytest.mark.parametrize(("mix", "other"), [("i", WqeOpcode.SEND), ("s", WqeOpcode.SEND_IMM)])
def test_an_immediate_too_few_or_too_many(
    make: Callable[..., GuestRig], mix: str, other: WqeOpcode
) -> None:
    rig = make(mix=mix)
    with rig.posted():
        rig.view[rig.entry_at(1) + OPCODE] = other
    assert settled(rig) == GuestCounts(sent=4, received=4, damaged=1)


def test_an_immediate_behind_a_message_that_was_lost_is_no_damage(
    make: Callable[..., GuestRig],
) -> None:
    rig = make(mix="i")
    with rig.posted():
        skip(rig, 1)
    assert settled(rig) == GuestCounts(sent=4, received=3, lost=1)


# --- Failed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequence", range(WINDOW))
def test_a_completion_with_an_error(rig: GuestRig, sequence: int) -> None:
    with rig.posted():
        rig.put(rig.entry_at(sequence) + SEGMENT + 4, (0x9900).to_bytes(4, "big"))
    counts = settled(rig)
    # The entry that failed, and those behind it that were flushed.
    assert counts == GuestCounts(sent=4, received=sequence, lost=4 - sequence, failed=4 - sequence)
    # The pair is given up: nothing more is sent through it.
    rig.guest.start()
    rig.guest.pause()
    rig.guest.step(5)
    assert rig.guest.counts() == counts


def test_a_queue_pair_put_into_error(rig: GuestRig) -> None:
    with rig.posted():
        vhca = rig.port.port.vhca
        QpSlot(vhca.table("qp").edit(rig.names()[1])).state = QpState.ERR
    counts = settled(rig)
    assert counts.received == 0
    assert counts.lost == 4
    assert counts.failed


def test_a_completion_that_does_not_come(rig: GuestRig) -> None:
    """The message arrives and its sender hears nothing: the queue would stand still."""
    with rig.posted():
        rig.view[rig.entry_at(3) + FLAGS] = 0
    assert settled(rig) == GuestCounts(sent=4, received=4, failed=1)
    assert settled(rig) == GuestCounts(sent=4, received=4, failed=1)


def test_a_completion_left_out_between_others(rig: GuestRig) -> None:
    with rig.posted(3):
        rig.view[rig.entry_at(1) + FLAGS] = 0
    # The one behind it is not the one that is due.
    assert settled(rig) == GuestCounts(sent=3, received=3, failed=1)


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("at", [57, 58, 59, 60, 61])
def test_a_completion_for_another_queue_or_another_entry(
    rig: GuestRig, number: int, at: int
) -> None:
    """``number``: that of the receiver, that of the sender; QP number and counter in bytes 57-61."""
    with rig.posted(1):
        pass
    rig.view[rig.completion_at(number) + at] ^= 0x80
    counts = settled(rig)
    assert counts.failed == 1
    # A message of which only a false completion tells is not taken for received.
    assert (counts.received, counts.lost) == ((0, 1) if number == 0 else (1, 0))


@pytest.mark.parametrize(
    "opcode", [CqeOpcode.RESP_WR_IMM, CqeOpcode.REQ_ERR, CqeOpcode.RESP_ERR, 0x4, 0xC]
)
@pytest.mark.parametrize("number", [0, 1])
def test_a_completion_of_another_kind(rig: GuestRig, number: int, opcode: int) -> None:
    with rig.posted(1):
        pass
    own = rig.completion_at(number) + wqe.CQE_OP_OWN
    rig.view[own] = opcode << 4 | rig.view[own] & 1
    counts = settled(rig)
    assert counts.failed == 1
    assert (counts.received, counts.lost) == ((0, 1) if number == 0 else (1, 0))


def test_a_completion_that_comes_twice(rig: GuestRig) -> None:
    with rig.posted(1):
        pass
    rig.put(rig.completion_at(2), rig.take(rig.completion_at(1), 64))
    assert settled(rig) == GuestCounts(sent=1, received=1, failed=1)


def test_a_completion_of_a_message_that_was_not_sent(rig: GuestRig) -> None:
    with rig.posted(1):
        pass
    rig.put(rig.completion_at(2), rig.take(rig.completion_at(1), 64))
    rig.view[rig.completion_at(2) + 61] += 1
    assert settled(rig) == GuestCounts(sent=1, received=1, failed=1)


def test_a_message_announced_twice(rig: GuestRig) -> None:
    with rig.posted(1):
        pass
    rig.put(rig.completion_at(2), rig.take(rig.completion_at(0), 64))
    assert settled(rig).failed == 1


def test_a_completion_that_disappears(rig: GuestRig) -> None:
    with rig.posted(1):
        pass
    rig.view[rig.completion_at(0) + wqe.CQE_OP_OWN] = wqe.CQE_INVALID_BYTE
    assert settled(rig) == GuestCounts(sent=1, received=0, lost=1, failed=1)


@pytest.mark.parametrize("kind", [wqe.EventType.CQ_ERROR, wqe.EventType.WQ_CATAS_ERROR])
def test_an_event_that_tells_of_an_error(rig: GuestRig, kind: int) -> None:
    control = layout.Control(*layout.CONTROL.unpack_from(rig.view, 0))
    at = layout.PAGE + control.eq_consumer * wqe.EQE_BYTES
    rig.view[at + wqe.EQE_TYPE] = kind
    rig.view[at + wqe.EQE_OWNER] = 0
    assert settled(rig) == GuestCounts(failed=1)


def test_a_cq_that_runs_over_is_told_of(rig: GuestRig) -> None:
    with rig.posted():
        # Its consumer counter says that it is full but for one entry.
        rig.put(rig.config.pair_at(0) + layout.CQ_DBR, (0xFFFFF1).to_bytes(4, "big"))
    counts = settled(rig)
    assert counts.failed
    assert counts.lost


def test_faults_are_all_of_them(rig: GuestRig) -> None:
    assert GuestCounts(9, 9, 1, 2, 3, 4, 5).faults == 15
    with rig.posted():
        skip(rig, 0)
    assert settled(rig).faults == 1
