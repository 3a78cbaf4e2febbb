"""DEVICE_FEATURE and the data of the state, as bytes."""

import errno
import itertools
import json
import os
import select
import struct

import pytest

from precopy.vfio.device import VfioDevice
from precopy.vfio.states import DeviceState, MigrationFlags, path
from precopy.vfio_user.messages import (
    AreaAccess,
    Command,
    DataArea,
    DataPoll,
    DeviceFeature,
    DmaMap,
    Identity,
    MigData,
    MigDataRead,
    PrecopyInfoMessage,
)
from tests.frontends.vfio_user.rig import RawClient, Served, opened_sim, served
from tests.vfio_user.wires import open_fds

E, S, R, SC, RES, RP, PC, PCP = DeviceState
ALL = MigrationFlags(7)
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18
MIGRATION, STATE, START, STOP, REPORT, SIZE, INFO_V2 = 1, 2, 6, 7, 8, 9, 12
STATES = [S, R, SC, RES, RP, PC, PCP]
PAGE = 4096


@pytest.fixture
def vf(sim: Served) -> RawClient:
    return sim.client()


def go(client: RawClient, state: int) -> int:
    """The state in which it then is."""
    data = client.feature(STATE | SET, struct.pack("=Ii", state, -1))
    reached, fd = struct.unpack("=Ii", data)
    assert fd == -1
    return int(reached)


def read(client: RawClient, size: int = 1 << 16) -> bytes:
    try:
        found = client.ask(Command.MIG_DATA_READ, MigDataRead(8 + size, size))
    except BlockingIOError:
        # It is still being saved.
        client.ask(Command.MIG_DATA_POLL, DataPoll(12, select.POLLIN, 1000))
        return read(client, size)
    assert found.argsz == 8 + found.size
    assert len(found.data) == found.size <= size
    return bytes(found.data)


def write(client: RawClient, data: bytes) -> None:
    assert client.ask(Command.MIG_DATA_WRITE, MigData(8 + len(data), len(data), data)) == ()


def refused(client: RawClient, flags: int, data: bytes = b"", argsz: int = 4096) -> str:
    return client.refused(Command.DEVICE_FEATURE, DeviceFeature(argsz, flags, data))


def refusal(work: object) -> str:
    try:
        work()  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


# --- Features -------------------------------------------------------------------------------------

METHODS = {
    MIGRATION: GET,
    STATE: GET | SET,
    START: SET,
    STOP: SET,
    REPORT: GET,
    SIZE: GET,
    INFO_V2: SET,
}


def test_probes(vf: RawClient) -> None:
    for index in range(20):
        has = METHODS.get(index)
        for wanted in (0, GET, SET, GET | SET):
            if has is None:
                assert refused(vf, index | wanted | PROBE) == "ENOTTY"
            elif wanted & ~has:
                assert refused(vf, index | wanted | PROBE) == "EINVAL"
            else:
                assert vf.feature(index | wanted | PROBE, argsz=8) == b""


@pytest.mark.parametrize(
    ("flags", "data", "argsz", "code"),
    [
        (STATE, b"", 16, "EINVAL"),
        (STATE | GET | SET, bytes(8), 16, "EINVAL"),
        (STATE | GET | 1 << 19, bytes(8), 16, "EINVAL"),
        (STATE | GET | 1 << 31, bytes(8), 16, "EINVAL"),
        (3 | GET, b"", 16, "ENOTTY"),
        (0xFFFF | GET, b"", 16, "ENOTTY"),
        (MIGRATION | SET, bytes(8), 16, "EINVAL"),
        (STOP | GET, b"", 16, "EINVAL"),
        (MIGRATION | GET, b"", 15, "EINVAL"),
        (STATE | GET, b"", 0, "EINVAL"),
        (STATE | GET, bytes(7), 16, "EINVAL"),
        (STATE | SET, b"", 16, "EINVAL"),
        (STATE | SET, bytes(7), 16, "EINVAL"),
        (STATE | SET, struct.pack("=Ii", 3, -1), 15, "EINVAL"),
        (SIZE | GET, b"", 8, "EINVAL"),
        (START | SET, b"", 4096, "EINVAL"),
        (START | SET, bytes(15), 4096, "EINVAL"),
        (REPORT | GET, b"", 4096, "EINVAL"),
        (REPORT | GET, bytes(23), 4096, "EINVAL"),
    ],
)
def test_features_that_are_asked_for_wrongly(
    vf: RawClient, flags: int, data: bytes, argsz: int, code: str
) -> None:
    assert refused(vf, flags, data, argsz) == code


