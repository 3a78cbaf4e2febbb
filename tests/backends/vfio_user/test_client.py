"""The client against servers that the test plays: good, old, and hostile ones."""

import contextlib
import errno
import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from precopy.backends import DeviceNameError, open_device
from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.frontends.vfio_user import Server
from precopy.vfio.face import IrqIndex, RegionIndex
from precopy.vfio.states import DeviceState
from precopy.vfio_user import version
from precopy.vfio_user.messages import COMMANDS, Command, SetIrqsFlags
from tests.frontends.vfio_user.fakes import AREAS, MEMORY, SPARSE, FakeFace
from tests.frontends.vfio_user.rig import opened_sim
from tests.vfio_user.wires import Raw, same_fds

#: Given a request's payload and descriptors: errno, payload, descriptors.
Answer = tuple[int, bytes, list[int]]
Handler = Callable[[bytes, list[int]], Answer]


def fine(payload: bytes = b"", *fds: int) -> Handler:
    return lambda _, __: (0, payload, list(fds))


def error(code: int) -> Handler:
    return lambda _, __: (code, b"", [])


def agrees(capabilities: Any, *fds: int, major: int = 0) -> Handler:
    text = json.dumps({"capabilities": capabilities}).encode() + b"\0"
    return fine(struct.pack("=HH", major, 0) + text, *fds)


class Played:
    """A server whose answers are a table; it remembers what it was asked."""

    def __init__(self, path: str, **handlers: Handler) -> None:
        self.path = path
        self.handlers = {"VERSION": agrees({"max_msg_fds": 1}), **handlers}
        self.asked: list[tuple[str, bytes, int]] = []
        self._listening = socket.socket(socket.AF_UNIX)
        self._listening.bind(path)
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            connected, _ = self._listening.accept()
            raw = Raw(connected)
            with contextlib.suppress(EOFError, ConnectionError):
                while self._answer(raw):
                    pass
            raw.close()

    def _answer(self, raw: Raw) -> bool:
        header, payload, fds = raw.hear()
        name = Command(header.command).name
        self.asked.append((name, payload, len(fds)))
        handler = self.handlers.get(name)
        if handler is None:
            return False
        code, reply, came = handler(payload, fds)
        for fd in fds:
            os.close(fd)
        flags = 0x21 if code else 1
        raw.say(header.command, reply, number=header.message_id, flags=flags, error=code, fds=came)
        return True

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        self._listening.close()


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Callable[..., Played]]:
    made: list[Played] = []

    def start(**handlers: Handler) -> Played:
        made.append(Played(str(tmp_path / f"played-{len(made)}"), **handlers))
        return made[-1]

    yield start
    for each in made:
        each.close()


Play = Callable[..., Played]


def refused(path: str) -> OSError:
    with pytest.raises(OSError, match=r".") as caught:
        Client(path)
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    return caught.value


# --- Before there is a device ---------------------------------------------------------------------


