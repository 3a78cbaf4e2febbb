"""A guest at work: what it sends, how it is stopped and started, and where its memory goes."""

import functools
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from precopy.connectx import InlineExecutor
from precopy.connectx.slots import CqSlot, QpSlot
from precopy.guest import WorkloadConfig, WorkloadGuest, layout
from precopy.guest.bringup import BringUpError
from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.commands import Opcode
from precopy.pci.memory import PAGE_SIZE, RegionSpec
from precopy.vfio.guest import GuestCounts
from precopy.vfio.states import DeviceState
from tests.connectx.rig import small_adapter
from tests.guest.rig import (
    INITIATOR_OFF,
    INITIATOR_ON,
    PATIENCE,
    RESPONDER_OFF,
    RESPONDER_ON,
    GuestRig,
)
from tests.mlx5.conftest import read_all

LETTERS = {0x0A: "s", 0x0B: "i", 0x08: "w", 0x10: "r"}


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


# --- What is sent ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mix", ["s", "i", "w", "r", "siwr", "rrsw", "wsirwsir"])
def test_the_operations_of_a_mix_in_turn(mix: str) -> None:
    rig = GuestRig(pairs=3, active=2, mix=mix)
    rig.guest.step(40)
    assert rig.guest.settle(PATIENCE) == GuestCounts(sent=40, received=40)
    by_pair: dict[int, str] = {}
    for doorbell in rig.port.sent:
        qpn = int.from_bytes(doorbell[4:7], "big")
        by_pair[qpn] = by_pair.get(qpn, "") + LETTERS[doorbell[3]]
    # Pair after pair in turn, those that are not active never.
    assert by_pair == {rig.names(index)[0]: (mix * 20)[:20] for index in range(2)}
    rig.close()


@pytest.mark.parametrize("size", [32, 33, 63, 64, 65, 4096, 65535, 65536])
def test_sizes(size: int) -> None:
    rig = GuestRig(size=size)
    rig.guest.step(12)
    assert rig.guest.settle(PATIENCE) == GuestCounts(sent=12, received=12)
    rig.close()


def test_counters_wrap_around() -> None:
    """16 bits of a doorbell record, 24 of a CQ, 32 of the guest's own: a few messages before each."""
    rig = GuestRig(size=32, mix="iws")
    rig.guest.step(8)
    vhca, (sender, receiver, cqn) = rig.port.port.vhca, rig.names()
    at = rig.config.pair_at(0)
    pair = layout.Pair(*layout.PAIR.unpack_from(rig.view, at + layout.PAIR_AT))
    posted, receives, consumer = (
        # The places in the queues stay as they are.
        (1 << 32) - 8 + pair.posted % 8,
        (1 << 16) - 8 + pair.receives % 4,
        (1 << 24) - 32 + pair.cq_consumer % 32,
    )
    QpSlot(vhca.table("qp").edit(sender)).hw_sq_wqebb_counter = posted & 0xFFFF
    QpSlot(vhca.table("qp").edit(receiver)).hw_rq_counter = receives - 4
    CqSlot(vhca.table("cq").edit(cqn)).producer_counter = consumer
    moved = pair._replace(posted=posted, done=posted, receives=receives, cq_consumer=consumer)
    layout.PAIR.pack_into(rig.view, at + layout.PAIR_AT, *moved)
    rig.put(at + layout.RECEIVE_DBR, receives.to_bytes(4, "big"))
    rig.put(at + layout.CQ_DBR, consumer.to_bytes(4, "big"))
    for _ in range(8):
        with rig.posted():
            pass
    assert rig.guest.settle(PATIENCE) == GuestCounts(sent=40, received=40)
    pair = layout.Pair(*layout.PAIR.unpack_from(rig.view, at + layout.PAIR_AT))
    assert max(pair.posted, pair.receives, pair.cq_consumer) < 64
    assert (pair.next_send, pair.next_arrival, pair.under_way, pair.missing) == (40, 40, 0, 0)
    rig.close()