def test_what_it_can_do(vf: RawClient) -> None:
    for data in (b"", bytes(8), bytes(100)):
        assert vf.feature(MIGRATION | GET, data) == struct.pack("=Q", 7)
        assert vf.feature(STATE | GET, data) == struct.pack("=Ii", R, -1)
    assert struct.unpack("=Q", vf.feature(SIZE | GET))[0] > 1 << 16
    assert vf.feature(INFO_V2 | SET, argsz=8) == b""


def test_a_device_that_cant_be_migrated() -> None:
    opened = opened_sim("&migratable=0")
    with opened.device as device, served(device, opened.face) as made:
        client = made.client()
        for index, methods in METHODS.items():
            for method in (GET, SET):
                if methods & method:
                    assert refused(client, index | method, bytes(64)) == "ENOTTY"
        assert client.refused(Command.MIG_DATA_READ, MigDataRead(16, 8)) == "EINVAL"


# --- States ---------------------------------------------------------------------------------------


def bring(client: RawClient, device: VfioDevice, state: DeviceState) -> None:
    client.ask_raw(Command.DEVICE_RESET)
    go(client, state)
    assert device.state is state


def test_the_shortest_paths_over_all_pairs(sim: Served, vf: RawClient) -> None:
    for origin, new in itertools.product(STATES, [*range(9), 0xFFFF_FFFF]):
        bring(vf, sim.device, origin)
        try:
            path(origin, new, ALL)
        except OSError:
            assert refused(vf, STATE | SET, struct.pack("=Ii", new & 0x7FFF_FFFF, -1)) == "EINVAL"
            assert sim.device.state is origin
            continue
        if origin is RES and new != RES:
            # With nothing written there is no state to go on with.
            assert refused(vf, STATE | SET, struct.pack("=Ii", new, -1)) == "EINVAL"
            continue
        assert go(vf, new) == new
        assert sim.device.state == new
        assert vf.feature(STATE | GET)[:4] == struct.pack("=I", new)


def stream(client: RawClient) -> bytes:
    """A whole one, by PRE_COPY and in odd pieces."""
    go(client, PC)
    pieces = []
    for size in itertools.cycle((1, 100, 4097)):
        try:
            pieces.append(read(client, size))
        except OSError as error:
            assert error.errno == errno.ENOMSG
            break
    go(client, SC)
    return b"".join(pieces) + rest_of(client)


def rest_of(client: RawClient, size: int = 1 << 16) -> bytes:
    """To the permanent end."""
    pieces = []
    while piece := read(client, size):
        pieces.append(piece)
    return b"".join(pieces)


def test_a_state_goes_out_and_in(vf: RawClient) -> None:
    whole = stream(vf)
    assert read(vf) == b""
    go(vf, R)
    go(vf, RES)
    for at in range(0, len(whole), 3000):
        write(vf, whole[at : at + 3000])
    assert go(vf, R) == R


def test_data_in_states_that_have_none(vf: RawClient) -> None:
    """No session yet: EINVAL. One that is over: ENODEV. The other direction: EBADF."""

    def outcomes() -> list[str]:
        return [
            vf.refused(Command.MIG_DATA_READ, MigDataRead(16, 8)),
            vf.refused(Command.MIG_DATA_WRITE, MigData(16, 8, bytes(8))),
            vf.refused(Command.MIG_PRECOPY_INFO, PrecopyInfoMessage(24, 0, 0, 0)),
        ]

    for state in (R, RP, S):
        go(vf, state)
        assert outcomes() == ["EINVAL"] * 3
    go(vf, RES)
    assert outcomes()[::2] == ["EBADF", "ENOTTY"]
    vf.ask_raw(Command.DEVICE_RESET)
    go(vf, SC)
    assert outcomes()[1:] == ["EBADF", "EINVAL"]
    go(vf, R)
    assert outcomes() == ["ENODEV", "EBADF", "EINVAL"]


@pytest.mark.parametrize("most", [4096, 1 << 20])
def test_reads_that_are_too_long(sim: Served, most: int) -> None:
    client = sim.client(max_data_xfer_size=most)
    go(client, SC)
    assert client.refused(Command.MIG_DATA_READ, MigDataRead(8, most + 1)) == "EINVAL"
    assert client.refused(Command.MIG_DATA_READ, MigDataRead(8, 0xFFFF_FFFF)) == "EINVAL"
    assert len(read(client, most)) <= most
    # Nothing is asked for, nothing comes.
    assert read(client, 0) == b""
    rest_of(client, most)
    assert read(client, most) == b""