def test_nobody_is_there(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    assert refused(path).errno == errno.ENOENT
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(path)
    found = refused(path)
    assert found.errno == errno.ECONNREFUSED
    assert "does anybody serve there" in str(found)
    with pytest.raises(OSError, match="at most 107 bytes"):
        Client("/tmp/" + "x" * 200)


@pytest.mark.parametrize(
    ("handler", "code"),
    [
        (error(errno.EBUSY), errno.EBUSY),
        (error(errno.EINVAL), errno.EINVAL),
        (agrees({}, major=1), errno.EPROTO),
        (fine(b""), errno.EPROTO),
        (fine(bytes(4) + b"{"), errno.EPROTO),
        (agrees([]), errno.EPROTO),
        (agrees({"max_msg_fds": "x"}), errno.EPROTO),
        (agrees({"max_data_xfer_size": 1}), errno.EPROTO),
        (agrees({"twin_socket": {"supported": True}}), errno.EPROTO),
        (agrees({"twin_socket": {"supported": True, "fd_index": 0}}), errno.EPROTO),
        (agrees({"twin_socket": {"supported": True, "fd_index": 9}}, 0), errno.EPROTO),
    ],
)
def test_no_version_is_agreed_on(play: Play, handler: Handler, code: int) -> None:
    server = play(VERSION=handler)
    with same_fds():
        assert refused(server.path).errno == code
        server._thread.join(20)


def test_a_twin_socket_that_is_none(play: Play, tmp_path: Path) -> None:
    file = os.open(tmp_path, os.O_RDONLY)
    server = play(VERSION=agrees({"twin_socket": {"supported": True, "fd_index": 0}}, file))
    with same_fds():
        assert "is no socket" in str(refused(server.path))
        server._thread.join(20)
    os.close(file)


def test_a_server_that_goes(play: Play) -> None:
    server = play()
    client = Client(server.path)
    for _ in range(2):
        with pytest.raises(OSError, match="ENOTCONN") as caught:
            client.device_info()
        assert caught.value.errno == errno.ENOTCONN
    client.close()
    client.close()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("vfio-user:", "write vfio-user:/path"),
        ("vfio-user:?guest=1", "write vfio-user:/path"),
        ("vfio-user:/x?nonsense=1", "unknown parameter 'nonsense'"),
        ("vfio-user:/x?extension=2", "extension: a switch is 0 or 1"),
        ("vfio-user:/x?write=65M", "write: "),
    ],
)
def test_names_that_are_wrong(name: str, text: str) -> None:
    with pytest.raises(DeviceNameError, match=text.replace("?", r"\?")) as caught:
        open_device(name)
    assert "\n" not in str(caught.value)


def test_a_device_that_is_no_pci_function_has_no_guest(play: Play) -> None:
    server = play(DEVICE_GET_INFO=fine(struct.pack("=IIII", 16, 1, 0, 0)))
    with pytest.raises(OSError, match="no PCI function has no guest"):
        open_device(f"vfio-user:{server.path}?guest=1")


# --- Answers that can't be ------------------------------------------------------------------------

CALLS: dict[str, Callable[[Client], object]] = {
    "DEVICE_GET_INFO": lambda client: client.device_info(),
    "DEVICE_GET_REGION_INFO": lambda client: client.region_info(0),
    "DEVICE_GET_IRQ_INFO": lambda client: client.irq_info(0),
    "REGION_READ": lambda client: client.region_read(0, 0, 4),
    "REGION_WRITE": lambda client: client.region_write(0, 0, b"1234"),
    "DEVICE_RESET": lambda client: client.reset(),
    "DMA_UNMAP": lambda client: client.dma_unmap(0, 4096),
    "DEVICE_FEATURE": lambda client: VfioUserDevice(client, "it").state,
}


@pytest.mark.parametrize("command", CALLS)
def test_answers_of_a_wrong_size(play: Play, command: str) -> None:
    """EPROTO, and what came with them is closed."""
    size = COMMANDS[Command[command]].reply.layout.size
    for length in {0, size - 1, size + 3} - {size, -1}:
        tail = COMMANDS[Command[command]].reply.tail
        if length > size and tail and command != "REGION_READ":
            continue
        server = play(**{command: fine(bytes(length), 0, 1)})
        with same_fds():
            client = Client(server.path)
            with pytest.raises(OSError, match=r"EPROTO|payload|bytes") as caught:
                CALLS[command](client)
            assert caught.value.errno == errno.EPROTO
            client.close()
            server._thread.join(20)


@pytest.mark.parametrize("command", CALLS)
def test_errors_come_as_they_are(play: Play, command: str) -> None:
    server = play(**{command: error(errno.EDOM)})
    with contextlib.closing(Client(server.path)) as client:
        with pytest.raises(OSError, match=command) as caught:
            CALLS[command](client)
        assert caught.value.errno == errno.EDOM
        assert server.path in str(caught.value)


def test_a_region_whose_chain_is_broken(play: Play) -> None:
    info = struct.pack("=IIIIQQ", 40, 15, 0, 999, 4096, 0) + bytes(8)
    server = play(DEVICE_GET_REGION_INFO=fine(info, 0))
    with same_fds(), contextlib.closing(Client(server.path)) as client:
        with pytest.raises(OSError, match="not in its info"):
            client.region_info(0)
        client.close()
        server._thread.join(20)