def test_the_event_queue_turns_over() -> None:
    rig = GuestRig(size=32)
    for _ in range((1 << layout.LOG_EQ) + 10):
        with rig.posted(1):
            pass
    counts = rig.guest.settle(PATIENCE)
    assert counts == GuestCounts(sent=counts.sent, received=counts.sent)
    control = layout.Control(*layout.CONTROL.unpack_from(rig.view, 0))
    assert control.eq_consumer > 1 << layout.LOG_EQ
    rig.close()


def test_pairs_that_never_worked_cost_no_memory() -> None:
    rig = GuestRig(pairs=100, active=3)
    rig.guest.step(30)
    last = rig.config.pair_at(3)
    for extent in rig.guest.memory.extents():
        assert extent.offset + extent.length <= last
    rig.close()


def test_a_guest_without_active_pairs_sends_nothing() -> None:
    rig = GuestRig(pairs=4, active=0)
    rig.guest.step(5)
    rig.guest.start()
    rig.guest.pause()
    assert rig.guest.settle(0.0) == GuestCounts()
    rig.close()


def test_a_window_is_as_much_as_is_under_way() -> None:
    rig = GuestRig(pairs=2, active=2)
    rig.suspend()
    rig.guest.step(100)
    assert rig.guest.counts() == GuestCounts(sent=2 * layout.WINDOW)
    rig.resume()
    assert rig.guest.settle(PATIENCE) == GuestCounts(sent=8, received=8)
    rig.close()


# --- The vCPU -------------------------------------------------------------------------------------


@pytest.fixture
def running() -> Iterator[GuestRig]:
    rig = GuestRig(pairs=4, active=4, rate=0)
    yield rig
    rig.close()


def test_it_runs_and_pauses_and_runs_on(running: GuestRig) -> None:
    for count in (100, 400, 900):
        running.guest.start()
        running.guest.start()
        running.port.wait_for(count)
        running.guest.pause()
        sent, memory = len(running.port.sent), running.take(0, running.config.region.length)
        # On return no instruction of the guest runs.
        assert not any(thread.name == "vcpu" for thread in threading.enumerate())
        assert running.guest.counts().sent == sent
        assert running.take(0, len(memory)) == memory
        running.guest.pause()
    counts = running.guest.settle(PATIENCE)
    assert counts == GuestCounts(sent=sent, received=sent)


def test_it_goes_on_by_itself_when_the_vf_does(running: GuestRig) -> None:
    """It hears of completions by interrupt, as it has nothing else to do."""
    running.suspend()
    running.guest.start()
    running.port.wait_for(4 * layout.WINDOW)
    running.resume()
    running.port.wait_for(1000)
    running.guest.pause()
    assert running.guest.settle(PATIENCE).faults == 0


@pytest.mark.parametrize("rate", [1 << 20, 500])
def test_with_a_rate_it_sends_too(rate: int) -> None:
    rig = GuestRig(pairs=2, active=2, rate=rate)
    rig.guest.start()
    rig.port.wait_for(20)
    counts = rig.guest.settle(PATIENCE)
    assert counts.faults == 0
    assert counts.sent == counts.received >= 20
    rig.close()


def test_settling_while_it_runs_sends_nothing_more(running: GuestRig) -> None:
    running.guest.start()
    running.port.wait_for(200)
    counts = running.guest.settle(PATIENCE)
    assert counts == GuestCounts(sent=counts.sent, received=counts.sent)
    running.guest.step(10)
    assert running.guest.counts() == counts
    # Started anew it sends again.
    running.guest.pause()
    running.guest.start()
    running.port.wait_for(counts.sent + 100)
    running.guest.pause()
    assert running.guest.settle(PATIENCE).faults == 0


def test_what_does_not_arrive_in_time_is_lost_and_said_so(running: GuestRig) -> None:
    running.suspend()
    running.guest.start()
    running.port.wait_for(4 * layout.WINDOW)
    counts = running.guest.settle(0.0)
    assert counts == GuestCounts(sent=16, lost=16, failed=4)


def test_settle_of_a_guest_that_never_ran() -> None:
    rig = GuestRig()
    assert rig.guest.settle(0.0) == GuestCounts()
    rig.close()