@pytest.mark.parametrize(("size", "data"), [(5, b"1234"), (1, b""), (0xFFFF_FFFF, b"1234")])
def test_writes_that_are_shorter_than_they_say(vf: RawClient, size: int, data: bytes) -> None:
    go(vf, RES)
    assert (
        vf.refused(Command.MIG_DATA_WRITE, MigData(8 + size & 0xFFFF_FFFF, size, data)) == "EINVAL"
    )


def test_what_a_write_has_beyond_its_size_does_not_count(vf: RawClient) -> None:
    """libvfio-user's replies are like that; its requests may be."""
    whole = stream(vf)
    go(vf, RES)
    assert vf.ask(Command.MIG_DATA_WRITE, MigData(8, 100, whole[:100] + b"more")) == ()
    write(vf, b"")
    write(vf, whole[100:])
    assert go(vf, S) == S


def test_a_state_that_is_refused(vf: RawClient) -> None:
    go(vf, RES)
    assert refusal(lambda: write(vf, b"\xff" * 64)) != ""
    assert refused(vf, STATE | SET, struct.pack("=Ii", S, -1)) != ""
    vf.ask_raw(Command.DEVICE_RESET)
    assert go(vf, R) == R


def test_a_session_goes_on_with_the_next_client(sim: Served, vf: RawClient) -> None:
    """The device keeps its state when a client goes."""
    go(vf, SC)
    first = read(vf, 10)
    sim.leave(vf)
    client = sim.client()
    assert client.feature(STATE | GET)[:4] == struct.pack("=I", SC)
    rest = rest_of(client)
    sim.leave(client)
    client = sim.client()
    go(client, R)
    go(client, RES)
    write(client, first + rest)
    assert go(client, R) == R


# --- With and without the extension ---------------------------------------------------------------


def test_without_the_extension(sim: Served) -> None:
    client = sim.client(migration_extension=0)
    for command in (Command.MIG_PRECOPY_INFO, Command.MIG_DATA_POLL, Command.DEVICE_IDENTITY):
        assert client.ask_raw(command, bytes(24))[0] == errno.EINVAL
    go(client, PC)
    whole = b""
    while piece := read(client, 1000):
        whole += piece
    # The temporary end is an empty read, as often as it is asked.
    assert read(client) == b""
    go(client, SC)
    while piece := read(client):
        whole += piece
    go(client, RES)
    write(client, whole)
    assert go(client, R) == R


def test_precopy_info(vf: RawClient) -> None:
    go(vf, PC)
    assert vf.refused(Command.MIG_PRECOPY_INFO, PrecopyInfoMessage(23, 0, 0, 0)) == "EINVAL"
    info = vf.ask(Command.MIG_PRECOPY_INFO, PrecopyInfoMessage(24, 0, 0, 0))
    assert (info.argsz, info.flags) == (24, 0)
    assert info.initial_bytes > 0
    count = len(read(vf, 10))
    after = vf.ask(Command.MIG_PRECOPY_INFO, PrecopyInfoMessage(4096, 0, 0, 0))
    assert after.initial_bytes == info.initial_bytes - count


def test_poll(vf: RawClient) -> None:
    assert vf.refused(Command.MIG_DATA_POLL, DataPoll(12, select.POLLIN, 0)) == "EINVAL"
    go(vf, SC)
    found = vf.ask(Command.MIG_DATA_POLL, DataPoll(12, select.POLLIN, 5000))
    assert found == (12, select.POLLIN, 5000)
    go(vf, R)
    found = vf.ask(Command.MIG_DATA_POLL, DataPoll(12, select.POLLIN, 0))
    assert found.events == select.POLLIN | select.POLLRDHUP


def test_identity(sim: Served, vf: RawClient) -> None:
    found = vf.ask(Command.DEVICE_IDENTITY, Identity(4096, b""))
    told = json.loads(found.text)
    who = sim.device.identity
    assert told["stream"] == "mlx5"
    assert (told["vendor_id"], told["device_id"]) == (0x15B3, 0x101E)
    assert frozenset(told["needs"]) == who.needs
    assert frozenset(told["offers"]) == who.offers


# --- The data area --------------------------------------------------------------------------------

AREA = 1 << 20


