"""DMA logging through the driver: on the software adapter, and on a firmware that misbehaves."""

import errno
import threading
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.connectx import Adapter, InlineExecutor
from precopy.connectx.config import AdapterConfig
from precopy.connectx.slots import FLAGS_BYTE, SlotFlags
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5.page_tracker import PageTracker
from precopy.mlx5_abi.commands import (
    COMMANDS,
    CreateCqIn,
    CreateQpIn,
    ModifyQpIn,
    Opcode,
    PageTrackIn,
)
from precopy.mlx5_abi.general_object import RANGE
from precopy.mlx5_abi.status import Status
from precopy.mlx5_abi.wqe import CqeOpcode, EventType
from precopy.vfio.dirty import merge_ranges
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import Feature, FeatureFlags, LoggingRange
from tests.mlx5.fake_firmware import FakeFirmware
from tests.mlx5.fake_tracker import NUMBER, FakeTracker, all_of, nothing

PAGE = 4096
BASE = 1 << 32


class Log:
    """A VF of a software adapter, whose driver logs; bitmaps come as sets of bits."""

    def __init__(self, **options: object) -> None:
        config = {"log_max_qp": 8, "log_max_cq": 8} | options
        self.adapter = Adapter(
            AdapterConfig(**config),  # type: ignore[arg-type]
            executor=InlineExecutor(),
        )
        self.vf = self.adapter.vfs[0]
        self.device = self.open(0)
        self.commands: list[Opcode] = []
        self.inboxes: dict[Opcode, list[bytes]] = {}
        self.adapter.firmware.trace = self._trace

    def open(self, index: int) -> Mlx5VfioDevice:
        return Mlx5VfioDevice(
            self.adapter.pf, index, name=f"vf{index}", flr=lambda: self.adapter.flr(index)
        )

    def _trace(self, function: int, inbox: bytes, outbox: bytes | None) -> None:
        opcode = Opcode(int.from_bytes(inbox[:2], "big"))
        self.commands.append(opcode)
        self.inboxes.setdefault(opcode, []).append(inbox)

    def taken(self) -> list[Opcode]:
        commands, self.commands = self.commands, []
        return commands

    def start(self, *pages: tuple[int, int], page_size: int = PAGE) -> int:
        """Log ranges of pages, counted from ``BASE``."""
        ranges = [LoggingRange(BASE + first * PAGE, count * PAGE) for first, count in pages]
        return self.device.log_start(ranges, page_size)

    def write(self, address: int, length: int = 1) -> None:
        """A write by the VF's DMA, as far as those who listen can tell."""
        self.vf.dma.wrote(address, length)

    def report(self, iova: int, length: int, page_size: int = PAGE) -> set[int]:
        return report(self.device, iova, length, page_size)

    def pages(self, count: int) -> set[int]:
        return self.report(BASE, count * PAGE)

    def leaks(self) -> dict[str, object]:
        """What the driver has not given back to the PF."""
        pf = self.adapter.pf
        found: dict[str, object] = {
            name: pf.vhca.table(name).flagged_slots(byte, SlotFlags.IN_USE).tolist()
            for name, byte in FLAGS_BYTE.items()
        }
        found["mappings"] = pf.dma._table[0]
        found["interrupts"] = pf.vhca.interrupts
        return {name: what for name, what in found.items() if what}


