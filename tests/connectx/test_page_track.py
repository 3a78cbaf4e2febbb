"""PAGE_TRACK objects: what a VF writes is marked, reported and cleared, and nothing else."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.connectx.page_track import Track
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.mlx5_abi import wqe
from precopy.mlx5_abi.commands import (
    GeneralObjectIn,
    Opcode,
    PageTrackIn,
    ResumeVhcaIn,
    SuspendVhcaIn,
)
from precopy.mlx5_abi.general_object import PageTrackState
from precopy.mlx5_abi.status import Status
from precopy.mlx5_abi.wqe import EventType
from tests.connectx.rig import PairRig, command
from tests.connectx.track_rig import PAGE, Message, TrackRig

BASE = 1 << 32
TRACKING, REPORTING, ERROR = PageTrackState


@pytest.fixture
def rig() -> TrackRig:
    return TrackRig()


def write(rig: TrackRig, address: int, length: int = 1) -> None:
    """A write by the VF's DMA, as far as those who listen can tell."""
    rig.vf.dma.wrote(address, length)


# --- Reports ----------------------------------------------------------------------------------


def test_written_pages_are_reported_once(rig: TrackRig) -> None:
    memory = bytearray(16 * PAGE)
    rig.vf.dma.map(BASE, memoryview(memory))
    number = rig.create([(BASE, 16 * PAGE)])
    rig.vf.dma.write(BASE + 3 * PAGE + 5, b"one")
    rig.vf.dma.write(BASE + 8 * PAGE - 1, b"two")
    rig.vf.dma.read(BASE + 12 * PAGE, 8)
    written = [BASE + n * PAGE for n in (3, 7, 8)]
    assert rig.report(number, BASE, 16 * PAGE) == [Message(TRACKING, written)]
    assert rig.report(number, BASE, 16 * PAGE) == [Message(TRACKING, [])]


def test_only_the_range_that_was_asked_for_is_reported_and_cleared(rig: TrackRig) -> None:
    number = rig.create([(BASE, 16 * PAGE)])
    write(rig, BASE, 16 * PAGE)
    middle = [BASE + n * PAGE for n in range(4, 8)]
    assert rig.pages(number, BASE + 4 * PAGE, 4 * PAGE) == middle
    rest = [BASE + n * PAGE for n in range(16) if BASE + n * PAGE not in middle]
    assert rig.pages(number, 0, 1 << 63) == rest


def test_a_mark_stays_where_only_a_part_of_its_page_was_asked_for(rig: TrackRig) -> None:
    number = rig.create([(BASE, 4 * PAGE)])
    write(rig, BASE, 4 * PAGE)
    assert rig.pages(number, BASE + 1, 2 * PAGE - 2) == [BASE, BASE + PAGE]
    assert rig.pages(number, BASE, 2 * PAGE) == [BASE, BASE + PAGE]
    assert rig.pages(number, BASE + 2 * PAGE, 1) == [BASE + 2 * PAGE]
    assert rig.pages(number, BASE, 4 * PAGE) == [BASE + 2 * PAGE, BASE + 3 * PAGE]
    assert rig.pages(number, BASE, 4 * PAGE) == []


def test_a_range_that_is_not_made_of_whole_pages_is_cleared_to_its_ends(rig: TrackRig) -> None:
    number = rig.create([(BASE + PAGE, 4 * PAGE)], log_page_size=16)
    write(rig, BASE + 5 * PAGE - 1)
    assert rig.pages(number, BASE + PAGE, 4 * PAGE) == [BASE]
    assert rig.pages(number, BASE + PAGE, 4 * PAGE) == []


def test_writes_outside_the_ranges_leave_no_mark(rig: TrackRig) -> None:
    number = rig.create([(BASE + PAGE, PAGE), (BASE + 4 * PAGE, PAGE)])
    write(rig, BASE, PAGE)
    write(rig, BASE + 2 * PAGE, 2 * PAGE)
    write(rig, BASE + 5 * PAGE, 100 * PAGE)
    assert rig.pages(number, 0, 1 << 63) == []
    write(rig, BASE, 6 * PAGE)
    assert rig.pages(number, 0, 1 << 63) == [BASE + PAGE, BASE + 4 * PAGE]