def area_of(client: RawClient, size: int = AREA, flags: int = 0) -> tuple[int, str]:
    """A memfd that was offered as data area, and the errno's name where it was refused."""
    fd = os.memfd_create("area", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, AREA)
    return fd, client.refused(Command.MIG_DATA_AREA, DataArea(16, flags, size), [fd])


def test_a_state_goes_through_the_data_area(vf: RawClient) -> None:
    whole = stream(vf)
    go(vf, R)
    fd, code = area_of(vf)
    assert code == ""
    with pytest.raises(PermissionError):
        # A shorter file would kill the server.
        os.ftruncate(fd, 0)
    go(vf, RES)
    os.pwrite(fd, whole, 4096)
    assert vf.ask(Command.MIG_DATA_WRITE_AREA, AreaAccess(16, len(whole), 4096)) == ()
    assert go(vf, SC) == SC
    found = b""
    while True:
        try:
            size = vf.ask(Command.MIG_DATA_READ_AREA, AreaAccess(16, 10_000, 99)).size
        except BlockingIOError:
            vf.ask(Command.MIG_DATA_POLL, DataPoll(12, select.POLLIN, 1000))
            continue
        if not size:
            break
        found += os.pread(fd, size, 99)
    assert len(found) > 1 << 16
    go(vf, RES)
    write(vf, found)
    assert go(vf, R) == R
    os.close(fd)


@pytest.mark.parametrize(
    ("size", "flags"), [(0, 0), (AREA + 1, 0), ((64 << 20) + 1, 0), ((1 << 64) - 1, 0), (AREA, 1)]
)
def test_areas_that_are_refused(vf: RawClient, size: int, flags: int) -> None:
    fd, code = area_of(vf, size, flags)
    assert code == "EINVAL"
    os.close(fd)


def test_an_area_is_a_memfd_that_keeps_its_size(vf: RawClient) -> None:
    reads, writes = os.pipe()
    bare = os.memfd_create("bare")
    os.ftruncate(bare, AREA)
    for fds in ([], [reads], [bare], [bare, bare]):
        assert vf.refused(Command.MIG_DATA_AREA, DataArea(16, 0, AREA), fds) == "EINVAL"
    for fd in (reads, writes, bare):
        os.close(fd)


@pytest.mark.parametrize(
    ("size", "offset"),
    [(1, AREA), (AREA + 1, 0), (2, AREA - 1), (1, (1 << 64) - 1), (0xFFFF_FFFF, 0)],
)
def test_what_is_not_in_the_area(vf: RawClient, size: int, offset: int) -> None:
    request = AreaAccess(16, size, offset)
    for command in (Command.MIG_DATA_READ_AREA, Command.MIG_DATA_WRITE_AREA):
        assert vf.refused(command, AreaAccess(16, 8, 0)) == "EINVAL"
    fd, _ = area_of(vf)
    go(vf, RES)
    assert vf.refused(Command.MIG_DATA_WRITE_AREA, request) == "EINVAL"
    vf.ask_raw(Command.DEVICE_RESET)
    go(vf, SC)
    assert vf.refused(Command.MIG_DATA_READ_AREA, request) == "EINVAL"
    os.close(fd)


def test_an_area_goes_with_its_client(sim: Served) -> None:
    before = open_fds()
    client = sim.client()
    fd, code = area_of(client)
    assert code == ""
    os.close(fd)
    sim.leave(client)
    assert open_fds() == before


# --- Dirty pages ----------------------------------------------------------------------------------


BASE, PAGES = 1 << 20, 64


@pytest.fixture
def logged(vf: RawClient) -> RawClient:
    """With memory that the device can write."""
    memory = os.memfd_create("memory")
    os.ftruncate(memory, PAGES * PAGE)
    vf.ask(Command.DMA_MAP, DmaMap(32, 3, 0, BASE, PAGES * PAGE), [memory])
    os.close(memory)
    return vf


def start(client: RawClient, page_size: int = PAGE, *ranges: tuple[int, int]) -> int:
    some = ranges or ((BASE, PAGES * PAGE),)
    data = struct.pack("=QII", page_size, len(some), 0)
    data += b"".join(struct.pack("=QQ", *each) for each in some)
    answer = client.feature(START | SET, data)
    assert answer[8:] == data[8:]
    return int(struct.unpack_from("=Q", answer)[0])


