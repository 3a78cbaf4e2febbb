"""Joins two lab kernels by a network: a cable with an end in each.

A cable is a pair of datagram sockets that carry one Ethernet frame at a time. Two machines of one
process take an end each (:func:`pair`); those of two processes meet at a unix socket (:func:`meet`),
where the one that came first makes the cable and hands over an end.
"""

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from precopy.lab.errors import LabError

#: Addresses of the two machines, the first one's first. The network has 24 bits.
ADDRESSES = ("10.77.0.1", "10.77.0.2")

#: What comes with the end of a cable, so that another program's socket is not taken for ours.
_GREETING = b"precopy lab link 1"

#: Seconds for an answer of a process that is there.
_ANSWER = 5.0


@dataclass(frozen=True, slots=True)
class Link:
    """One end, and the address of the machine at it. The machine has it open once it has started."""

    end: socket.socket
    address: str

    def close(self) -> None:
        self.end.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def pair() -> tuple[Link, Link]:
    """Both ends of a new cable."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    return Link(one, ADDRESSES[0]), Link(other, ADDRESSES[1])


def meet(path: Path, timeout: float, say: Callable[[str], object]) -> Link:
    """An end of a cable whose other end goes to the process that calls this with the same ``path``.

    Who comes first makes a socket there and waits up to ``timeout`` seconds. LabError where ``path``
    is something else, or nobody comes.
    """
    # SOCK_SEQPACKET: hardly anything else listens on it, so a stranger's socket is refused at once.
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as meeting:
        try:
            with _lock(path.parent):
                first = not _reach(meeting, path)
                if first:
                    meeting.bind(str(path))
                    path.chmod(0o600)
                    meeting.listen(1)
            return _offer(meeting, path, timeout, say) if first else _take(meeting, path)
        except OSError as error:
            raise LabError(f"--link {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Of two processes that come at once, one is first."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _reach(meeting: socket.socket, path: Path) -> bool:
    """Whether somebody waits at ``path``, and is now connected. What a dead process left goes away."""
    meeting.settimeout(_ANSWER)
    try:
        meeting.connect(str(path))
    except FileNotFoundError:
        return False
    except ConnectionRefusedError:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise LabError(f"--link {path}: it is there and is no socket: name another") from None
        path.unlink()
        return False
    except OSError as error:
        if error.errno != errno.EPROTOTYPE:
            raise
        raise LabError(f"--link {path}: another program listens there: name another") from error
    return True


def _offer(
    meeting: socket.socket, path: Path, timeout: float, say: Callable[[str], object]
) -> Link:
    say(f"waiting for the other kernel at {path}")
    meeting.settimeout(timeout)
    try:
        other, _ = meeting.accept()
    except TimeoutError:
        raise LabError(
            f"--link {path}: no other lab run --link came within {timeout:g} s"
        ) from None
    finally:
        path.unlink(missing_ok=True)
    mine, theirs = pair()
    try:
        with other, theirs:
            socket.send_fds(other, [_GREETING], [theirs.end.fileno()])
    except BaseException:
        mine.close()
        raise
    return mine


def _take(meeting: socket.socket, path: Path) -> Link:
    try:
        said, fds, _, _ = socket.recv_fds(
            meeting, len(_GREETING) + 1, 1, flags=socket.MSG_CMSG_CLOEXEC
        )
    except (TimeoutError, ConnectionResetError):
        said, fds = b"", []
    if said == _GREETING and len(fds) == 1:
        return Link(socket.socket(fileno=fds[0]), ADDRESSES[1])
    for fd in fds:
        os.close(fd)
    if said:
        raise LabError(f"--link {path}: another program listens there: name another")
    raise LabError(
        f"--link {path}: who waited there has ended, or has found another: start both again"
    )