def report(device: Mlx5VfioDevice, iova: int, length: int, page_size: int = PAGE) -> set[int]:
    """The bits of a report; nothing around the bitmap changes."""
    count = -(-length // page_size)
    room = bytearray(b"\xc3" + bytes(-(-count // 8)) + b"\xc3")
    device.log_report(iova, length, page_size, memoryview(room)[1:-1])
    assert room[0] == room[-1] == 0xC3
    found = {
        8 * n + bit for n, byte in enumerate(room[1:-1]) for bit in range(8) if byte >> bit & 1
    }
    assert all(bit < count for bit in found)
    return found


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.device.close()
    assert log.leaks() == {}
    log.adapter.close()


def raises(code: int, function: Callable[..., object], *arguments: object) -> None:
    with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
        function(*arguments)
    assert caught.value.errno == code


# --- The contract -----------------------------------------------------------------------------


def test_features(log: Log) -> None:
    for feature, method in (
        (Feature.DMA_LOGGING_START, FeatureFlags.SET),
        (Feature.DMA_LOGGING_STOP, FeatureFlags.SET),
        (Feature.DMA_LOGGING_REPORT, FeatureFlags.GET),
    ):
        assert log.device.probe(feature, method)


@pytest.mark.parametrize("why", ["old card", "no doorbells"])
def test_where_dma_cannot_be_logged(why: str) -> None:
    if why == "old card":
        device = Log(page_track=False).device
    else:
        device = Mlx5VfioDevice(FakeFirmware(), 0, name="vf", flr=lambda: None)
    assert not device.probe(Feature.DMA_LOGGING_START)
    raises(errno.ENOTTY, device.log_start, [LoggingRange(0, PAGE)], PAGE)
    raises(errno.ENOTTY, device.log_stop)
    raises(errno.ENOTTY, device.log_report, 0, PAGE, PAGE, memoryview(bytearray(1)))
    device.close()


def test_what_was_written_is_reported_once(log: Log) -> None:
    memory = bytearray(64 * PAGE)
    log.vf.dma.map(BASE, memoryview(memory))
    assert log.start((0, 64)) == PAGE
    log.vf.dma.write(BASE + 3 * PAGE, b"x")
    log.vf.dma.write(BASE + 41 * PAGE - 1, b"xy")
    log.vf.dma.read(BASE, 64 * PAGE)
    assert log.pages(64) == {3, 40, 41}
    assert log.pages(64) == set()
    log.device.log_stop()
    log.vf.dma.write(BASE, b"x")
    log.start((0, 64))
    assert log.pages(64) == set()


@pytest.mark.parametrize(
    ("ranges", "page_size", "code"),
    [
        ([], PAGE, errno.EINVAL),
        ([(n * 2 * PAGE, PAGE) for n in range(257)], PAGE, errno.E2BIG),
        ([(1, PAGE)], PAGE, errno.EINVAL),
        ([(0, PAGE - 1)], PAGE, errno.EINVAL),
        ([(0, 0)], PAGE, errno.EINVAL),
        ([(0, PAGE)], 0, errno.EINVAL),
        ([(0, PAGE)], 3, errno.EINVAL),
        ([((1 << 64) - PAGE, PAGE)], PAGE, errno.EOVERFLOW),
        ([(0, 2 * PAGE), (PAGE, PAGE)], PAGE, errno.EINVAL),
    ],
)
def test_ranges_that_are_refused(
    log: Log, ranges: list[tuple[int, int]], page_size: int, code: int
) -> None:
    asked = [LoggingRange(*each) for each in ranges]
    raises(code, log.device.log_start, asked, page_size)
    assert log.taken() == []
    raises(errno.EINVAL, log.pages, 1)


def test_more_than_can_be_tracked_is_not_supported() -> None:
    fake = FakeTracker()
    device = Mlx5VfioDevice(fake, 0, name="vf", flr=lambda: None)
    fake.log.clear()
    for ranges in ([(0, 2048)], [(0, (1 << 40) + PAGE)], [(0, 1 << 39), (1 << 50, 1 << 40)]):
        asked = [LoggingRange(*each) for each in ranges]
        raises(errno.EOPNOTSUPP, device.log_start, asked, 2048)
    assert fake.log == []
    assert device.log_start([LoggingRange(0, 1 << 40)], PAGE) == PAGE
    device.close()


def test_a_second_log_is_refused_and_the_first_one_undisturbed(log: Log) -> None:
    log.start((0, 8))
    log.write(BASE)
    raises(errno.EINVAL, log.start, (0, 16))
    log.write(BASE + PAGE)
    assert log.pages(8) == {0, 1}


def test_stop_without_a_log_does_nothing_and_a_report_is_refused(log: Log) -> None:
    log.device.log_stop()
    raises(errno.EINVAL, log.pages, 1)
    log.start((0, 8))
    log.device.log_stop()
    log.device.log_stop()
    raises(errno.EINVAL, log.pages, 1)


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "bytes_", "code"),
    [
        (BASE, PAGE, 2048, 1, errno.EINVAL),
        (BASE, PAGE, 0, 1, errno.EINVAL),
        (BASE, PAGE, 3 * PAGE, 1, errno.EINVAL),
        ((1 << 64) - PAGE, PAGE, PAGE, 1, errno.EOVERFLOW),
        (BASE, 9 * PAGE, PAGE, 1, errno.EFAULT),
    ],
)
def test_reports_that_are_refused_leave_every_mark(
    log: Log, iova: int, length: int, page_size: int, bytes_: int, code: int
) -> None:
    log.start((0, 8))
    log.write(BASE, 8 * PAGE)
    bitmap = memoryview(bytearray(bytes_))
    raises(code, log.device.log_report, iova, length, page_size, bitmap)
    raises(errno.EFAULT, log.device.log_report, BASE, PAGE, PAGE, memoryview(bytes(8)))
    assert log.pages(8) == set(range(8))


def test_a_report_of_nothing_sets_nothing(log: Log) -> None:
    log.start((0, 8))
    log.write(BASE, 8 * PAGE)
    assert log.report(BASE, 0) == set()
    assert log.report(BASE + (1 << 40), 8 * PAGE) == set()
    assert log.pages(8) == set(range(8))


def test_bits_that_were_set_stay_set(log: Log) -> None:
    log.start((0, 8))
    log.write(BASE + 2 * PAGE)
    bitmap = bytearray(b"\x41")
    log.device.log_report(BASE, 8 * PAGE, PAGE, memoryview(bitmap))
    assert bitmap == b"\x45"


@pytest.mark.parametrize(
    ("hint", "chosen"),
    [
        (1, PAGE),
        (512, PAGE),
        (PAGE, PAGE),
        (1 << 16, 1 << 16),
        (1 << 30, 1 << 30),
        (1 << 35, 1 << 30),
    ],
)
def test_the_page_size_is_a_hint(log: Log, hint: int, chosen: int) -> None:
    assert log.device.log_start([LoggingRange(0, max(hint, PAGE))], hint) == chosen


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100, 256])
def test_numbers_of_ranges(log: Log, count: int) -> None:
    """Pages of every range, in any order, and none of the gaps that had to be closed."""
    ranges = [LoggingRange(BASE + 3 * n * PAGE, PAGE) for n in range(count)]
    assert log.device.log_start(ranges[::-1], PAGE) == PAGE
    (inbox,) = log.inboxes[Opcode.CREATE_GENERAL_OBJECT]
    assert PageTrackIn(inbox).page_track.num_ranges == min(count, 8)
    log.write(BASE, 3 * count * PAGE)
    assert log.pages(3 * count) == set(range(0, 3 * count, 3))
    assert log.pages(3 * count) == set()