def report(client: RawClient, page_size: int, iova: int = BASE, pages: int = PAGES) -> set[int]:
    """Which bits are set."""
    length = pages * PAGE
    answer = client.feature(REPORT | GET, struct.pack("=QQQ", iova, length, page_size))
    assert answer[:24] == struct.pack("=QQQ", iova, length, page_size)
    bits = int.from_bytes(answer[24:], "little")
    assert len(answer) - 24 == -(-length // page_size // 64) * 8
    return {bit for bit in range(len(answer) * 8) if bits >> bit & 1}


@pytest.mark.parametrize(
    ("page_size", "bits"), [(PAGE, {0, 5, 6, 63}), (2 * PAGE, {0, 2, 3, 31}), (16 * PAGE, {0, 3})]
)
def test_dirty_pages(sim: Served, logged: RawClient, page_size: int, bits: set[int]) -> None:
    """Reported in pages as large as those that are tracked, twice and 16 times as large."""
    face = sim.offered.face
    assert face is not None
    face.dma.write(BASE + 9 * PAGE, b"before")
    assert start(logged) == PAGE
    for address in (BASE, BASE + 6 * PAGE - 1, BASE + 63 * PAGE):
        face.dma.write(address, b"ab")
    assert report(logged, page_size) == bits
    # What was told is not told again.
    assert report(logged, page_size) == set()
    face.dma.write(BASE + 17 * PAGE, b"x")
    assert report(logged, PAGE, BASE + 16 * PAGE, 8) == {1}
    assert logged.feature(STOP | SET, argsz=8) == b""
    assert refused(logged, REPORT | GET, struct.pack("=QQQ", BASE, PAGE, PAGE)) == "EINVAL"


def test_pages_smaller_than_those_that_are_tracked(sim: Served, logged: RawClient) -> None:
    face = sim.offered.face
    assert face is not None
    tracked = start(logged, 2 * PAGE)
    assert tracked == 2 * PAGE
    face.dma.write(BASE + 3 * PAGE, b"x")
    assert report(logged, PAGE) == {2, 3}


@pytest.mark.parametrize(
    ("iova", "length", "page_size", "code"),
    [
        (BASE, PAGE, PAGE // 2, "EINVAL"),
        (BASE, PAGE, 0, "EINVAL"),
        (BASE, PAGE, PAGE + 1, "EINVAL"),
        (BASE, PAGE, 3 * PAGE, "EINVAL"),
        ((1 << 64) - PAGE, 2 * PAGE, PAGE, "EOVERFLOW"),
        (0, (1 << 64) - 1, PAGE, "E2BIG"),
        (0, 1 << 36, PAGE, "E2BIG"),
    ],
)
def test_reports_that_are_refused(
    logged: RawClient, iova: int, length: int, page_size: int, code: str
) -> None:
    start(logged)
    assert refused(logged, REPORT | GET, struct.pack("=QQQ", iova, length, page_size)) == code


def logging(page_size: int, count: int, *ranges: tuple[int, int]) -> bytes:
    head = struct.pack("=QII", page_size, count, 0)
    return head + b"".join(struct.pack("=QQ", *each) for each in ranges)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (logging(PAGE, 0), "EINVAL"),
        (logging(PAGE, 1), "EINVAL"),
        (logging(PAGE, 1, (0, PAGE), (PAGE, PAGE)), "EINVAL"),
        (logging(PAGE, 0xFFFF_FFFF, (0, PAGE)), "E2BIG"),
        (logging(PAGE, 257, *[(page * PAGE, PAGE) for page in range(257)]), "E2BIG"),
        (logging(PAGE, 1, (1, PAGE)), "EINVAL"),
        (logging(PAGE, 1, (0, 0)), "EINVAL"),
        (logging(PAGE, 2, (0, 2 * PAGE), (PAGE, PAGE)), "EINVAL"),
        (logging(PAGE, 1, ((1 << 64) - PAGE, 2 * PAGE)), "EOVERFLOW"),
        (logging(3, 1, (0, PAGE)), "EINVAL"),
        (logging(0, 1, (0, PAGE)), "EINVAL"),
    ],
)
def test_logs_that_are_refused(vf: RawClient, data: bytes, code: str) -> None:
    assert refused(vf, START | SET, data, 8192) == code
    assert start(vf)


def test_a_log_ends_with_its_client(sim: Served, logged: RawClient) -> None:
    start(logged)
    assert refused(logged, START | SET, logging(PAGE, 1, (BASE, PAGE))) == "EINVAL"
    sim.leave(logged)
    client = sim.client()
    assert start(client) == PAGE
    assert report(client, PAGE) == set()
