"""Where two commands meet, without a kernel."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from precopy.lab import LabError, Link, meet
from precopy.lab.link import ADDRESSES, pair


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


class Waiting:
    """A call of ``meet`` that has come first, and waits."""

    def __init__(self, pool: ThreadPoolExecutor, path: Path, timeout: float = 30.0) -> None:
        self.said: list[str] = []
        self._waits = threading.Event()
        self.link: Future[Link] = pool.submit(meet, path, timeout, self._say)
        assert self._waits.wait(30)

    def _say(self, text: str) -> None:
        self.said.append(text)
        self._waits.set()


def silent(text: str) -> None:
    raise AssertionError(f"nobody is to be waited for: {text}")


def require_joined(first: Link, second: Link) -> None:
    with first, second:
        assert (first.address, second.address) == ADDRESSES
        for one, other in ((first, second), (second, first)):
            # A frame arrives as it was sent.
            one.end.send(b"frame 1")
            one.end.send(b"2")
            assert [other.end.recv(2000), other.end.recv(2000)] == [b"frame 1", b"2"]


def test_both_ends_of_one_process() -> None:
    require_joined(*pair())


def test_two_meet(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "link"
    first = Waiting(pool, path)
    assert first.said == [f"waiting for the other kernel at {path}"]
    assert path.stat().st_mode & 0o777 == 0o600
    require_joined(second=meet(path, 30, silent), first=first.link.result(30))
    # The place is free again.
    assert not path.exists()


def test_two_that_come_at_once(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    for n in range(20):
        calls = [pool.submit(meet, tmp_path / f"{n}", 30, len) for _ in range(2)]
        links = sorted((each.result(30) for each in calls), key=lambda link: link.address)
        require_joined(*links)


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_STREAM])
def test_what_a_dead_process_left_is_cleared_away(
    pool: ThreadPoolExecutor, tmp_path: Path, kind: int
) -> None:
    path = tmp_path / "link"
    with socket.socket(socket.AF_UNIX, kind) as left:
        left.bind(str(path))
    first = Waiting(pool, path)
    require_joined(second=meet(path, 30, silent), first=first.link.result(30))


def test_nobody_comes(pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    path = tmp_path / "link"
    first = Waiting(pool, path, timeout=0.05)
    with pytest.raises(LabError, match=r"no other lab run --link came within 0\.05 s"):
        first.link.result(30)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_path_that_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "link"
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()
    with pytest.raises(LabError, match=f"--link {path}: it is there and is no socket"):
        meet(path, 1, silent)
    assert path.exists()


@pytest.mark.parametrize("name", ["none/link", "x" * 200])
def test_a_path_that_can_not_be(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabError, match=f"--link {tmp_path}") as caught:
        meet(tmp_path / name, 1, silent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "answer", "text"),
    [
        (socket.SOCK_STREAM, b"", "another program listens there"),
        (socket.SOCK_SEQPACKET, b"hello", "another program listens there"),
        (socket.SOCK_SEQPACKET, b"precopy lab link 1", "another program listens there"),
        # Who waits is taken by a third, or ends.
        (socket.SOCK_SEQPACKET, b"", "start both again"),
    ],
)
def test_somebody_else_is_there(
    pool: ThreadPoolExecutor, tmp_path: Path, kind: int, answer: bytes, text: str
) -> None:
    path = tmp_path / "link"
    with socket.socket(socket.AF_UNIX, kind) as stranger:
        stranger.bind(str(path))
        stranger.listen()
        call = pool.submit(meet, path, 30, silent)
        if kind == socket.SOCK_SEQPACKET:
            other, _ = stranger.accept()
            with other:
                if answer:
                    other.send(answer)
        with pytest.raises(LabError, match=text):
            call.result(30)
    assert path.exists()