def test_a_log_of_everything(log: Log) -> None:
    top = (1 << 62) - PAGE
    log.device.log_start([LoggingRange(0, PAGE), LoggingRange(1 << 50, 1 << 60)], PAGE)
    log.write(0)
    log.write(1 << 51)
    assert log.report(0, PAGE) == {0}
    assert log.report(1 << 51, 2 * PAGE) == {0}
    assert log.report(top, PAGE) == set()


#: In units of 512 bytes: ranges that end in a multiple of the hint, writes (True) and reports in turn.
UNIT = 512
Step = tuple[bool, int, int, int]
Scene = tuple[int, int, list[LoggingRange], list[Step]]


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    hint = 1 << draw(st.integers(9, 17))
    span = (1 << 20) // hint
    cuts = sorted(draw(st.sets(st.integers(0, span), min_size=2, max_size=30)))
    ranges = [
        LoggingRange(BASE + low * hint, (high - low) * hint)
        for low, high in zip(cuts[::2], cuts[1::2], strict=False)
    ]
    steps = st.tuples(st.booleans(), st.integers(0, 2050), st.integers(0, 400), st.integers(12, 18))
    limit = draw(st.integers(1, 8))
    return limit, hint, ranges, draw(st.lists(steps, min_size=1, max_size=20))


