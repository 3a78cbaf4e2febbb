"""What linux/vfio.h says of every device, held against each way to have one."""

import select
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import product

import pytest

from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags, path
from precopy.vfio.uapi import FEATURE_METHODS, Feature, FeatureFlags, LoggingRange, PrecopyInfoFlags
from tests.contract.ways import POLL_ENDED, WAYS, Way, name_of, read_all, read_some, write_all

E, S, R, SC, RES, RP, PC, PCP = DeviceState
STATES = [S, R, SC, RES, RP, PC, PCP]
ALL = MigrationFlags(7)
PAGE = 4096


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with WAYS[request.param]() as made:
        yield made


@pytest.fixture(params=[name for name in WAYS if name != "without the extension"])
def whole(request: pytest.FixtureRequest) -> Iterator[Way]:
    """Ways that have all of the contract."""
    with WAYS[request.param]() as made:
        yield made


@pytest.fixture
def device(way: Way) -> VfioDevice:
    return way.device


def file_of(device: VfioDevice, state: DeviceState) -> MigrationFile:
    file = device.set_state(state)
    assert file is not None
    return file


def image(device: VfioDevice) -> bytes:
    """A whole stream, with PRE_COPY before it; the device is in STOP_COPY then."""
    file = file_of(device, PC)
    stream = read_all(file)
    assert device.set_state(SC) is None
    return stream + read_all(file)


def bring(device: VfioDevice, state: DeviceState, stream: bytes) -> MigrationFile | None:
    """From RUNNING, with a whole state written where it is RESUMING."""
    device.reset()
    file = device.set_state(state)
    if state is RES:
        assert file is not None
        write_all(file, stream)
    return file


# --- Who it is, what it can do --------------------------------------------------------------------


def test_what_it_can_do(device: VfioDevice) -> None:
    assert device.state is R
    assert device.migration_flags == ALL
    assert dict(device.features()) == {
        feature: methods for feature, (methods, _) in FEATURE_METHODS.items()
    }
    assert device.data_size() > 1 << 16


def test_probe(device: VfioDevice) -> None:
    for feature, (methods, _) in FEATURE_METHODS.items():
        assert device.probe(feature)
        for asked in (FeatureFlags.GET, FeatureFlags.SET):
            assert device.probe(feature, asked) is bool(asked & methods)
    for unknown in (0, 3, 5, 13, 99):
        assert not device.probe(unknown)


def test_identity(way: Way) -> None:
    found, expected = way.device.identity, way.behind.identity
    assert (found.vendor_id, found.device_id) == (0x15B3, 0x101E)
    assert found.stream == "mlx5"
    if way.whole:
        assert found == expected


@pytest.mark.parametrize("name", WAYS)
def test_a_device_that_cant_be_migrated(name: str) -> None:
    with WAYS[name]("&migratable=0") as way:
        device = way.device
        assert device.features() == {}
        for work in (
            lambda: device.migration_flags,
            lambda: device.state,
            lambda: device.set_state(S),
            device.data_size,
            device.enable_precopy_info_v2,
            device.log_stop,
            lambda: device.log_start([LoggingRange(0, PAGE)], PAGE),
        ):
            assert name_of(work) == "ENOTTY"
        assert not device.probe(Feature.MIGRATION)
        device.reset()


# --- States and arcs ------------------------------------------------------------------------------


def test_every_arc_and_combination(way: Way) -> None:
    device = way.device
    stream = image(device)
    for origin, new in product(STATES, STATES):
        bring(device, origin, stream)
        try:
            steps = path(origin, new, ALL)
        except OSError:
            assert name_of(partial(device.set_state, new)) == "EINVAL"
            assert device.state is way.behind.state is origin
            continue
        file = device.set_state(new)
        assert device.state is way.behind.state is new
        arcs = list(zip((origin, *steps), steps, strict=False))
        assert (file is not None) == bool(arcs and arcs[-1] in DATA_FD_ARCS)