def _state(state: int) -> Handler:
    return fine(struct.pack("=IIII", 16, 2 | 1 << 16, state, 0))


def test_states_that_there_are_not(play: Play) -> None:
    server = play(DEVICE_FEATURE=_state(99))
    with (
        VfioUserDevice(Client(server.path), "it") as device,
        pytest.raises(OSError, match="no device state 99") as caught,
    ):
        _ = device.state
    assert caught.value.errno == errno.EPROTO


IDENTITY = {
    "vendor_id": 1,
    "device_id": 2,
    "driver": "d",
    "firmware": "f",
    "serial": "s",
    "stream": "x",
    "stream_version": 3,
    "needs": ["a"],
    "offers": None,
    "details": {"k": "v"},
}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"[" * 100_000,
        json.dumps({**IDENTITY, "needs": 5}).encode(),
        json.dumps({**IDENTITY, "vendor_id": "x"}).encode(),
        json.dumps({**IDENTITY, "details": 1}).encode(),
        json.dumps({key: IDENTITY[key] for key in list(IDENTITY)[1:]}).encode(),
    ],
    ids=range(9),
)
def test_identities_that_are_none(play: Play, text: bytes) -> None:
    server = play(
        VERSION=agrees({"migration_extension": 1}),
        DEVICE_IDENTITY=fine(struct.pack("=I", 4 + len(text)) + text),
    )
    with (
        VfioUserDevice(Client(server.path), "it") as device,
        pytest.raises(OSError, match="can't be read") as caught,
    ):
        _ = device.identity
    assert caught.value.errno == errno.EPROTO


# --- Servers of another make ----------------------------------------------------------------------


class Foreign:
    """Feature and state of a server without the extension, as libvfio-user's."""

    def __init__(self) -> None:
        self.state = int(DeviceState.RUNNING)
        self.left = b"stream" * 100
        self.written = b""
        self.longest = 0

    def handlers(self) -> dict[str, Handler]:
        return {
            "DEVICE_FEATURE": self._feature,
            "MIG_DATA_READ": self._read,
            "MIG_DATA_WRITE": self._write,
            "DEVICE_GET_INFO": fine(struct.pack("=IIII", 16, 1, 0, 0)),
        }

    def _feature(self, payload: bytes, _: list[int]) -> Answer:
        argsz, flags = struct.unpack_from("=II", payload)
        if flags & 0xFFFF not in (1, 2):
            return errno.EINVAL, b"", []
        data = struct.pack("=Q", 5)
        if flags & 0xFFFF == 2:
            if flags & 1 << 17:
                self.state = struct.unpack_from("=I", payload, 8)[0]
            # The data_fd is 0, not -1.
            data = struct.pack("=II", self.state, 0)
        return 0, struct.pack("=II", argsz, flags) + data, []

    def _read(self, payload: bytes, _: list[int]) -> Answer:
        _, size = struct.unpack("=II", payload)
        found, self.left = self.left[:size], self.left[size:]
        # A short reply is filled up with zeroes.
        return 0, struct.pack("=II", 8 + len(found), len(found)) + found.ljust(size, b"\0"), []

    def _write(self, payload: bytes, _: list[int]) -> Answer:
        self.written += payload[8:]
        self.longest = max(self.longest, len(payload))
        return 0, b"", []


def test_short_reads_that_are_filled_up(play: Play) -> None:
    foreign = Foreign()
    server = play(**foreign.handlers())
    with VfioUserDevice(Client(server.path), "it", stream="x") as device:
        assert device.migration_flags == 5
        assert device.identity.stream == "x"
        file = device.set_state(DeviceState.PRE_COPY)
        assert file is not None
        room = bytearray(1000)
        count = file.readinto(room)
        assert room[:count] == b"stream" * 100
        with pytest.raises(OSError, match="no more state for now") as caught:
            file.readinto(room)
        assert caught.value.errno == errno.ENOMSG
        device.set_state(DeviceState.STOP_COPY)
        assert file.readinto(room) == 0


