"""Migrations over sockets through the engine: in every pairing, with a guest, and with a server that dies."""

import contextlib
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.backends import open_device
from precopy.engine.channel import Channel
from precopy.engine.outcome import MigrationError
from precopy.engine.report import Report
from precopy.engine.source import migrate
from precopy.engine.target import Received, receive
from precopy.frontends.vfio_user import Server
from precopy.guest import WorkloadGuest
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState
from tests.engine.rig import works

SIM = "sim:mlx5?log_max_qp=8"
GUEST = "qps=4"


class House:
    """Servers, each of a device of its own, and what is attached to them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack, self._count = folder, contextlib.ExitStack(), 0
        self.behind: dict[str, Opened] = {}

    def serve(self, more: str = "") -> str:
        """The name under which the device can be attached."""
        self._count += 1
        path = str(self._folder / f"socket-{self._count}")
        opened = open_device(f"{SIM}{more}", served=True)
        self._stack.callback(opened.close)
        server = Server(opened.device, opened.face, path)
        thread = server.start()
        self._stack.callback(thread.join, 20)
        self._stack.callback(server.stop)
        self.behind[path] = opened
        return f"vfio-user:{path}"

    def open(self, name: str, *, target: bool = False) -> Opened:
        opened = open_device(name, target=target)
        self._stack.callback(opened.close)
        return opened

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.close()


def move(source: Opened, target: Opened) -> tuple[Report | str, Received | str]:
    """How it ended on either side; a failure as its text."""
    near, far = socket.socketpair()
    found: list[Received | str] = []

    def take() -> None:
        channel = Channel(far)
        try:
            found.append(receive(target, channel))
        except MigrationError as error:
            found.append(str(error))
        finally:
            channel.close()

    thread = threading.Thread(target=take, name="target")
    thread.start()
    channel = Channel(near)
    try:
        told: Report | str = migrate(source, channel)
    except MigrationError as error:
        told = str(error)
    finally:
        channel.close()
        thread.join(60)
    return told, found[0]


@pytest.mark.parametrize("options", ["", "&extension=0&stream=mlx5"])
@pytest.mark.parametrize(
    ("of_source", "of_target"),
    [("vfio-user", "vfio-user"), ("vfio-user", "sim"), ("sim", "vfio-user")],
)
def test_with_a_guest(house: House, of_source: str, of_target: str, options: str) -> None:
    """Every message arrives once, before, while and after it moves."""
    if of_source == "sim":
        source = house.open(f"{SIM}&{GUEST}")
    else:
        source = house.open(f"{house.serve()}?guest=1&{GUEST}{options}")
    if of_target == "sim":
        target = house.open(SIM, target=True)
    else:
        target = house.open(f"{house.serve()}?{options[1:]}".rstrip("?"), target=True)
    assert isinstance(source.guest, WorkloadGuest)
    source.guest.start()
    told, received = move(source, target)
    assert isinstance(told, Report), told
    assert isinstance(received, Received), received
    assert source.device.state is DeviceState.STOP or source.device.state is DeviceState.STOP_COPY
    assert works(target)


@pytest.mark.parametrize("options", ["", "?extension=0&stream=mlx5"])
def test_without_a_guest(house: House, options: str) -> None:
    source = house.open(f"{house.serve('&state=3M')}{options}")
    target = house.open(f"{house.serve()}{options}", target=True)
    told, received = move(source, target)
    assert isinstance(told, Report), told
    assert isinstance(received, Received), received
    assert target.device.state is DeviceState.RUNNING


def test_who_a_device_is_is_not_known_without_the_extension(house: House) -> None:
    """Refused before anything changes, with what to do."""
    source = house.open(f"{house.serve()}?extension=0")
    target = house.open(SIM, target=True)
    told, received = move(source, target)
    assert isinstance(told, str)
    assert isinstance(received, str)
    assert source.device.state is target.device.state is DeviceState.RUNNING


class Dying:
    """A server in a process of its own, killed by the test."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/socket"
        ready, its_ready = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            try:
                opened = open_device(SIM, served=True)
                server = Server(opened.device, opened.face, self.path)
                os.write(its_ready, b"r")
                server.serve()
            finally:
                os._exit(1)
        assert os.read(ready, 1) == b"r"
        os.close(ready)
        os.close(its_ready)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def test_a_targets_server_dies_in_the_middle(house: House) -> None:
    """The source's device still runs, and its guest has lost nothing."""
    source = house.open(f"{house.serve('&state=2M')}?guest=1&{GUEST}")
    assert isinstance(source.guest, WorkloadGuest)
    source.guest.start()
    with tempfile.TemporaryDirectory(prefix="dying") as folder:
        dying = Dying(folder)
        target = house.open(f"vfio-user:{dying.path}", target=True)
        write = target.device.set_state
        # When it is to take state.

        def killed(new: int) -> object:
            if new == DeviceState.RESUMING:
                file = write(new)
                dying.kill()
                return file
            return write(new)

        target.device.set_state = killed  # type: ignore[assignment, method-assign]
        told, received = move(source, target)
    assert isinstance(told, str)
    assert isinstance(received, str)
    assert source.device.state is DeviceState.RUNNING
    assert works(source)


def test_a_sources_server_dies_in_the_middle(house: House) -> None:
    """One clear line, and a target that is as it was."""
    with tempfile.TemporaryDirectory(prefix="dying") as folder:
        dying = Dying(folder)
        source = house.open(f"vfio-user:{dying.path}")
        target = house.open(SIM, target=True)
        read = source.device.set_state

        def killed(new: int) -> object:
            file = read(new)
            if new == DeviceState.PRE_COPY:
                dying.kill()
            return file

        source.device.set_state = killed  # type: ignore[assignment, method-assign]
        told, received = move(source, target)
    assert isinstance(told, str)
    assert "\n" not in told
    assert isinstance(received, str)
    assert target.device.state is DeviceState.RUNNING