@given(scenes())
def test_every_bit_is_what_was_written(scene: Scene) -> None:
    hold_to_model(scene)


def hold_to_model(scene: Scene) -> None:
    limit, hint, ranges, steps = scene
    log = Log(page_track_ranges=limit)
    if sum(length for _, length in merge_ranges(ranges, limit)) <= 2048:
        raises(errno.EOPNOTSUPP, log.device.log_start, ranges, hint)
        return
    tracked = log.device.log_start(ranges, hint) // UNIT
    assert tracked == max(hint, PAGE) // UNIT

    def units(found: list[LoggingRange]) -> set[int]:
        return {
            n
            for iova, size in found
            for n in range((iova - BASE) // UNIT, (iova - BASE + size) // UNIT)
        }

    asked_for, watched = units(ranges), units(merge_ranges(ranges, limit))
    dirty: set[int] = set()
    for is_write, first, count, log_page in [*steps, (False, 0, 4096, 12)]:
        window = range(first, first + count)
        iova, length, page = BASE + first * UNIT, count * UNIT, 1 << log_page
        if is_write and count:
            log.write(iova, length)
            for number in {n // tracked for n in window if n in watched}:
                dirty |= set(range(number * tracked, (number + 1) * tracked))
        elif not is_write:
            expected = {(n - first) * UNIT // page for n in dirty & asked_for & set(window)}
            assert log.report(iova, length, page) == expected
            dirty -= set(window)
    log.device.close()
    assert log.leaks() == {}


def test_a_dropped_write_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model above can tell: a VF whose listener forgets some writes fails it."""
    steps: list[Step] = [(True, 8 * n, 1, 12) for n in range(9)]
    scene: Scene = (8, PAGE, [LoggingRange(BASE, 64 * PAGE)], steps)
    hold_to_model(scene)
    write = Log.write

    def forgetful(log: Log, address: int, length: int = 1) -> None:
        if address // PAGE % 3:
            write(log, address, length)

    monkeypatch.setattr(Log, "write", forgetful)
    with pytest.raises(AssertionError):
        hold_to_model(scene)


# --- With a VF that works and migrates --------------------------------------------------------


def test_a_log_through_every_state_of_a_migration() -> None:
    log = Log()
    config = WorkloadConfig(pairs=4, active=4, rate=0, size=3000)
    guest = WorkloadGuest.power_on(log.vf, config)
    region = config.region
    log.device.log_start([LoggingRange(region.iova, region.length)], PAGE)
    written: set[int] = set()
    reported: set[int] = set()
    many = threading.Event()
    count = 0

    def model(address: int, length: int) -> None:
        nonlocal count
        first, last = address - region.iova, address - region.iova + length - 1
        written.update(range(first // PAGE, last // PAGE + 1))
        count += 1
        if not count % 200:
            many.set()

    def look() -> None:
        reported.update(log.report(region.iova, region.length))

    log.vf.dma.listen(model)
    guest.start()
    running = (DeviceState.RUNNING, DeviceState.PRE_COPY)
    for state in (
        DeviceState.PRE_COPY,
        DeviceState.PRE_COPY_P2P,
        DeviceState.STOP_COPY,
        DeviceState.STOP,
        DeviceState.RUNNING_P2P,
        DeviceState.RUNNING,
    ):
        file = log.device.set_state(state)
        many.clear()
        if state in running:
            assert many.wait(60)
        look()
        if file is not None:
            file.close()
    guest.pause()
    look()
    faults = guest.counts().faults
    guest.close()
    assert faults == 0
    assert len(written) > 10
    assert reported == written
    log.device.close()
    assert log.leaks() == {}


def test_a_reset_does_not_end_a_log(log: Log) -> None:
    log.start((0, 8))
    log.write(BASE)
    log.device.reset()
    log.write(BASE + PAGE)
    assert log.pages(8) == {0, 1}


def test_close_ends_a_log(log: Log) -> None:
    log.start((0, 8))
    log.device.close()
    assert log.leaks() == {}
    raises(errno.ENODEV, log.pages, 8)


def test_a_vf_that_is_taken_away_has_no_log(log: Log) -> None:
    log.start((0, 8))
    log.device.detach()
    assert log.leaks() == {}
    raises(errno.EINVAL, log.pages, 8)
    raises(errno.ENOTCONN, log.start, (0, 8))
    log.device.log_stop()


def test_two_vfs_of_a_card_log_apart() -> None:
    log = Log(num_vfs=2)
    other = log.open(1)
    log.start((0, 8))
    assert other.log_start([LoggingRange(BASE, 8 * PAGE)], PAGE) == PAGE
    log.write(BASE)
    log.adapter.vfs[1].dma.wrote(BASE + PAGE, 1)
    assert log.pages(8) == {0}
    assert report(other, BASE, 8 * PAGE) == {1}
    log.device.log_stop()
    log.adapter.vfs[1].dma.wrote(BASE, 1)
    assert report(other, BASE, 8 * PAGE) == {0}
    for device in (log.device, other):
        device.close()
    assert log.leaks() == {}


def test_more_pages_than_the_receive_queue_holds(log: Log) -> None:
    """Messages have 131072 entries, and four can wait: the fifth comes when one was taken."""
    pages = 6 * 131072 + 1
    log.start((0, pages))
    log.write(BASE, pages * PAGE)
    bitmap = bytearray(-(-pages // 8))
    log.device.log_report(BASE, pages * PAGE, PAGE, memoryview(bitmap))
    assert bitmap == b"\xff" * (pages // 8) + b"\x01"
    assert log.pages(1000) == set()


# --- Commands ---------------------------------------------------------------------------------

START = [
    Opcode.ALLOC_UAR,
    Opcode.ALLOC_PD,
    Opcode.CREATE_EQ,
    Opcode.CREATE_CQ,
    Opcode.CREATE_QP,
    Opcode.CREATE_MKEY,
    Opcode.CREATE_QP,
    Opcode.RST2INIT_QP,
    Opcode.INIT2RTR_QP,
    Opcode.RST2INIT_QP,
    Opcode.INIT2RTR_QP,
    Opcode.RTR2RTS_QP,
    Opcode.CREATE_GENERAL_OBJECT,
]
STOP = [
    Opcode.DESTROY_GENERAL_OBJECT,
    Opcode.DESTROY_QP,
    Opcode.DESTROY_MKEY,
    Opcode.DESTROY_QP,
    Opcode.DESTROY_CQ,
    Opcode.DESTROY_EQ,
    Opcode.DEALLOC_PD,
    Opcode.DEALLOC_UAR,
]


def test_the_commands_of_start_report_and_stop(log: Log) -> None:
    log.start((0, 8))
    assert log.taken() == START
    log.pages(8)
    assert log.taken() == [Opcode.MODIFY_GENERAL_OBJECT]
    log.device.log_stop()
    assert log.taken() == STOP


def test_what_the_commands_say(log: Log) -> None:
    """Field by field what the kernel's driver puts into them."""
    log.start((0, 4), (8, 2))
    log.pages(4)
    host, firmware = (CreateQpIn(inbox).qpc for inbox in log.inboxes[Opcode.CREATE_QP])
    for qpc in (host, firmware):
        assert (qpc.st, qpc.pm_state, qpc.no_sq, qpc.user_index) == (0, 3, 1, 0xFFFFFF)
    assert (host.rq_type, host.log_rq_size, host.log_rq_stride) == (0, 2, 0)
    assert firmware.rq_type == 3
    (cq,) = log.inboxes[Opcode.CREATE_CQ]
    assert CreateCqIn(cq).cqc.log_cq_size == 2
    init = [ModifyQpIn(inbox) for inbox in log.inboxes[Opcode.RST2INIT_QP]]
    ready = [ModifyQpIn(inbox) for inbox in log.inboxes[Opcode.INIT2RTR_QP]]
    (send,) = (ModifyQpIn(inbox) for inbox in log.inboxes[Opcode.RTR2RTS_QP])
    assert [each.qpn for each in init] == [each.qpn for each in ready]
    for each in init:
        qpc = each.qpc
        assert (qpc.pm_state, qpc.rre, qpc.rwe) == (3, 1, 1)
        assert qpc.primary_address_path.vhca_port_num == 1
    for each, remote in zip(ready, reversed(ready), strict=True):
        qpc, path = each.qpc, each.qpc.primary_address_path
        assert (qpc.remote_qpn, qpc.mtu, qpc.log_msg_max, qpc.min_rnr_nak) == (remote.qpn, 5, 30, 1)
        assert (path.fl, path.vhca_port_num) == (1, 1)
    assert (send.qpn, send.qpc.retry_count, send.qpc.rnr_retry) == (ready[1].qpn, 7, 7)
    assert send.buf[24 + 24 + 8] >> 3 == 8  # ack_timeout, 5 bits at 0x40 of the address path
    (create,) = log.inboxes[Opcode.CREATE_GENERAL_OBJECT]
    track = PageTrackIn(create).page_track
    assert {name: getattr(track, name) for name in track.field_names()} == {
        "modify_field_select": 0,
        "vhca_id": log.vf.vhca.vhca_id,
        "state": 0,
        "track_type": 1,
        "log_addr_space_size": 15,
        "log_page_size": 12,
        "log_msg_size": 20,
        "reporting_qpn": send.qpn,
        "num_ranges": 2,
        "range_start_address": 0,
        "length": 0,
    }
    assert list(RANGE.iter_unpack(create[PageTrackIn.SIZE :])) == [
        (BASE, 4 * PAGE),
        (BASE + 8 * PAGE, 2 * PAGE),
    ]
    (modify,) = log.inboxes[Opcode.MODIFY_GENERAL_OBJECT]
    asked = PageTrackIn(modify).page_track
    assert (asked.modify_field_select, asked.state) == (3, 1)
    assert (asked.range_start_address, asked.length) == (BASE, 4 * PAGE)


@pytest.mark.parametrize("place", range(len(START)))
def test_a_start_that_fails_leaves_nothing(log: Log, place: int) -> None:
    opcode = START[place]
    nth = START[: place + 1].count(opcode)
    log.adapter.firmware.faults.add_next(opcode, nth, Status.LIM)
    raises(errno.ENOMEM, log.start, (0, 8))
    assert log.leaks() == {}
    raises(errno.EINVAL, log.pages, 8)
    log.start((0, 8))
    log.write(BASE)
    assert log.pages(8) == {0}


@pytest.mark.parametrize("place", range(len(STOP)))
def test_a_stop_that_fails_gives_back_all_else(place: int) -> None:
    log = Log()
    log.start((0, 8))
    opcode = STOP[place]
    log.taken()
    nth = STOP[: place + 1].count(opcode)
    log.adapter.firmware.faults.add_next(opcode, nth, Status.INT_ERR)
    log.device.log_stop()
    assert log.taken() == STOP
    raises(errno.EINVAL, log.pages, 8)
    log.device.close()


def test_a_report_that_the_firmware_refuses_can_be_asked_for_again(log: Log) -> None:
    log.start((0, 8))
    log.write(BASE)
    log.adapter.firmware.faults.add_next(Opcode.MODIFY_GENERAL_OBJECT, 1, Status.RES_BUSY)
    raises(errno.EBUSY, log.pages, 8)
    assert log.pages(8) == {0}


def test_no_room_for_marks_is_an_error_until_the_log_is_begun_again(log: Log) -> None:
    log.adapter.firmware.page_tracks.max_blocks = 1
    log.device.log_start([LoggingRange(BASE, 1 << 40)], PAGE)
    log.write(BASE)
    log.write(BASE + (1 << 30))
    for _ in range(2):
        raises(errno.EIO, log.pages, 8)
    log.device.log_stop()
    log.start((0, 8))
    log.write(BASE)
    assert log.pages(8) == {0}


# --- A firmware that misbehaves ---------------------------------------------------------------


@pytest.fixture
def fake() -> FakeTracker:
    return FakeTracker()


@pytest.fixture
def device(fake: FakeTracker) -> Iterator[Mlx5VfioDevice]:
    device = Mlx5VfioDevice(fake, 0, name="vf", flr=lambda: None)
    device.log_start([LoggingRange(BASE, 64 * PAGE)], PAGE)
    yield device
    device.close()
    assert not fake.dma.mapped


def test_messages_that_come_at_once_or_when_the_cq_is_armed(
    fake: FakeTracker, device: Mlx5VfioDevice
) -> None:
    fake.on_report.append(fake.send([BASE + PAGE], 1))
    fake.on_arm.append(all_of(fake.send([BASE + 3 * PAGE, BASE + 2 * PAGE], 1), fake.send([], 0)))
    assert report(device, BASE, 64 * PAGE) == {1, 2, 3}
    assert fake.asked == [(BASE, 64 * PAGE)]


def test_a_message_that_comes_after_the_cq_was_found_empty(
    fake: FakeTracker, device: Mlx5VfioDevice
) -> None:
    arrived: list[threading.Timer] = []

    def later() -> None:
        arrived.append(threading.Timer(0.01, fake.send([BASE], 0)))
        arrived[0].start()

    fake.on_report.append(nothing)
    fake.on_arm.append(later)
    assert report(device, BASE, 64 * PAGE) == {0}
    arrived[0].join()


def test_queues_go_round(fake: FakeTracker, device: Mlx5VfioDevice) -> None:
    for n in range(2500):
        fake.on_report.append(fake.send([BASE + n % 64 * PAGE]))
        assert report(device, BASE, 64 * PAGE) == {n % 64}


def test_pages_beside_the_window_and_beside_the_ranges_are_dropped(
    fake: FakeTracker, device: Mlx5VfioDevice
) -> None:
    fake.on_report.append(fake.send([0, BASE - PAGE, BASE, BASE + 5 * PAGE, BASE + 64 * PAGE]))
    assert report(device, BASE - 8 * PAGE, 12 * PAGE) == {8}


MISBEHAVIOUR: dict[str, Callable[[FakeTracker], Callable[[], None]]] = {
    "tracking failed": lambda fake: fake.send([], 2),
    "no such state": lambda fake: fake.send([], 3),
    "error completion": lambda fake: fake.send([], opcode=CqeOpcode.RESP_ERR),
    "other completion": lambda fake: fake.send([], opcode=CqeOpcode.RESP_SEND),
    "half an entry": lambda fake: fake.send([], length=12),
    "more than a message": lambda fake: fake.send([], length=4104),
    "an empty message and more": lambda fake: fake.send([], 1),
    "no page's address": lambda fake: fake.send([BASE + 8]),
    "a full CQ": lambda fake: fake.event(EventType.CQ_ERROR, NUMBER.to_bytes(4, "big")),
    "host QP failed": lambda fake: fake.event(EventType.WQ_CATAS_ERROR, bytes(24) + b"\0\0\0\x11"),
    "firmware QP failed": lambda fake: fake.event(
        EventType.WQ_ACCESS_ERROR, bytes(24) + b"\0\0\0\x12"
    ),
    "request refused": lambda fake: fake.event(
        EventType.WQ_INVAL_REQ_ERROR, bytes(24) + b"\0\0\0\x12"
    ),
    "object changed": lambda fake: fake.object_change(2),
}


@pytest.mark.parametrize("when", ["in a report", "when the CQ is armed"])
@pytest.mark.parametrize("what", MISBEHAVIOUR)
def test_misbehaviour_ends_the_log_with_an_error(
    fake: FakeTracker, device: Mlx5VfioDevice, what: str, when: str
) -> None:
    misbehave = MISBEHAVIOUR[what](fake)
    if when == "in a report":
        fake.on_report.append(misbehave)
    else:
        fake.on_report.append(fake.send([BASE], 1))
        fake.on_arm.append(misbehave)
    raises(errno.EIO, report, device, BASE, 64 * PAGE)
    asked = len(fake.asked)
    raises(errno.EIO, report, device, BASE, 64 * PAGE)
    assert len(fake.asked) == asked
    device.log_stop()
    raises(errno.EINVAL, report, device, BASE, 64 * PAGE)


def test_errors_between_reports_are_heard(fake: FakeTracker, device: Mlx5VfioDevice) -> None:
    fake.object_change(2)()
    raises(errno.EIO, report, device, BASE, 64 * PAGE)
    assert fake.asked == []


@pytest.mark.parametrize("reports", [1, 2, 255, 256, 300])
def test_every_event_is_heard(fake: FakeTracker, device: Mlx5VfioDevice, reports: int) -> None:
    for _ in range(reports):
        fake.on_report.append(fake.send([BASE]))
        assert report(device, BASE, 64 * PAGE) == {0}
    fake.event(EventType.CQ_ERROR, NUMBER.to_bytes(4, "big"))()
    raises(errno.EIO, report, device, BASE, 64 * PAGE)


def test_a_state_that_cannot_be_asked_for_ends_the_log(
    fake: FakeTracker, device: Mlx5VfioDevice
) -> None:
    fake.refuse[Opcode.QUERY_GENERAL_OBJECT] = Status.RES_BUSY
    fake.on_report.append(fake.object_change(1))
    raises(errno.EBUSY, report, device, BASE, 64 * PAGE)
    fake.refuse.clear()
    raises(errno.EIO, report, device, BASE, 64 * PAGE)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (EventType.CQ_ERROR, b"\0\0\0\x63"),
        (EventType.WQ_CATAS_ERROR, bytes(24) + b"\0\0\0\x63"),
        (EventType.WQ_CATAS_ERROR, bytes(24) + b"\x01\0\0\x11"),
        (EventType.OBJECT_CHANGE, b"\0\0\0\x46\0\0\0\x63"),
        (EventType.PAGE_REQUEST, bytes(8)),
    ],
)
def test_events_about_others_are_nothing(
    fake: FakeTracker, device: Mlx5VfioDevice, kind: EventType, data: bytes
) -> None:
    fake.state = 2
    fake.on_report.append(nothing)
    fake.on_arm.append(all_of(fake.event(kind, data), fake.send([BASE])))
    assert report(device, BASE, 64 * PAGE) == {0}


def test_a_change_that_is_no_error_goes_on(fake: FakeTracker, device: Mlx5VfioDevice) -> None:
    fake.on_report.append(all_of(fake.object_change(1), fake.send([BASE])))
    assert report(device, BASE, 64 * PAGE) == {0}
    fake.on_report.append(fake.send([BASE + PAGE]))
    assert report(device, BASE, 64 * PAGE) == {1}


def test_a_firmware_that_says_nothing_is_given_up(
    fake: FakeTracker, device: Mlx5VfioDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PageTracker, "patience", 0.0)
    fake.on_report.append(fake.send([BASE], 1))
    with pytest.raises(OSError, match="did not go on") as caught:
        report(device, BASE, 64 * PAGE)
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("end", ["detach", "close"])
def test_a_report_that_waits_is_ended(fake: FakeTracker, device: Mlx5VfioDevice, end: str) -> None:
    waits, ended = threading.Event(), list[int | None]()

    def look() -> None:
        try:
            report(device, BASE, 64 * PAGE)
        except OSError as error:
            ended.append(error.errno)

    fake.on_report.append(nothing)
    fake.on_arm.append(waits.set)
    thread = threading.Thread(target=look)
    thread.start()
    assert waits.wait(60)
    getattr(device, end)()
    thread.join()
    assert ended == [errno.EIO]


@pytest.mark.parametrize(
    "limits",
    [
        {"pg_track_max_num_range": 0},
        {"pg_track_log_max_msg_size": 2},
        {"pg_track_log_min_page_size": 22},
        {"pg_track_log_min_addr_space": 41},
    ],
)
def test_limits_that_make_no_sense_are_no_page_tracker(limits: dict[str, int]) -> None:
    fake = FakeTracker()
    fake.limits |= limits
    device = Mlx5VfioDevice(fake, 0, name="vf", flr=lambda: None)
    assert not device.probe(Feature.DMA_LOGGING_START)
    device.close()


def test_every_command_of_the_tracker_is_known() -> None:
    assert set(START) | set(STOP) <= COMMANDS.keys()