@pytest.mark.parametrize("new", [0, 8, 9, 255, 0xFFFF_FFFF])
def test_states_that_there_are_not(device: VfioDevice, new: int) -> None:
    for origin in (R, PC):
        device.set_state(origin)
        assert name_of(lambda: device.set_state(new)) == "EINVAL"
        assert device.state is origin


@pytest.mark.parametrize("state", STATES)
def test_reset_from_every_state(device: VfioDevice, state: DeviceState) -> None:
    file = device.set_state(state)
    device.reset()
    assert device.state is R
    if file is not None:
        ended = (lambda: file.write(b"x")) if state is RES else (lambda: read_some(file))
        assert name_of(ended) == "ENODEV"
        # A resuming file of the kernel's driver has no poll of its own.
        assert state is RES or file.poll(select.POLLIN, 0) == POLL_ENDED
    assert device.set_state(PC) is not None


# --- A saving session -----------------------------------------------------------------------------


def test_one_file_from_precopy_to_the_end(device: VfioDevice) -> None:
    file = file_of(device, PC)
    assert device.set_state(PCP) is None
    assert device.set_state(PC) is None
    assert read_some(file, 10)
    assert device.set_state(SC) is None
    assert read_all(file)
    # The permanent end stays.
    for _ in range(3):
        assert read_some(file) == b""
    assert file.poll(select.POLLIN, 0) & select.POLLIN
    assert device.set_state(S) is None
    assert name_of(lambda: read_some(file)) == "ENODEV"


def test_stop_copy_with_nothing_read(device: VfioDevice) -> None:
    file = file_of(device, PC)
    device.set_state(SC)
    stream = read_all(file)
    write_all(file_of(device, RES), stream)
    assert device.set_state(R) is None


def test_stop_copy_alone(device: VfioDevice) -> None:
    stream = read_all(file_of(device, SC), 777)
    write_all(file_of(device, RES), stream, 333)
    device.set_state(S)
    device.set_state(R)
    assert device.state is R


def test_segmentation_never_matters(device: VfioDevice) -> None:
    one = read_all(file_of(device, SC), 1 << 20)
    device.set_state(R)
    other = read_all(file_of(device, SC), 1000)
    assert len(one) == len(other)


def test_a_session_is_left(device: VfioDevice) -> None:
    """Nothing of it is left: the next begins anew."""
    for state in (PC, PCP, SC):
        file = file_of(device, state)
        assert read_some(file, 100)
        device.set_state(R)
        assert device.state is R
        assert name_of(partial(read_some, file)) == "ENODEV"
    new = file_of(device, PC)
    assert read_some(new)
    assert name_of(lambda: read_some(file)) == "ENODEV"


def test_the_temporary_end(device: VfioDevice) -> None:
    file = file_of(device, PC)
    assert read_all(file)
    for _ in range(2):
        assert name_of(lambda: read_some(file)) == "ENOMSG"
    file.set_nonblocking(True)
    assert name_of(lambda: read_some(file)) == "ENOMSG"


def test_a_saving_file_is_not_written(device: VfioDevice) -> None:
    for state in (PC, SC):
        assert name_of(partial(file_of(device, state).write, b"x")) == "EBADF"
        device.set_state(R)


def test_files_that_are_closed(device: VfioDevice) -> None:
    """The device goes on without its file."""
    file = file_of(device, PC)
    file.close()
    file.close()
    assert name_of(lambda: read_some(file)) == "EBADF"
    assert name_of(file.precopy_info) == "EBADF"
    device.set_state(R)
    assert device.state is R


def test_poll_at_the_temporary_end(whole: Way) -> None:
    file = file_of(whole.device, PC)
    assert file.poll(select.POLLIN, 5) == select.POLLIN
    read_all(file)
    assert file.poll(select.POLLIN, 0) == 0
    assert file.poll(select.POLLIN, 0.01) == 0
    whole.device.set_state(SC)
    assert file.poll(select.POLLIN, 5) == select.POLLIN