def test_a_write_before_the_object_or_after_it_is_not_known(rig: TrackRig) -> None:
    write(rig, BASE)
    number = rig.create([(BASE, PAGE)])
    assert rig.pages(number, BASE, PAGE) == []
    write(rig, BASE)
    assert rig.destroy(number).status == Status.OK
    number = rig.create([(BASE, PAGE)])
    assert rig.pages(number, BASE, PAGE) == []


def test_pages_at_the_end_of_64_bits(rig: TrackRig) -> None:
    top = 1 << 64
    number = rig.create([(top - 4 * PAGE, 4 * PAGE)])
    write(rig, top - 2 * PAGE, 2 * PAGE)
    assert rig.pages(number, top - 4 * PAGE, 4 * PAGE) == [top - 2 * PAGE, top - PAGE]
    assert rig.pages(number, top - 4 * PAGE, 4 * PAGE) == []


def test_messages_are_full_and_the_last_says_so(rig: TrackRig) -> None:
    number = rig.create([(BASE, 2000 * PAGE)])
    write(rig, BASE, 1024 * PAGE)
    found = rig.report(number, BASE, 2000 * PAGE)
    assert [(message.state, len(message.pages)) for message in found] == [
        (REPORTING, 512),
        (TRACKING, 512),
    ]
    write(rig, BASE, 1025 * PAGE)
    found = rig.report(number, BASE, 2000 * PAGE)
    assert [(message.state, len(message.pages)) for message in found] == [
        (REPORTING, 512),
        (REPORTING, 512),
        (TRACKING, 1),
    ]


def test_an_empty_report_of_no_bytes(rig: TrackRig) -> None:
    number = rig.create([(BASE, PAGE)])
    write(rig, BASE)
    assert rig.report(number, BASE, 0) == [Message(TRACKING, [])]
    assert rig.pages(number, BASE, PAGE) == [BASE]


#: The logarithm of a page size, ranges, and writes (True) and reports in turn; in units of 512 bytes.
Scene = tuple[int, list[tuple[int, int]], list[tuple[bool, int, int]]]


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    log_page = draw(st.integers(12, 17))
    cuts = sorted(draw(st.sets(st.integers(0, 2000), min_size=2, max_size=40)))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    steps = st.tuples(st.booleans(), st.integers(0, 2000), st.integers(1, 300))
    return log_page, ranges, draw(st.lists(steps, min_size=1, max_size=25))


@given(scenes())
def test_what_is_reported_is_what_was_written(scene: Scene) -> None:
    hold_to_model(scene)


