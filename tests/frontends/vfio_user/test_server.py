"""The socket: who may connect, how many, and what becomes of all when it ends."""

import contextlib
import errno
import os
import resource
import select
import socket
import struct
import threading
import tracemalloc
from collections.abc import Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from precopy.backends.vfio_user.client import Client
from precopy.frontends.vfio_user import Server
from precopy.frontends.vfio_user.server import MOST_CONNECTIONS, MOST_HELD
from precopy.vfio.face import IrqIndex
from precopy.vfio.states import DeviceState
from precopy.vfio_user.conversation import MOST_WAITING, MOST_WAITING_BYTES
from precopy.vfio_user.messages import HEADER, Command, DmaMap, SetIrqsFlags
from tests.frontends.vfio_user.fakes import FakeFace
from tests.frontends.vfio_user.rig import RawClient, opened_sim
from tests.vfio_user.wires import open_fds, packed

#: Somebody else.
OTHER = 12345


class At:
    """A server at a path."""

    def __init__(self, path: str, users: Container[int] | None, negotiation: float) -> None:
        self.face = FakeFace()
        self.opened = opened_sim(face=False)
        self.server = Server(
            self.opened.device, self.face, path, users=users, negotiation=negotiation
        )
        self.done = threading.Event()
        self.thread = self.server.start(self.done.set)

    def connect(self) -> RawClient:
        wire = socket.socket(socket.AF_UNIX)
        wire.connect(self.server.path)
        return RawClient(wire)

    def close(self) -> None:
        self.server.stop()
        self.thread.join(20)
        assert self.done.is_set()
        self.opened.close()
        self.face.close()


@contextlib.contextmanager
def at(path: Path, users: Container[int] | None = (), negotiation: float = 5.0) -> Iterator[At]:
    made = At(str(path / "socket"), users, negotiation)
    try:
        yield made
    finally:
        made.close()


def test_one_after_another(tmp_path: Path) -> None:
    before = open_fds()
    with at(tmp_path) as made:
        for _ in range(3):
            client = Client(made.server.path)
            assert client.device_info().num_regions == 9
            second = made.connect()
            second.say_version({})
            assert second.hear()[0].error == errno.EBUSY
            client.close()
            # It is let go of by the server's own thread: ask until it is.
            while True:
                second.say_version({})
                code = second.hear()[0].error
                if not code:
                    break
                assert code == errno.EBUSY
            second.close()
            with contextlib.suppress(OSError):
                Client(made.server.path).close()
            while made.server.clients():
                select.select([], [], [], 0.001)
    assert open_fds() == before
    assert not os.path.exists(made.server.path)


def _connects_as(user: int, path: str) -> bool:
    """Whether the server talks to ``user``, asked in a process of theirs."""
    pid = os.fork()
    if not pid:
        status = 1
        with contextlib.suppress(OSError, EOFError):
            os.setuid(user)
            with socket.socket(socket.AF_UNIX) as wire:
                wire.settimeout(20)
                wire.connect(path)
                wire.sendall(packed(Command.VERSION, b"\0\0\0\0{}\0"))
                status = 0 if len(wire.recv(16)) == 16 else 2
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize(
    ("users", "may"), [((), False), ((OTHER + 1,), False), ((OTHER,), True), (None, True)]
)
def test_other_users(users: Container[int] | None, may: bool) -> None:
    """By what the kernel says of who connected, whatever the mode of the socket."""
    with contextlib.ExitStack() as stack:
        folder = f"/tmp/vfio-user-test-{os.getpid()}"
        os.mkdir(folder, 0o755)
        stack.callback(os.rmdir, folder)
        made = stack.enter_context(at(Path(folder), users))
        os.chmod(made.server.path, 0o666)
        assert _connects_as(OTHER, made.server.path) is may
        assert _connects_as(os.getuid(), made.server.path)


def test_the_mode_keeps_others_out() -> None:
    folder = f"/tmp/vfio-user-mode-{os.getpid()}"
    os.mkdir(folder, 0o755)
    try:
        with at(Path(folder), None) as made:
            assert not _connects_as(OTHER, made.server.path)
    finally:
        os.rmdir(folder)