# --- Bringing up, giving back ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "opcode",
    [
        Opcode.ALLOC_UAR,
        Opcode.ALLOC_PD,
        Opcode.CREATE_MKEY,
        Opcode.CREATE_EQ,
        Opcode.CREATE_CQ,
        Opcode.CREATE_QP,
        Opcode.RST2INIT_QP,
        Opcode.INIT2RTR_QP,
        Opcode.RTR2RTS_QP,
    ],
)
def test_a_vf_that_refuses_a_command_of_the_bring_up(opcode: Opcode) -> None:
    before = open_files()
    adapter = small_adapter(f"{opcode.name}:1:0x8")
    port = adapter.vfs[0]
    with pytest.raises(BringUpError, match=rf"^{opcode.name} failed: LIM \(0x8\), syndrome 0x"):
        WorkloadGuest.power_on(port, WorkloadConfig(pairs=1, active=1))
    # It leaves nothing: another guest finds the place free.
    assert open_files() == before
    port.vhca.reset()
    guest = WorkloadGuest.power_on(port, WorkloadConfig(pairs=1, active=1))
    guest.close()
    assert open_files() == before


def test_more_pairs_than_the_card_has() -> None:
    adapter = small_adapter()
    with pytest.raises(BringUpError, match="CREATE_QP failed: LIM"):
        WorkloadGuest.power_on(adapter.vfs[0], WorkloadConfig(pairs=128, active=1))


def test_a_place_that_is_taken() -> None:
    rig = GuestRig()
    before = open_files()
    with pytest.raises(OSError, match="EEXIST"):
        WorkloadGuest.power_on(rig.port, rig.config)
    with pytest.raises(OSError, match="EEXIST"):
        WorkloadGuest.attach(rig.port, rig.guest.memory.specs)
    assert open_files() == before
    # The guest that was there works on.
    rig.guest.step(4)
    assert rig.guest.settle(PATIENCE) == GuestCounts(sent=4, received=4)
    rig.close()


def test_closing_gives_back_memory_mappings_and_interrupts() -> None:
    before = open_files()
    rig = GuestRig()
    rig.guest.start()
    rig.port.wait_for(1)
    rig.close()
    rig.guest.close()
    assert open_files() == before
    assert not rig.port.port.vhca.interrupts
    with pytest.raises(OSError, match="EFAULT"):
        rig.port.port.dma.read(layout.BASE, 1)


# --- Memory that goes elsewhere -------------------------------------------------------------------


def device_of(rig: GuestRig) -> Mlx5VfioDevice:
    adapter = rig.adapter
    return Mlx5VfioDevice(
        adapter.pf, 0, name="vf", flr=lambda: adapter.flr(0), worker=InlineExecutor()
    )


class Moved:
    """What a guest and its VF have become on another card."""

    def __init__(self, rig: GuestRig, stream: bytes) -> None:
        self.adapter = small_adapter(log_max_qp=9, log_max_cq=10)
        port = self.adapter.vfs[0]
        self.device = Mlx5VfioDevice(
            self.adapter.pf, 0, name="target", flr=lambda: self.adapter.flr(0)
        )
        file = self.device.set_state(DeviceState.RESUMING)
        assert file is not None
        view = memoryview(stream)
        while view:
            view = view[file.write(view) :]
        self.guest = WorkloadGuest.attach(port, rig.guest.memory.specs)
        for mine, its in zip(self.guest.memory.regions, rig.guest.memory.regions, strict=True):
            mine.view[:] = its.view
        self.device.set_state(DeviceState.RUNNING)

    def close(self) -> None:
        self.guest.close()
        self.device.close()
        self.adapter.close()