def test_precopy_info(whole: Way) -> None:
    device = whole.device
    file = file_of(device, PC)
    first = file.precopy_info()
    assert (first.dirty_bytes, first.flags) == (0, 0)
    assert first.initial_bytes > 1 << 16
    count = len(read_some(file, 100))
    assert file.precopy_info().initial_bytes == first.initial_bytes - count
    device.set_state(PCP)
    assert file.precopy_info().initial_bytes == first.initial_bytes - count
    device.set_state(PC)
    assert len(read_all(file)) == first.initial_bytes - count
    assert file.precopy_info().initial_bytes == 0


def test_precopy_info_elsewhere(way: Way) -> None:
    device = way.device
    file = file_of(device, PC)
    device.set_state(SC)
    assert name_of(file.precopy_info) == "EINVAL"
    device.set_state(R)
    assert name_of(file.precopy_info) == "EINVAL"
    assert name_of(file_of(device, RES).precopy_info) == "ENOTTY"


def test_the_info_of_an_old_file(device: VfioDevice) -> None:
    old = file_of(device, PC)
    device.set_state(R)
    file_of(device, PC)
    assert name_of(old.precopy_info) == "ENODEV"


def test_without_the_extension_the_rounds_are_the_measure() -> None:
    with WAYS["without the extension"]() as way:
        file = file_of(way.device, PC)
        assert file.precopy_info().initial_bytes > 0
        read = len(read_all(file))
        info = file.precopy_info()
        assert (info.initial_bytes, info.dirty_bytes) == (0, read)
        assert name_of(lambda: read_some(file)) == "ENOMSG"
        assert file.precopy_info().dirty_bytes == 0


@pytest.mark.parametrize("name", ["in process", "through a socket"])
def test_reinit_is_told_to_who_knows_it(name: str) -> None:
    """The same calls, with MIG_PRECOPY_INFO_V2 and without."""
    with WAYS[name]("&migration_state=1&reinit_pages=1") as way:
        device = way.device
        flags = set[PrecopyInfoFlags]()
        for v2 in (False, True):
            if v2:
                device.enable_precopy_info_v2()
            file = file_of(device, PC)
            read_all(file)
            info = file.precopy_info()
            flags.add(info.flags)
            if not v2:
                assert info.flags == 0
            if info.flags:
                assert info.initial_bytes > 0
            device.set_state(R)
        assert flags <= {PrecopyInfoFlags(0), PrecopyInfoFlags.REINIT}


def test_a_reader_that_waits_is_told_of_the_end(whole: Way) -> None:
    """poll() in one thread, the state changed by another."""
    device = whole.device
    file = file_of(device, PC)
    read_all(file)
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(file.poll(select.POLLIN, 20)))
    thread.start()
    device.set_state(SC)
    thread.join(20)
    assert found == [select.POLLIN]


# --- A resuming session ---------------------------------------------------------------------------


def test_there_and_back_again(device: VfioDevice) -> None:
    """The same device comes out of it: its next image is the same."""
    stream = image(device)
    for size in (1 << 20, 997):
        write_all(file_of(device, RES), stream, size)
        assert device.set_state(SC) is not None
        device.set_state(S)


def test_a_resuming_file(device: VfioDevice) -> None:
    stream = image(device)
    file = file_of(device, RES)
    assert name_of(lambda: read_some(file)) == "EBADF"
    assert file.write(b"") == 0
    assert file.poll(select.POLLOUT, 0) & select.POLLOUT
    write_all(file, stream)
    device.set_state(R)
    assert name_of(lambda: file.write(b"x")) == "ENODEV"


@pytest.mark.parametrize("cut", [0, 1, 15, 16, 40, -1])
def test_a_state_that_is_not_whole(device: VfioDevice, cut: int) -> None:
    stream = image(device)
    file = file_of(device, RES)
    write_all(file, stream[:cut])
    assert name_of(lambda: device.set_state(R)) == "EINVAL"
    assert device.state is RES
    device.reset()
    assert device.state is R