def test_no_more_connections_than_are_allowed(tmp_path: Path) -> None:
    with at(tmp_path) as made:
        clients = [made.connect() for _ in range(MOST_CONNECTIONS)]
        clients[0].negotiate()
        # All are there once the last has been answered.
        clients[-1].say_version({})
        assert clients[-1].hear()[0].error == errno.EBUSY
        late = made.connect()
        assert late.ended()
        assert clients[0].ask_raw(Command.DEVICE_RESET)[0] == 0
        for client in (*clients, late):
            client.close()


def test_a_client_that_never_agrees_makes_room(tmp_path: Path) -> None:
    with at(tmp_path, negotiation=0.05) as made:
        silent = made.connect()
        assert silent.ended()
        Client(made.server.path).close()
        silent.close()


def test_a_server_lives_on_when_descriptors_run_out(tmp_path: Path) -> None:
    with at(tmp_path) as made:
        waiting = socket.socket(socket.AF_UNIX)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        taken = [os.open("/dev/null", os.O_RDONLY)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 20, hard))
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            # Nobody can be taken now; it is tried again.
            waiting.connect(made.server.path)
            assert not made.done.wait(0.3)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        client = RawClient(waiting)
        client.negotiate()
        client.close()


# --- The end --------------------------------------------------------------------------------------


def test_a_client_is_asked_to_let_go(tmp_path: Path) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    with at(tmp_path) as made, ThreadPoolExecutor(1) as pool:
        client = Client(made.server.path)
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.ACTION_TRIGGER
        client.set_irqs(flags, IrqIndex.REQ, 0, 1, fds=[event])
        stopped = pool.submit(made.server.stop, 20.0)
        assert select.select([event], [], [], 20)[0]
        assert os.eventfd_read(event) == 1
        assert not stopped.done()
        client.close()
        stopped.result(20)
    os.close(event)


def test_a_client_that_does_not_let_go_is_ended(tmp_path: Path) -> None:
    with at(tmp_path) as made:
        clients = [made.connect() for _ in range(5)]
        clients[0].negotiate()
        made.server.stop(0.1)
        for client in clients:
            assert client.ended()
            client.close()
        assert made.opened.device.state is DeviceState.RUNNING


def test_the_devices_state_outlives_its_clients(tmp_path: Path) -> None:
    with at(tmp_path) as made:
        client = made.connect()
        client.negotiate()
        client.feature(2 | 1 << 17, struct.pack("=Ii", DeviceState.STOP_COPY, -1))
        client.close()
        while made.server.clients():
            select.select([], [], [], 0.001)
        assert made.opened.device.state is DeviceState.STOP_COPY
        assert made.face.dma.ranges() == []


# --- What a client can make a server hold ---------------------------------------------------------


def test_the_bound_is_made_of_the_constants() -> None:
    assert 43 << 20 < MOST_HELD < 45 << 20


def test_a_client_cant_make_the_server_hold_more_than_the_bound(tmp_path: Path) -> None:
    """Everything at once: announced and not sent, sent and not taken, large reads, stray replies."""
    with at(tmp_path) as made:
        client = made.connect()
        client.negotiate()
        # A write of the client's makes the device ask it for memory; until it answers, all waits.
        client.ask(Command.DMA_MAP, DmaMap(32, 3, 0, 0, 1 << 20))
        made.face.on_write = lambda: made.face.dma.read(0, 1 << 20)
        tracemalloc.start()
        try:
            client.say(Command.REGION_WRITE, struct.pack("=QII", 0, 0, 1) + b"x", number=9)
            number = client.hear()[0].message_id
            with ThreadPoolExecutor(1) as pool:
                heard = pool.submit(_errors, client)
                for _ in range(20):
                    client.send(packed(Command.REGION_WRITE, bytes((1 << 20) + 64)))
                for _ in range(1030):
                    client.send(packed(99))
                # More than a message may have.
                client.send(HEADER.pack(1, Command.MIG_DATA_WRITE, (1 << 20) + 81, 0, 0))
                client.send(bytes((1 << 20) + 65))
                answer = struct.pack("=QQ", 0, 1 << 20) + bytes(1 << 20)
                client.say(Command.DMA_READ, answer, number=number, flags=1)
                client.wire.shutdown(socket.SHUT_WR)
                assert heard.result(20) >= 20 + 1030 + 1 - MOST_WAITING
                _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The test's own messages are in it, too.
        assert MOST_WAITING_BYTES < peak < MOST_HELD
        client.close()


def _errors(client: RawClient) -> int:
    """How many commands found no room, to the end of the connection."""
    found = 0
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            found += client.hear()[0].error == errno.ENOBUFS
    return found