@pytest.mark.parametrize("precopy", [True, False])
@pytest.mark.parametrize("under_way", [0, 1, 3, 8])
@pytest.mark.parametrize("mix", ["siwr", "s", "r"])
def test_a_guest_goes_on_where_its_memory_and_its_vf_are(
    precopy: bool, under_way: int, mix: str
) -> None:
    """With messages posted that the VF had not carried out when it stopped."""
    rig = GuestRig(pairs=3, active=2, mix=mix)
    device = device_of(rig)
    rig.guest.step(21)
    if precopy:
        file = device.set_state(DeviceState.PRE_COPY)
        rig.guest.step(10)
        device.set_state(DeviceState.PRE_COPY_P2P)
    else:
        rig.guest.step(10)
        device.set_state(DeviceState.RUNNING_P2P)
    rig.guest.step(under_way)
    assert rig.guest.counts() == GuestCounts(sent=31 + under_way, received=31)
    stopped = device.set_state(DeviceState.STOP_COPY)
    file = file if precopy else stopped
    assert file is not None
    moved = Moved(rig, read_all(file))
    # What was under way arrives there, and what is sent from there.
    moved.guest.step(30)
    counts = moved.guest.settle(PATIENCE)
    assert counts == GuestCounts(sent=61 + under_way, received=61 + under_way)
    moved.close()
    device.close()
    rig.close()


def test_a_vcpu_starts_from_a_copy_too() -> None:
    rig = GuestRig(pairs=2, active=2, rate=0)
    device = device_of(rig)
    rig.guest.start()
    rig.port.wait_for(100)
    rig.guest.pause()
    file = device.set_state(DeviceState.STOP_COPY)
    assert file is not None
    moved = Moved(rig, read_all(file))
    sent = rig.guest.counts().sent
    moved.guest.start()
    moved.guest.step(100)
    moved.guest.pause()
    counts = moved.guest.settle(PATIENCE)
    assert counts.faults == 0
    assert counts.sent == counts.received >= sent + 100
    moved.close()
    device.close()
    rig.close()


def test_a_memory_older_than_the_vf_is_noticed() -> None:
    """What a move that left out the guest's last writes would give."""
    rig = GuestRig(mix="s")
    rig.guest.step(4)
    old = rig.take(0, rig.config.region.length)
    rig.guest.step(3)
    rig.put(0, old)
    rig.guest.step(4)
    assert rig.guest.settle(0.0).faults
    rig.close()


@pytest.mark.parametrize(
    ("specs", "text"),
    [
        ([], "a guest needs memory"),
        ([RegionSpec(layout.BASE, 100)], "whole pages"),
        ([RegionSpec(0, 0)], "whole pages"),
    ],
)
def test_memory_that_no_guest_can_have(specs: list[RegionSpec], text: str) -> None:
    before = open_files()
    with pytest.raises(OSError, match=text):
        WorkloadGuest.attach(small_adapter().vfs[0], specs)
    assert open_files() == before


def test_memory_in_which_no_workload_is() -> None:
    rig = GuestRig()
    pages = rig.take(0, layout.PAGE)
    region = rig.config.region
    wrong_size = RegionSpec(region.iova, region.length + PAGE_SIZE)
    for spec, page, error, text in (
        (region, bytes(layout.PAGE), RuntimeError, "holds no workload"),
        (region, b"\xff" * layout.PAGE, RuntimeError, "holds no workload"),
        (region, pages[:8] + b"\xff" * 32, ValueError, "code of a mix|must be"),
        (wrong_size, pages, RuntimeError, "not that of a workload of 1 pairs"),
    ):
        adapter = small_adapter()
        guest = WorkloadGuest.attach(adapter.vfs[0], [spec])
        guest.memory.regions[0].view[: len(page)] = page
        calls: list[Callable[[], None]] = [guest.start, functools.partial(guest.step, 1)]
        for call in calls:
            with pytest.raises(error, match=text):
                call()
        guest.close()
    rig.close()


def test_a_vf_stopped_under_a_guest_that_runs_loses_nothing() -> None:
    rig = GuestRig(pairs=2, active=2, rate=0)
    rig.guest.start()
    rig.port.wait_for(50)
    rig.suspend(INITIATOR_ON, RESPONDER_ON)
    rig.resume(RESPONDER_OFF, INITIATOR_OFF)
    rig.port.wait_for(len(rig.port.sent) + 200)
    rig.guest.pause()
    assert rig.guest.settle(PATIENCE).faults == 0
    rig.close()
