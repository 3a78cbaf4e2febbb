"""Where a target listens: what may be written, who may connect, and what is left behind."""

import errno
import os
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine.address import (
    DEFAULT_PORT,
    Address,
    AddressError,
    Listening,
    connect,
    is_address,
    parse,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("tcp://127.0.0.1:80", Address("127.0.0.1", 80)),
        ("tcp://host.example", Address("host.example", DEFAULT_PORT)),
        ("tcp://HOST:0", Address("host", 0)),
        ("tcp://[::1]:7", Address("::1", 7)),
        ("tcp://[fe80::1]", Address("fe80::1", DEFAULT_PORT)),
        ("unix:/run/x", Address(path="/run/x")),
        ("unix:///run/x", Address(path="/run/x")),
        ("unix:x?y#z", Address(path="x?y#z")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse(text) == address
    assert is_address(text)
    # What is printed can be given to the other side.
    assert parse(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "tcp:", "tcp://", "tcp://:80", "tcp://h:65536", "tcp://h:-1", "tcp://h:x"),
        *(
            "tcp://h/x",
            "tcp://h:1/",
            "tcp://h?x",
            "tcp://h#x",
            "tcp://u@h",
            "tcp://[::1",
            "tcp://::1",
        ),
        *("unix:", "unix://", "udp://h:1", "h:1", "/run/x", "sim:mlx5"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(AddressError, match="write tcp://host:port or unix:/path"):
        parse(text)


@given(st.text())
def test_any_text(text: str) -> None:
    for each in (text, f"tcp://{text}", f"unix:{text}"):
        try:
            found = parse(each)
        except AddressError:
            continue
        assert found.path or found.host


@pytest.mark.parametrize(
    ("text", "local"),
    [
        *(("tcp://localhost:1", True), ("tcp://127.9.9.9:1", True), ("tcp://[::1]:1", True)),
        *(("unix:/x", True), ("tcp://0.0.0.0:1", False), ("tcp://[::]:1", False)),
        *(("tcp://10.0.0.1:1", False), ("tcp://localhost.example:1", False)),
    ],
)
def test_what_a_network_can_reach(text: str, local: bool) -> None:
    address = parse(text)
    assert address.is_local is local
    if not local:
        with pytest.raises(AddressError, match="--plain-from-network"):
            Listening(address)


def exchange(listening: Listening) -> None:
    with connect(listening.address) as one, listening.accept() as other:
        one.sendall(b"there")
        assert other.recv(8) == b"there"
        assert one.gettimeout() is other.gettimeout() is None


def test_any_port() -> None:
    listening = Listening(parse("tcp://127.0.0.1:0"))
    assert listening.address.port
    exchange(listening)
    listening.close()
    with pytest.raises(OSError, match=f"{listening.address}: Connection refused"):
        connect(listening.address)


def test_a_port_that_is_taken() -> None:
    first = Listening(parse("tcp://127.0.0.1:0"))
    with pytest.raises(OSError, match=f"{first.address}: Address already in use"):
        Listening(first.address)
    first.close()


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    umask = os.umask(0)
    try:
        listening = Listening(Address(path=str(path)))
        assert os.umask(0) == 0
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o600
    exchange(listening)
    listening.close()
    assert not path.exists()
    # Another one's socket at that place is not taken away.
    with Second(path):
        listening.close()
        assert path.exists()


class Second:
    """A socket that listens at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> socket.socket:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(self._path))
        self._socket.listen()
        return self._socket

    def __exit__(self, *_: object) -> None:
        self._socket.close()


def test_a_socket_that_is_left_over_is_replaced(tmp_path: Path) -> None:
    """A process that was killed leaves one."""
    path = tmp_path / "socket"
    with Second(path):
        pass
    assert path.is_socket()
    listening = Listening(Address(path=str(path)))
    exchange(listening)
    listening.close()


def test_a_socket_that_is_in_use_is_not(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Second(path) as server:
        with pytest.raises(OSError, match=f"unix:{path}: Address already in use"):
            Listening(Address(path=str(path)))
        server.settimeout(5)
        server.accept()[0].close()  # it was asked, and is still there
        assert path.is_socket()


def test_a_file_is_never_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match="Address already in use"):
        Listening(Address(path=str(path)))
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unix:/nonexistent/socket", "No such file or directory$"),
        ("unix:" + "x" * 200, "File name too long|AF_UNIX path too long$"),
        # What libraries say of a label over 63 signs differs.
        (f"tcp://{'x' * 64}.example:1", "this can't be an address$|Name or service not known$"),
    ],
)
def test_no_connection(text: str, reason: str) -> None:
    with pytest.raises(OSError, match=reason) as caught:
        connect(parse(text), 1.0)
    assert caught.value.strerror is not None
    assert caught.value.strerror.startswith(text)
    with pytest.raises(OSError, match=reason):
        Listening(parse(text), plain_from_network=True)


def test_nobody_comes(tmp_path: Path) -> None:
    listening = Listening(Address(path=str(tmp_path / "socket")))
    with pytest.raises(TimeoutError):
        listening.accept(0.01)
    exchange(listening)
    listening.close()


def test_waiting_for_a_listener(tmp_path: Path) -> None:
    """It comes up between two tries: no such socket first, then one that is left over, then a listener."""
    path = tmp_path / "socket"
    listening: list[Listening] = []
    tries = 0

    def come_up() -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            with Second(path):
                pass
        elif tries == 2:
            listening.append(Listening(Address(path=str(path))))

    connect(Address(path=str(path)), wait=60, waiting=come_up).close()
    assert tries == 2
    listening[0].close()


def test_waiting_comes_to_an_end(tmp_path: Path) -> None:
    tries = []
    with pytest.raises(OSError, match="No such file") as caught:
        connect(Address(path=str(tmp_path / "x")), wait=0.2, waiting=lambda: tries.append(1))
    assert caught.value.errno == errno.ENOENT
    assert tries


def test_what_waiting_does_not_help_is_told_at_once(tmp_path: Path) -> None:
    """A name that nobody has, a place that is no socket's."""
    file = tmp_path / "file"
    file.write_text("")
    for address in (Address(path="x" * 200), Address(path=f"{file}/x")):
        with pytest.raises(OSError, match=str(address)):
            connect(address, wait=60, waiting=lambda: pytest.fail("it waits"))


def test_an_ended_wait_leaves_nothing(tmp_path: Path) -> None:
    """Whoever interrupts it (Ctrl-C) is not left with a socket."""
    before = threading.active_count()

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        connect(Address(path=str(tmp_path / "x")), wait=60, waiting=interrupt)
    assert threading.active_count() == before