def test_writes_to_a_peer_of_unknown_make_are_short(play: Play) -> None:
    """libvfio-user may lose the end of a longer one."""
    foreign = Foreign()
    server = play(**foreign.handlers())
    state = os.urandom(200_000)
    with VfioUserDevice(Client(server.path), "it", stream="x") as device:
        file = device.set_state(DeviceState.RESUMING)
        assert file is not None
        at = 0
        while at < len(state):
            at += file.write(state[at:])
    assert foreign.written == state
    assert foreign.longest <= (64 << 10) + 8


@pytest.mark.parametrize("size", [9, 1 << 31])
def test_a_read_that_gives_more_than_was_asked_for(play: Play, size: int) -> None:
    foreign = Foreign()
    handlers = foreign.handlers()
    handlers["MIG_DATA_READ"] = fine(struct.pack("=II", 16, size) + bytes(8), 0, 1)
    server = play(**handlers)
    with same_fds():
        with VfioUserDevice(Client(server.path), "it", stream="x") as device:
            file = device.set_state(DeviceState.STOP_COPY)
            assert file is not None
            with pytest.raises(OSError, match=r".") as caught:
                file.readinto(bytearray(8))
            assert caught.value.errno == errno.EPROTO
        server._thread.join(20)


# --- A server of ours -----------------------------------------------------------------------------


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[tuple[Server, FakeFace]]:
    face = FakeFace()
    with opened_sim(face=False).device as device:
        server = Server(device, face, str(tmp_path / "ours"))
        thread = server.start()
        yield server, face
        server.stop()
        thread.join(20)
    face.close()


def test_regions_and_interrupts(ours: tuple[Server, FakeFace]) -> None:
    server, face = ours
    with contextlib.closing(Client(server.path)) as client:
        info = client.region_info(SPARSE)
        assert info.areas == AREAS
        assert info.fd is not None
        os.close(info.fd)
        data = os.urandom(0x4000)
        client.region_write(MEMORY, 0, data)
        assert client.region_read(MEMORY, 0, len(data)) == data
        assert client.irq_info(IrqIndex.MSIX).vectors == 40
        assert face.log


def test_more_than_a_message_holds_goes_in_several(ours: tuple[Server, FakeFace]) -> None:
    server, face = ours
    few = replace(version.OURS, max_msg_fds=7, max_data_xfer_size=1000)
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(40)]
    with contextlib.closing(Client(server.path, few)) as client:
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.ACTION_TRIGGER
        client.set_irqs(flags, IrqIndex.MSIX, 0, 40, fds=events)
        for vector in range(40):
            face.raise_vector(IrqIndex.MSIX, vector)
        assert [os.eventfd_read(event) for event in events] == [1] * 40
        data = os.urandom(0x1000)
        client.region_write(RegionIndex.CONFIG, 0, data)
        assert client.region_read(RegionIndex.CONFIG, 0, len(data)) == data
    for event in events:
        os.close(event)


@pytest.mark.parametrize("twin", [False, True])
def test_memory_that_the_server_asks_for(ours: tuple[Server, FakeFace], twin: bool) -> None:
    server, face = ours
    offered = replace(version.OURS, twin_socket=twin)
    with contextlib.closing(Client(server.path, offered)) as client:
        memory = bytearray(os.urandom(3 << 20))
        client.dma_map_memory(1 << 20, memoryview(memory))
        client.dma_map_memory(1 << 30, memoryview(bytes(4096)))
        assert face.dma.read((1 << 20) + 5, 2 << 20) == memory[5 : 5 + (2 << 20)]
        face.dma.write((1 << 20) + 7, b"y" * (1 << 20))
        assert memory[7 : 7 + (1 << 20)] == b"y" * (1 << 20)
        with pytest.raises(OSError, match="read-only"):
            face.dma.write(1 << 30, b"x")
        client.dma_unmap(1 << 20, len(memory))
        with pytest.raises(OSError, match="not mapped"):
            face.dma.read(1 << 20, 1)
