"""Both ends of a connection: a conversation, and a plain socket that says what the test wants."""

import contextlib
import gc
import os
import socket
from collections.abc import Iterator, Sequence

from precopy.vfio_user.conversation import Conversation
from precopy.vfio_user.messages import HEADER, Header


def packed(
    command: int, payload: bytes = b"", *, number: int = 1, flags: int = 0, error: int = 0
) -> bytes:
    return HEADER.pack(number, command, HEADER.size + len(payload), flags, error) + payload


class Raw:
    """The other end, as bytes."""

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        wire.settimeout(20.0)

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        if fds:
            sent = socket.send_fds(self.wire, [data], list(fds))
            data = data[sent:]
        self.wire.sendall(data)

    def say(
        self,
        command: int,
        payload: bytes = b"",
        *,
        number: int = 1,
        flags: int = 0,
        error: int = 0,
        fds: Sequence[int] = (),
    ) -> None:
        self.send(packed(command, payload, number=number, flags=flags, error=error), fds)

    def _exactly(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", list[int]()
        while len(data) < size:
            piece, came, _, _ = socket.recv_fds(self.wire, size - len(data), 32)
            fds += came
            if not piece:
                raise EOFError(f"the connection ended, {len(data)} of {size} bytes came")
            data += piece
        return data, fds

    def hear(self) -> tuple[Header, bytes, list[int]]:
        """The next message. EOFError at the end of the connection."""
        head, fds = self._exactly(HEADER.size)
        header = Header(*HEADER.unpack(head))
        payload, more = self._exactly(header.size - HEADER.size)
        return header, payload, fds + more

    def ended(self) -> bool:
        """Whether the other side ends the connection; what it still says is passed over."""
        try:
            while self.wire.recv(1 << 16):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self.wire.close()


MOST = 1 << 20


@contextlib.contextmanager
def ends(most: int = MOST) -> Iterator[tuple[Conversation, Raw]]:
    ours, theirs = socket.socketpair()
    conversation, raw = Conversation(ours, most), Raw(theirs)
    try:
        yield conversation, raw
    finally:
        conversation.close()
        raw.close()


def open_fds() -> int:
    """How many descriptors this process has, besides those that nobody refers to."""
    if not gc.get_freeze_count():
        # What the tests themselves are made of need not be looked at each time.
        gc.collect()
        gc.freeze()
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def same_fds() -> Iterator[None]:
    """What happens inside opens and closes as many descriptors."""
    # What earlier tests left in circles is not to be counted when it goes.
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        yield
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def new_file() -> int:
    return os.memfd_create("test", os.MFD_CLOEXEC)


def same_file(one: int, other: int) -> bool:
    return os.path.sameopenfile(one, other)