def hold_to_model(scene: Scene) -> None:
    unit = 512
    log_page, ranges, steps = scene
    rig = TrackRig(log_entries=1, log_cq=1, page_track_ranges=64)
    number = rig.create(
        [(BASE + low * unit, (high - low) * unit) for low, high in ranges], log_page_size=log_page
    )
    per_page = (1 << log_page) // unit
    tracked = {n for low, high in ranges for n in range(low, high)}
    marks: set[int] = set()
    for is_write, first, count in [*steps, (False, 0, 4096)]:
        asked = range(first, first + count)
        if is_write:
            write(rig, BASE + first * unit, count * unit)
            marks |= {n // per_page for n in asked if n in tracked}
            continue
        expected = {n // per_page for n in asked} & marks
        assert rig.pages(number, BASE + first * unit, count * unit) == [
            BASE + (page << log_page) for page in sorted(expected)
        ]
        marks -= {
            page
            for page in expected
            if tracked & set(range(page * per_page, (page + 1) * per_page)) <= set(asked)
        }


def test_every_write_of_a_working_vf_is_reported(rig: TrackRig) -> None:
    config = WorkloadConfig(pairs=4, active=4, rate=0, size=9000, mix="siwr")
    guest = WorkloadGuest.power_on(rig.vf, config)
    region = config.region
    number = rig.create([(region.iova, region.length)])
    written: set[int] = set()
    count = 0
    many = threading.Event()

    def model(address: int, length: int) -> None:
        nonlocal count
        written.update(range(address // PAGE, (address + length - 1) // PAGE + 1))
        count += 1
        if not count % 200:
            many.set()

    rig.vf.dma.listen(model)
    guest.start()
    reported: set[int] = set()
    for _ in range(5):
        assert many.wait(60)
        many.clear()
        reported |= set(rig.pages(number, *region))
    guest.pause()
    reported |= set(rig.pages(number, *region))
    faults = guest.counts().faults
    guest.close()
    assert faults == 0
    assert len(written) > 20
    assert reported == {page * PAGE for page in written}
    assert rig.pages(number, *region) == []


def test_writes_beside_reports_are_never_lost(rig: TrackRig) -> None:
    number = rig.create([(BASE, 4096 * PAGE)])
    done = threading.Event()

    def work() -> None:
        for n in range(40_000):
            write(rig, BASE + n * 7919 % 4096 * PAGE)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    reported: set[int] = set()
    while not done.is_set():
        reported |= set(rig.pages(number, BASE + PAGE // 2, 4095 * PAGE))
    thread.join()
    reported |= set(rig.pages(number, BASE, 4096 * PAGE))
    assert reported == {BASE + n * PAGE for n in range(4096)}
    assert rig.pages(number, BASE, 4096 * PAGE) == []


# --- A host that does not keep up -------------------------------------------------------------


def test_a_report_waits_for_receive_entries_and_goes_on_at_a_cq_doorbell(rig: TrackRig) -> None:
    number = rig.create([(BASE, 2500 * PAGE)])
    write(rig, BASE, 2500 * PAGE)
    rig.post(2)
    assert rig.modify(number, BASE, 2500 * PAGE).status == Status.OK
    assert [message.state for message in rig.messages()] == [REPORTING, REPORTING]
    assert rig.state(number) is REPORTING
    assert rig.messages() == []
    rig.post(1)
    assert rig.messages() == []
    rig.arm()
    assert [message.state for message in rig.messages()] == [REPORTING]
    rig.post(2)
    assert rig.state(number) is REPORTING
    found = rig.messages()
    assert [message.state for message in found] == [REPORTING, TRACKING]
    assert len(found[-1].pages) == 2500 - 4 * 512
    assert rig.state(number) is TRACKING


def test_an_armed_cq_tells_of_a_message(rig: TrackRig) -> None:
    number = rig.create([(BASE, PAGE)])
    rig.post()
    rig.arm()
    assert rig.interrupts == []
    rig.modify(number, BASE, PAGE)
    assert len(rig.interrupts) == 1


def test_a_handler_that_rings_from_inside_gets_each_message_once(rig: TrackRig) -> None:
    number = rig.create([(BASE, 2000 * PAGE)])
    write(rig, BASE, 2000 * PAGE)
    rings = iter([rig.arm])
    rig.pf.set_interrupt(3, lambda: next(rings, lambda: None)())
    rig.post(4)
    rig.arm()
    rig.modify(number, BASE, 2000 * PAGE)
    found = rig.messages()
    assert [message.state for message in found] == [REPORTING] * 3 + [TRACKING]
    pages = [page for message in found for page in message.pages]
    assert pages == [BASE + n * PAGE for n in range(2000)]
    assert next(rings, None) is None


def test_marks_of_the_time_of_a_report_are_in_it_or_in_the_next(rig: TrackRig) -> None:
    number = rig.create([(BASE, 2000 * PAGE)])
    write(rig, BASE, 2000 * PAGE)
    rig.post(1)
    rig.modify(number, BASE, 2000 * PAGE)
    write(rig, BASE)
    write(rig, BASE + 1999 * PAGE)
    while rig.state(number) is REPORTING:
        rig.messages()
        rig.post(1)
    rig.messages()
    assert rig.pages(number, BASE, 2000 * PAGE) == [BASE, BASE + 1999 * PAGE]


def test_a_report_under_way_refuses_another_and_may_be_destroyed(rig: TrackRig) -> None:
    number = rig.create([(BASE, PAGE)])
    assert rig.modify(number, BASE, PAGE).status == Status.OK
    assert rig.modify(number, BASE, PAGE).status == Status.BAD_RES_STATE
    assert rig.destroy(number).status == Status.OK
    rig.post(1)
    rig.arm()
    assert rig.messages() == []


# --- What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, Status.OK),
        ({"vhca_id": 0x100}, Status.BAD_RES),
        ({"vhca_id": 0x777}, Status.BAD_RES),
        ({"num_ranges": 0}, Status.BAD_PARAM),
        ({"num_ranges": 2}, Status.BAD_INP_LEN),
        ({"num_ranges": 9}, Status.BAD_PARAM),
        ({"track_type": 0}, Status.BAD_PARAM),
        ({"state": 1}, Status.BAD_PARAM),
        ({"log_addr_space_size": 11}, Status.BAD_PARAM),
        ({"log_addr_space_size": 64}, Status.BAD_PARAM),
        ({"log_addr_space_size": 13}, Status.BAD_PARAM),
        ({"log_page_size": 11}, Status.BAD_PARAM),
        ({"log_page_size": 31}, Status.BAD_PARAM),
        ({"log_msg_size": 11}, Status.BAD_PARAM),
        ({"log_msg_size": 21}, Status.BAD_PARAM),
        ({"reporting_qpn": 200}, Status.BAD_RES),
    ],
)
def test_objects_are_checked(rig: TrackRig, fields: dict[str, int], status: Status) -> None:
    inbox = rig.inbox([(BASE, 4 * PAGE)], **fields)
    assert command(rig.pf, Opcode.CREATE_GENERAL_OBJECT, inbox).status == status


@pytest.mark.parametrize(
    "ranges",
    [
        [(BASE, 0)],
        [(BASE, 2 * PAGE), (BASE + PAGE, PAGE)],
        [(BASE + PAGE, PAGE), (BASE, 2 * PAGE)],
        [((1 << 64) - PAGE, PAGE + 1)],
    ],
)
def test_ranges_are_checked(rig: TrackRig, ranges: list[tuple[int, int]]) -> None:
    inbox = rig.inbox(ranges)
    assert command(rig.pf, Opcode.CREATE_GENERAL_OBJECT, inbox).status == Status.BAD_PARAM


def test_the_reporting_qp_has_to_be_able_to_send(rig: TrackRig) -> None:
    inbox = rig.inbox([(BASE, PAGE)], reporting_qpn=rig.host)
    out = command(rig.pf, Opcode.CREATE_GENERAL_OBJECT, inbox)
    assert out.status == Status.BAD_QP_STATE


def test_a_card_without_page_tracking_has_no_objects() -> None:
    rig = TrackRig(page_track=False)
    out = command(rig.pf, Opcode.CREATE_GENERAL_OBJECT, rig.inbox([(BASE, PAGE)]))
    assert out.status == Status.BAD_PARAM


def test_objects_run_out(rig: TrackRig) -> None:
    numbers = [rig.create([(BASE, PAGE)]) for _ in range(32)]
    assert len(set(numbers)) == 32
    inbox = rig.inbox([(BASE, PAGE)])
    assert command(rig.pf, Opcode.CREATE_GENERAL_OBJECT, inbox).status == Status.LIM
    assert rig.destroy(numbers[5]).status == Status.OK
    assert rig.create([(BASE, PAGE)]) not in numbers


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, Status.OK),
        ({"modify_field_select": 1}, Status.BAD_PARAM),
        ({"modify_field_select": 2}, Status.BAD_PARAM),
        ({"state": 0}, Status.BAD_PARAM),
        ({"state": 2}, Status.BAD_PARAM),
        ({"range_start_address": (1 << 64) - 1, "length": 2}, Status.BAD_PARAM),
    ],
)
def test_reports_are_checked(rig: TrackRig, fields: dict[str, int], status: Status) -> None:
    number = rig.create([(BASE, PAGE)])
    assert rig.modify(number, BASE, PAGE, **fields).status == status
    assert rig.state(number) is (REPORTING if status == Status.OK else TRACKING)


def test_objects_that_are_not_there(rig: TrackRig) -> None:
    for number in (0, 1, 0xFFFF_FFFF):
        assert rig.modify(number, BASE, PAGE).status == Status.BAD_RES
        assert rig.query(number).status == Status.BAD_RES
        assert rig.destroy(number).status == Status.BAD_RES


def test_only_the_pf_has_objects_and_only_of_this_type(rig: TrackRig) -> None:
    inbox = rig.inbox([(BASE, PAGE)])
    assert command(rig.vf, Opcode.CREATE_GENERAL_OBJECT, inbox).status == Status.BAD_OP
    inbox.obj_type = 0x47
    assert command(rig.pf, Opcode.CREATE_GENERAL_OBJECT, inbox).status == Status.BAD_PARAM
    asked = GeneralObjectIn(obj_type=0x13, obj_id=1)
    assert command(rig.pf, Opcode.QUERY_GENERAL_OBJECT, asked).status == Status.BAD_PARAM


def test_short_commands(rig: TrackRig) -> None:
    inbox = bytes(rig.inbox([(BASE, PAGE)], num_ranges=1).buf)
    for length in (16, PageTrackIn.SIZE - 1, PageTrackIn.SIZE, PageTrackIn.SIZE + 15):
        out = rig.pf.execute(Opcode.CREATE_GENERAL_OBJECT.to_bytes(2, "big") + inbox[2:length])
        assert out[0] == Status.BAD_INP_LEN


def test_query_shows_the_object(rig: TrackRig) -> None:
    number = rig.create([(BASE, 4 * PAGE)], log_page_size=14)
    out = rig.query(number)
    shown = out.page_track  # type: ignore[attr-defined]
    assert out.obj_id == number  # type: ignore[attr-defined]
    assert (shown.state, shown.vhca_id, shown.log_page_size, shown.reporting_qpn) == (
        TRACKING,
        rig.vf.vhca.vhca_id,
        14,
        rig.fw,
    )


# --- Errors -----------------------------------------------------------------------------------


def in_error(rig: TrackRig, number: int) -> None:
    assert rig.state(number) is ERROR
    assert rig.modify(number, BASE, PAGE).status == Status.BAD_SYS_STATE
    assert rig.changed() == [number]
    assert rig.destroy(number).status == Status.OK


def test_no_room_for_a_mark_is_an_error_that_is_told(rig: TrackRig) -> None:
    rig.adapter.firmware.page_tracks.max_blocks = 2
    number = rig.create([(BASE, 1 << 40)])
    write(rig, BASE)
    write(rig, BASE + (1 << 30))
    assert rig.state(number) is TRACKING
    write(rig, BASE + (1 << 31))
    in_error(rig, number)


def test_reported_marks_make_room(rig: TrackRig) -> None:
    rig.adapter.firmware.page_tracks.max_blocks = 2
    number = rig.create([(BASE, 1 << 40)])
    for n in range(20):
        write(rig, BASE + (n << 30))
        write(rig, BASE + (n << 30) + (1 << 28))
        assert len(rig.pages(number, BASE, 1 << 40)) == 2
    assert rig.state(number) is TRACKING


def test_no_room_in_the_middle_of_a_report_ends_it(rig: TrackRig) -> None:
    rig.adapter.firmware.page_tracks.max_blocks = 1
    number = rig.create([(BASE, 1 << 40)])
    write(rig, BASE, 1000 * PAGE)
    rig.modify(number, BASE, 1 << 40)
    write(rig, BASE + (1 << 31))
    write(rig, BASE + (1 << 32))
    rig.post(4)
    rig.arm()
    assert rig.messages() == []
    in_error(rig, number)


def test_a_full_cq_is_an_error_of_cq_and_object() -> None:
    rig = TrackRig(log_entries=2, log_cq=1)
    number = rig.create([(BASE, 2000 * PAGE)])
    write(rig, BASE, 2000 * PAGE)
    rig.post(4)
    rig.modify(number, BASE, 2000 * PAGE)
    assert len(rig.messages()) == 2
    assert rig.state(number) is ERROR
    kinds = [kind for kind, _ in rig.events()]
    assert kinds == [EventType.CQ_ERROR, EventType.OBJECT_CHANGE]


@pytest.mark.parametrize("which", ["fw", "host"])
@pytest.mark.parametrize("opcode", [Opcode.MODIFY_2ERR_QP, Opcode.DESTROY_QP])
def test_a_qp_that_is_gone_is_an_error_of_the_object(
    rig: TrackRig, which: str, opcode: Opcode
) -> None:
    number = rig.create([(BASE, PAGE)])
    rig.ok(opcode, qpn=getattr(rig, which))
    rig.modify(number, BASE, PAGE)
    in_error(rig, number)


def test_a_receive_entry_that_is_too_small_is_an_error_of_the_object(rig: TrackRig) -> None:
    number = rig.create([(BASE, 4 * PAGE)])
    write(rig, BASE, 4 * PAGE)
    rig.post(1, length=16)
    rig.modify(number, BASE, 4 * PAGE)
    in_error(rig, number)


def test_a_receive_entry_under_no_key_is_an_error_of_the_object(rig: TrackRig) -> None:
    number = rig.create([(BASE, PAGE)])
    write(rig, BASE)
    rig.post(1)
    rig.ok(Opcode.DESTROY_MKEY, mkey_index=rig.mkey >> 8)
    rig.modify(number, BASE, PAGE)
    in_error(rig, number)


def test_a_doorbell_record_that_is_not_mapped_is_an_error_of_the_object(rig: TrackRig) -> None:
    number = rig.create([(BASE, PAGE)])
    rig.pf.dma.unmap(1 << 20)
    rig.modify(number, BASE, PAGE)
    assert rig.state(number) is ERROR


# --- What becomes of the VF and of the PF -----------------------------------------------------


def test_a_reset_of_the_vf_does_not_end_tracking(rig: TrackRig) -> None:
    number = rig.create([(BASE, 4 * PAGE)])
    write(rig, BASE)
    rig.adapter.flr(0)
    write(rig, BASE + PAGE)
    assert rig.pages(number, BASE, 4 * PAGE) == [BASE, BASE + PAGE]


def test_a_suspended_vf_can_be_reported(rig: TrackRig) -> None:
    number = rig.create([(BASE, 4 * PAGE)])
    write(rig, BASE)
    vhca_id = rig.vf.vhca.vhca_id
    for kind in (0, 1):
        rig.ok(Opcode.SUSPEND_VHCA, SuspendVhcaIn(vhca_id=vhca_id, op_mod=kind))
    assert rig.pages(number, BASE, 4 * PAGE) == [BASE]
    for kind in (0, 1):
        rig.ok(Opcode.RESUME_VHCA, ResumeVhcaIn(vhca_id=vhca_id, op_mod=kind))
    write(rig, BASE + PAGE)
    assert rig.pages(number, BASE, 4 * PAGE) == [BASE + PAGE]


def test_a_reset_of_the_pf_ends_tracking(rig: TrackRig) -> None:
    number = rig.create([(BASE, PAGE)])
    rig.pf.vhca.reset()
    assert rig.query(number).status == Status.BAD_RES


def test_vfs_are_tracked_apart() -> None:
    rig = TrackRig(num_vfs=2)
    other = rig.adapter.vfs[1]
    mine = rig.create([(BASE, 4 * PAGE)])
    its = rig.create([(BASE, 4 * PAGE)], vhca_id=other.vhca.vhca_id)
    write(rig, BASE)
    other.dma.wrote(BASE + PAGE, 1)
    assert rig.pages(mine, BASE, 4 * PAGE) == [BASE]
    assert rig.pages(its, BASE, 4 * PAGE) == [BASE + PAGE]


def test_two_objects_of_one_vf_have_marks_of_their_own(rig: TrackRig) -> None:
    fine = rig.create([(BASE, 64 * PAGE)])
    coarse = rig.create([(BASE, 64 * PAGE)], log_page_size=16)
    write(rig, BASE + 17 * PAGE)
    assert rig.pages(fine, BASE, 64 * PAGE) == [BASE + 17 * PAGE]
    assert rig.pages(coarse, BASE, 64 * PAGE) == [BASE + 16 * PAGE]


@pytest.mark.parametrize("opcode", [wqe.WqeOpcode.SEND, wqe.WqeOpcode.RDMA_WRITE])
def test_completions_events_and_payload_are_writes(opcode: int) -> None:
    pair = PairRig()
    region = pair.config.region
    seen: list[int] = []
    pair.port.dma.listen(lambda address, length: seen.append(address // PAGE))
    pair.receive_here()
    pair.arm()
    remote = None if opcode == wqe.WqeOpcode.SEND else (pair.address(pair.its), pair.mkey)
    pair.send(b"payload", opcode, remote=remote)
    pages = {at - region.iova // PAGE for at in seen}
    assert {pair.its // PAGE, pair.at // PAGE, 1} <= pages
    pair.close()


def test_a_dropped_mark_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model above can tell: an object that forgets every third write fails it."""
    mark = Track.mark
    scene: Scene = (12, [(0, 800)], [(True, 8 * n, 1) for n in range(9)])
    hold_to_model(scene)

    def forgetful(track: Track, address: int, length: int) -> None:
        if address // PAGE % 3:
            mark(track, address, length)

    monkeypatch.setattr(Track, "mark", forgetful)
    with pytest.raises(AssertionError):
        hold_to_model(scene)