def test_a_state_that_is_none(device: VfioDevice) -> None:
    file = file_of(device, RES)
    assert name_of(lambda: write_all(file, b"\xff" * 100)) != ""
    assert name_of(lambda: device.set_state(S)) != ""
    device.reset()
    assert device.state is R


# --- DMA logging ----------------------------------------------------------------------------------


def report(device: VfioDevice, page_size: int, pages: int = 64) -> int:
    bitmap = bytearray(-(-pages * PAGE // page_size // 8))
    device.log_report(0, pages * PAGE, page_size, memoryview(bitmap))
    return int.from_bytes(bitmap, "little")


def test_dma_logging(way: Way) -> None:
    device = way.device
    assert device.log_start([LoggingRange(0, 64 * PAGE)], PAGE) == PAGE
    assert report(device, PAGE) == 0
    way.dma_write(5 * PAGE - 1, b"ab")
    way.dma_write(40 * PAGE, b"c")
    assert report(device, PAGE) == 1 << 4 | 1 << 5 | 1 << 40
    assert report(device, PAGE) == 0
    way.dma_write(40 * PAGE, b"c")
    assert report(device, 16 * PAGE) == 1 << 2
    # Bits are only ever set.
    bitmap = bytearray(b"\x81" * 8)
    device.log_report(0, 64 * PAGE, PAGE, memoryview(bitmap))
    assert bitmap == b"\x81" * 8
    device.log_stop()
    device.log_stop()
    assert name_of(lambda: report(device, PAGE)) == "EINVAL"


@pytest.mark.parametrize(
    ("ranges", "page_size", "code"),
    [
        ([], PAGE, "EINVAL"),
        ([(0, 0)], PAGE, "EINVAL"),
        ([(1, PAGE)], PAGE, "EINVAL"),
        ([(0, 2 * PAGE), (PAGE, PAGE)], PAGE, "EINVAL"),
        ([(0, PAGE)], 3, "EINVAL"),
        ([(2 * page * PAGE, PAGE) for page in range(257)], PAGE, "E2BIG"),
        ([((1 << 64) - PAGE, 2 * PAGE)], PAGE, "EOVERFLOW"),
    ],
)
def test_logs_that_are_refused(
    device: VfioDevice, ranges: list[tuple[int, int]], page_size: int, code: str
) -> None:
    wanted = [LoggingRange(*each) for each in ranges]
    assert name_of(lambda: device.log_start(wanted, page_size)) == code
    device.log_start([LoggingRange(0, PAGE)], PAGE)
    again = [LoggingRange(0, PAGE)]
    assert name_of(lambda: device.log_start(again, PAGE)) == "EINVAL"


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "room", "code"),
    [
        (0, PAGE, 2048, 8, "EINVAL"),
        (0, PAGE, 6000, 8, "EINVAL"),
        ((1 << 64) - PAGE, PAGE, PAGE, 8, "EOVERFLOW"),
        (0, 65 * PAGE, PAGE, 8, "EFAULT"),
        (0, 0, PAGE, 0, ""),
        (0, 64 * PAGE, PAGE, 8, ""),
    ],
)
def test_reports_that_are_refused(
    device: VfioDevice, iova: int, length: int, page_size: int, room: int, code: str
) -> None:
    device.log_start([LoggingRange(0, 64 * PAGE)], PAGE)
    bitmap = memoryview(bytearray(room))
    assert name_of(lambda: device.log_report(iova, length, page_size, bitmap)) == code


# --- The end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WAYS)
def test_a_device_that_is_closed(name: str) -> None:
    with ExitStack() as stack:
        made: AbstractContextManager[Way] = WAYS[name]()
        way = stack.enter_context(made)
        device = way.device
        file = file_of(device, PC)
        device.close()
        device.close()
        assert name_of(lambda: read_some(file)) == "ENODEV"
        for work in (
            lambda: device.set_state(S),
            lambda: device.state,
            lambda: device.migration_flags,
            device.reset,
            device.data_size,
        ):
            assert name_of(work) == "ENODEV"
