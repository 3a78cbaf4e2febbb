"""The client's memory: what can be mapped, through files that change, and by asking over a socket."""

import errno
import fcntl
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from precopy.frontends.vfio_user.quirks import QUIRKS
from precopy.vfio_user.messages import COMMANDS, Command, DmaMap, DmaUnmap, RegionData
from tests.frontends.vfio_user.fakes import FakeFace
from tests.frontends.vfio_user.rig import RawClient, Served, opened_sim, served
from tests.vfio_user.wires import Raw, open_fds

PAGE = 4096
READ, WRITE, MMAP, FILE_IO = 1, 2, 4, 8
BOTH = READ | WRITE


@pytest.fixture
def memory() -> Iterator[int]:
    """A memfd of 16 pages, each of its own letter."""
    fd = memfd(16 * PAGE)
    yield fd
    os.close(fd)


def memfd(size: int) -> int:
    fd = os.memfd_create("memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    for page in range(size // PAGE):
        os.pwrite(fd, bytes([0x41 + page]) * PAGE, page * PAGE)
    return fd


def mapping(
    address: int = 0, size: int = PAGE, flags: int = BOTH, offset: int = 0, argsz: int = 32
) -> DmaMap:
    return DmaMap(argsz, flags, offset, address, size)


def unmapping(address: int = 0, size: int = PAGE, flags: int = 0, more: bytes = b"") -> DmaUnmap:
    return DmaUnmap(24, flags, address, size, more)


def map_it(client: RawClient, request: DmaMap, fd: int | None = None) -> None:
    assert client.ask(Command.DMA_MAP, request, [] if fd is None else [fd]) == ()


# --- Mapped ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [BOTH, BOTH | MMAP, BOTH | FILE_IO])
def test_the_device_reaches_it(client: RawClient, face: FakeFace, memory: int, flags: int) -> None:
    map_it(client, mapping(0x10000, 2 * PAGE, flags, PAGE), memory)
    assert face.dma.ranges() == [(0x10000, 2 * PAGE)]
    assert face.dma.read(0x10000, PAGE) == b"B" * PAGE
    assert face.dma.read(0x11FF0, 16) == b"C" * 16
    face.dma.write(0x10FFE, b"1234")
    assert os.pread(memory, 4, 2 * PAGE - 2) == b"1234"
    for address in (0xFFFF, 0x11FFF):
        with pytest.raises(OSError, match="not mapped"):
            face.dma.read(address, 2)


@pytest.mark.parametrize("flags", [READ, READ | MMAP, READ | FILE_IO])
def test_read_only(client: RawClient, face: FakeFace, memory: int, flags: int) -> None:
    map_it(client, mapping(0, PAGE, flags), memory)
    assert face.dma.read(0, 1) == b"A"
    with pytest.raises(OSError, match="read-only") as caught:
        face.dma.write(0, b"x")
    assert caught.value.errno == errno.EFAULT
    assert os.pread(memory, 1, 0) == b"A"


@pytest.mark.parametrize(
    "request_",
    [
        mapping(flags=0),
        mapping(flags=MMAP),
        mapping(flags=BOTH | MMAP | FILE_IO),
        mapping(flags=BOTH | 16),
        mapping(flags=BOTH | 1 << 31),
        mapping(size=0),
        mapping(size=1),
        mapping(size=PAGE + 1),
        mapping(address=1),
        mapping(address=PAGE // 2),
        mapping(address=(1 << 64) - PAGE, size=2 * PAGE),
        mapping(size=(1 << 64) - PAGE),
        mapping(size=1 << 63),
        mapping(address=1 << 63, size=1 << 63),
    ],
    ids=range(14),
)
def test_mappings_that_make_no_sense(
    client: RawClient, face: FakeFace, memory: int, request_: DmaMap
) -> None:
    before = open_fds()
    assert client.refused(Command.DMA_MAP, request_, [memory]) == "EINVAL"
    assert client.refused(Command.DMA_MAP, request_) == "EINVAL"
    assert face.dma.ranges() == []
    assert open_fds() == before


@pytest.mark.parametrize(
    ("offset", "size"),
    [(0, 17 * PAGE), (16 * PAGE, PAGE), (15 * PAGE + 1, PAGE), ((1 << 64) - PAGE, PAGE)],
)
def test_what_the_file_does_not_have(
    client: RawClient, memory: int, offset: int, size: int
) -> None:
    before = open_fds()
    request = mapping(size=size, offset=offset)
    assert client.refused(Command.DMA_MAP, request, [memory]) == "EINVAL"
    assert open_fds() == before


def test_an_offset_that_is_no_page(client: RawClient, face: FakeFace, memory: int) -> None:
    map_it(client, mapping(0, PAGE, offset=PAGE - 3), memory)
    assert face.dma.read(0, 4) == b"AAAB"


@pytest.mark.parametrize("first", [0x10000, 0x10000 + 3 * PAGE])
def test_overlaps_are_told_as_the_specification_says(
    client: RawClient, face: FakeFace, memory: int, first: int
) -> None:
    map_it(client, mapping(0x10000, 4 * PAGE), memory)
    before = open_fds()
    for address, size in ((first, PAGE), (0x10000 - PAGE, 6 * PAGE), (0x10000, 4 * PAGE)):
        assert client.refused(Command.DMA_MAP, mapping(address, size), [memory]) == "EEXIST"
        assert client.refused(Command.DMA_MAP, mapping(address, size)) == "EEXIST"
    assert open_fds() == before
    assert face.dma.ranges() == [(0x10000, 4 * PAGE)]
    map_it(client, mapping(0x10000 + 4 * PAGE), memory)
    map_it(client, mapping(0x10000 - PAGE), memory)


def test_unmapping(client: RawClient, face: FakeFace, memory: int) -> None:
    before = open_fds()
    for page in range(3):
        map_it(client, mapping(page * PAGE), memory)
    assert client.ask(Command.DMA_UNMAP, unmapping(PAGE)) == (24, 0, PAGE, PAGE, b"")
    assert face.dma.ranges() == [(0, PAGE), (2 * PAGE, PAGE)]
    for address, size in ((PAGE, PAGE), (0, 2 * PAGE), (0, PAGE // 2), (0, 0), (PAGE - 1, 1)):
        assert client.refused(Command.DMA_UNMAP, unmapping(address, size)) == "ENOENT"
    assert client.ask(Command.DMA_UNMAP, unmapping(0, 0, 2)) == (24, 2, 0, 0, b"")
    assert face.dma.ranges() == []
    assert open_fds() == before


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (unmapping(flags=1), "ENOTSUP"),
        (unmapping(flags=3), "ENOTSUP"),
        (unmapping(flags=4), "EINVAL"),
        (unmapping(flags=1 << 31), "EINVAL"),
        (unmapping(flags=2), "EINVAL"),
        (unmapping(flags=2, address=PAGE, size=0), "EINVAL"),
        (unmapping(more=bytes(16)), "EINVAL"),
    ],
)
def test_unmappings_that_are_refused(
    client: RawClient, face: FakeFace, memory: int, request_: DmaUnmap, code: str
) -> None:
    map_it(client, mapping(), memory)
    assert client.refused(Command.DMA_UNMAP, request_) == code
    assert face.dma.ranges() == [(0, PAGE)]


def test_no_more_mappings_than_were_announced(faked: Served, face: FakeFace) -> None:
    client = faked.client()
    most = 65535
    face.dma.replace((), [((page + 1) * PAGE, memoryview(bytes(PAGE))) for page in range(most)])
    assert client.refused(Command.DMA_MAP, mapping()) == "ENOSPC"
    face.dma.unmap(PAGE)
    map_it(client, mapping())


def test_a_client_that_goes_takes_its_memory_along(
    faked: Served, face: FakeFace, memory: int
) -> None:
    before = open_fds()
    client = faked.client()
    map_it(client, mapping(0), memory)
    map_it(client, mapping(PAGE, flags=BOTH | FILE_IO), memory)
    map_it(client, mapping(2 * PAGE))
    faked.leave(client)
    assert face.dma.ranges() == []
    assert open_fds() == before


# --- Files that are no memory, and that become shorter --------------------------------------------


def test_what_is_no_file(client: RawClient) -> None:
    reads, writes = os.pipe()
    event, directory = os.eventfd(0), os.open("/", os.O_RDONLY)
    null = os.open("/dev/null", os.O_RDWR)
    before = open_fds()
    for fd in (reads, writes, event, directory, null):
        assert client.refused(Command.DMA_MAP, mapping(), [fd]) == "EINVAL"
    assert open_fds() == before
    for fd in (reads, writes, event, directory, null):
        os.close(fd)


def test_what_the_file_is_not_open_for(client: RawClient) -> None:
    with tempfile.NamedTemporaryFile() as file:
        os.truncate(file.name, PAGE)
        reads = os.open(file.name, os.O_RDONLY)
        writes = os.open(file.name, os.O_WRONLY)
        for fd, flags in ((reads, BOTH), (reads, WRITE), (writes, READ), (writes, WRITE)):
            for more in (0, MMAP, FILE_IO):
                request = mapping(flags=flags | more)
                assert client.refused(Command.DMA_MAP, request, [fd]) == "EACCES"
        map_it(client, mapping(flags=READ), reads)
        os.close(reads)
        os.close(writes)


def test_a_memfd_that_could_shrink_is_sealed(client: RawClient, memory: int) -> None:
    """A shorter file under a mapping would kill the server (SIGBUS)."""
    map_it(client, mapping(), memory)
    assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        os.ftruncate(memory, 0)


def _shrinks(kind: str) -> int:
    if kind == "memfd that takes no seals":
        fd = os.memfd_create("memory")
        os.ftruncate(fd, 2 * PAGE)
        return fd
    if kind == "memfd whose seals are sealed":
        fd = memfd(2 * PAGE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SEAL)
        return fd
    fd, name = tempfile.mkstemp()
    os.unlink(name)
    os.ftruncate(fd, 2 * PAGE)
    return fd


@pytest.mark.parametrize(
    "kind", ["memfd that takes no seals", "memfd whose seals are sealed", "file on a disk"]
)
@pytest.mark.parametrize("flags", [BOTH, BOTH | MMAP, BOTH | FILE_IO])
def test_a_file_that_becomes_shorter(
    client: RawClient, face: FakeFace, kind: str, flags: int
) -> None:
    """The access fails, and nothing else; a write does not make it longer again."""
    fd = _shrinks(kind)
    map_it(client, mapping(0, 2 * PAGE, flags), fd)
    face.dma.write(PAGE, b"there")
    assert os.pread(fd, 5, PAGE) == face.dma.read(PAGE, 5) == b"there"
    os.ftruncate(fd, PAGE)
    for access in (
        lambda: face.dma.read(PAGE, 1),
        lambda: face.dma.read(PAGE - 1, 2),
        lambda: face.dma.write(PAGE - 1, b"ab"),
    ):
        with pytest.raises(OSError, match="shorter") as caught:
            access()
        assert caught.value.errno == errno.EFAULT
    assert os.fstat(fd).st_size == PAGE
    assert face.dma.read(0, PAGE) == os.pread(fd, PAGE, 0)
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0
    os.close(fd)


def test_a_memfd_that_may_not_be_written(client: RawClient, face: FakeFace, memory: int) -> None:
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    assert client.refused(Command.DMA_MAP, mapping(), [memory]) == "EPERM"
    map_it(client, mapping(flags=READ), memory)
    assert face.dma.read(0, 1) == b"A"


# --- Over a socket --------------------------------------------------------------------------------


def answers(wire: Raw, memory: bytearray, count: int) -> None:
    """Answer ``count`` questions of the server's."""
    for _ in range(count):
        header, payload, fds = wire.hear()
        assert not fds
        spec = COMMANDS[Command(header.command)]
        asked = spec.request.parse(memoryview(payload))
        at, end = asked.address, asked.address + asked.length
        if header.command == Command.DMA_READ:
            reply = struct.pack("=QQ", at, asked.length) + memory[at:end]
        else:
            memory[at:end] = asked.data
            reply = struct.pack("=QQ", at, asked.length)
        wire.say(header.command, reply, number=header.message_id, flags=1)


@pytest.mark.parametrize("twin", [False, True])
def test_the_server_asks_for_what_it_cant_map(faked: Served, face: FakeFace, twin: bool) -> None:
    client = faked.client(twin_socket={"supported": twin}, max_data_xfer_size=PAGE)
    map_it(client, mapping(0, 4 * PAGE))
    memory = bytearray(os.urandom(4 * PAGE))
    wire = client.twin or client
    with ThreadPoolExecutor(1) as pool:
        answered = pool.submit(answers, wire, memory, 3)
        assert face.dma.read(100, 2 * PAGE + 5) == memory[100 : 100 + 2 * PAGE + 5]
        answered.result(20)
        answered = pool.submit(answers, wire, memory, 2)
        face.dma.write(PAGE + 7, b"x" * (PAGE + 1))
        answered.result(20)
    assert memory[PAGE + 7 : 2 * PAGE + 8] == b"x" * (PAGE + 1)
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0


class Busy(FakeFace):
    """A write to its register 0x80 does DMA, and one to 0x88 waits for the test."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        super().region_write(region, offset, data)
        if offset == 0x80:
            self.bytes_of[0][:8] = self.dma.read(int.from_bytes(data, "little"), 8)
        if offset == 0x88:
            self.entered.set()
            assert self.go_on.wait(20)

    entered: threading.Event
    go_on: threading.Event


@pytest.fixture
def busy() -> Iterator[tuple[Busy, Served]]:
    face = Busy()
    face.entered, face.go_on = threading.Event(), threading.Event()
    with opened_sim(face=False).device as device, served(device, face) as made:
        yield face, made
    face.close()


@pytest.mark.parametrize("twin", [False, True])
def test_the_server_asks_while_the_clients_request_is_under_way(
    busy: tuple[Busy, Served], twin: bool
) -> None:
    _, made = busy
    client = made.client(twin_socket={"supported": twin})
    map_it(client, mapping(0, PAGE))
    memory = bytearray(b"12345678" * (PAGE // 8))
    write = COMMANDS[Command.REGION_WRITE].request.pack(
        RegionData(0x80, 0, 8, (16).to_bytes(8, "little"))
    )
    client.say(Command.REGION_WRITE, write, number=9)
    # More commands wait meanwhile, and are carried out in order.
    client.say(Command.REGION_READ, struct.pack("=QII", 0, 0, 8), number=10)
    answers(client.twin or client, memory, 1)
    assert client.hear()[0].message_id == 9
    header, payload, _ = client.hear()
    assert (header.message_id, payload[16:]) == (10, b"12345678")


@pytest.mark.parametrize("twin", [False, True])
def test_other_threads_ask_while_the_clients_request_is_under_way(
    busy: tuple[Busy, Served], twin: bool
) -> None:
    """Several at once; each gets its own answer."""
    face, made = busy
    client = made.client(twin_socket={"supported": twin})
    map_it(client, mapping(0, 16 * PAGE))
    memory = bytearray(os.urandom(16 * PAGE))
    write = COMMANDS[Command.REGION_WRITE].request.pack(RegionData(0x88, 0, 1, b"x"))
    client.say(Command.REGION_WRITE, write, number=9)
    assert face.entered.wait(20)
    with ThreadPoolExecutor(5) as pool:
        answered = pool.submit(answers, client.twin or client, memory, 40)
        found = list(pool.map(lambda at: face.dma.read(at * 1000, 1000), range(40)))
        answered.result(20)
        assert found == [bytes(memory[at * 1000 : at * 1000 + 1000]) for at in range(40)]
    face.go_on.set()
    assert client.hear()[0].message_id == 9


@pytest.mark.parametrize("twin", [False, True])
def test_a_client_that_says_no(faked: Served, face: FakeFace, twin: bool) -> None:
    client = faked.client(twin_socket={"supported": twin})
    map_it(client, mapping())
    wire = client.twin or client
    before = open_fds()
    replies = [
        ({"flags": 0x21, "error": errno.EACCES}, b""),
        ({"flags": 1}, struct.pack("=QQ", 0, 8)),
        ({"flags": 1}, struct.pack("=QQ", 0, 8) + b"1234567"),
        ({"flags": 1}, struct.pack("=QQ", 0, 8) + b"123456789"),
        ({"flags": 1}, struct.pack("=QQ", 8, 8) + b"12345678"),
        ({"flags": 1}, struct.pack("=QQ", 0, 9) + b"12345678"),
        ({"flags": 1}, b"123"),
    ]
    with ThreadPoolExecutor(1) as pool:
        for fields, payload in replies:
            asked = pool.submit(face.dma.read, 0, 8)
            header, _, _ = wire.hear()
            wire.say(header.command, payload, number=header.message_id, fds=[0], **fields)
            with pytest.raises(OSError, match=r"DMA_READ|payload"):
                asked.result(20)
    assert open_fds() == before
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0


@pytest.mark.parametrize("twin", [False, True])
def test_a_client_that_goes_while_it_is_asked(faked: Served, face: FakeFace, twin: bool) -> None:
    client = faked.client(twin_socket={"supported": twin})
    map_it(client, mapping())
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(face.dma.read, 0, 8)
        (client.twin or client).hear()
        faked.leave(client)
        with pytest.raises(OSError, match="DMA_READ") as caught:
            asked.result(20)
        assert caught.value.errno == errno.EFAULT
    assert faked.client().ask_raw(Command.DEVICE_RESET)[0] == 0


def test_memory_that_only_the_client_writes(faked: Served, face: FakeFace) -> None:
    client = faked.client()
    map_it(client, mapping(flags=READ))
    with pytest.raises(OSError, match="read-only"):
        face.dma.write(0, b"x")


def test_dma_as_qemu_10_has_it(face: FakeFace) -> None:
    """A length of 32 bits with the data behind it at once, and 4 bytes more (QEMU 10.2)."""
    with (
        opened_sim(face=False).device as device,
        served(device, face, quirks=QUIRKS["qemu-10"]) as made,
        ThreadPoolExecutor(1) as pool,
    ):
        client = made.client()
        map_it(client, mapping())
        asked = pool.submit(face.dma.read, 16, 4)
        header, payload, _ = client.hear()
        assert payload == struct.pack("=QQ", 16, 4)
        reply = struct.pack("=QI", 16, 4) + b"abcd" + bytes(4)
        client.say(header.command, reply, number=header.message_id, flags=1)
        assert asked.result(20) == b"abcd"
        told = pool.submit(face.dma.write, 32, b"xyz")
        header, payload, _ = client.hear()
        assert payload == struct.pack("=QI", 32, 3) + b"xyz" + bytes(4)
        client.say(header.command, payload[:16], number=header.message_id, flags=1)
        told.result(20)
