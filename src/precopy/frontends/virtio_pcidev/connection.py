"""One connection's socket: messages and file descriptors in, answers out."""

import array
import contextlib
import os
import socket

from precopy.frontends.virtio_pcidev import messages
from precopy.frontends.virtio_pcidev.messages import Header, Payload, ProtocolError, Request

#: Room for the descriptors of the greatest memory table, and for one too many.
_ROOM_FOR_FDS = socket.CMSG_SPACE((messages.MAX_REGIONS + 1) * array.array("i").itemsize)

#: As plain integers: testing a bit of the socket module's own costs 2 us.
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)


class Gone(Exception):
    """The front end has ended the connection, or it was ended here."""


class Connection:
    """Takes over ``connected``. To be used by one thread, but for :meth:`cut`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._header = memoryview(bytearray(messages.HEADER.size))
        self._payload = memoryview(bytearray(messages.MAX_PAYLOAD))

    def receive(self) -> tuple[Header, Payload, list[int]]:
        """The next message, waited for. The descriptors that came with it are the caller's.

        ProtocolError for one that breaks the protocol, or ends in the middle. Gone.
        """
        fds: list[int] = []
        try:
            self._fill(self._header, fds)
            header = messages.parse_header(self._header)
            payload = self._payload[: header.size]
            if header.size:
                self._fill(payload, None)
            return header, messages.parse_payload(header.request, payload, len(fds)), fds
        except BaseException:
            close_all(fds)
            raise

    def _fill(self, into: memoryview, fds: list[int] | None) -> None:
        """Receive until ``into`` is full; descriptors are added to ``fds``, without it dropped."""
        got = 0
        while got < len(into):
            try:
                if fds is None:
                    count = self._socket.recv_into(into[got:])
                else:
                    count, ancillary, flags, _ = self._socket.recvmsg_into(
                        [into[got:]], _ROOM_FOR_FDS, _CLOEXEC
                    )
                    if ancillary:
                        _take(ancillary, fds)
                    if flags & _TRUNCATED:
                        raise ProtocolError("more file descriptors come than any message has")
            except OSError as error:
                raise Gone from error
            if not count:
                if got or fds is None:
                    raise ProtocolError("the connection ended in the middle of a message")
                raise Gone
            got += count

    def answer(self, request: Request, payload: bytes) -> None:
        """Answer ``request``. Gone."""
        try:
            self._socket.sendall(messages.pack_reply(request, payload))
        except OSError as error:
            raise Gone from error

    def cut(self) -> None:
        """End the connection from any thread: who waits for it goes on, with Gone."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()


def close_all(fds: list[int]) -> None:
    """Close file descriptors and forget them."""
    while fds:
        os.close(fds.pop())


def _take(ancillary: list[tuple[int, int, bytes]], fds: list[int]) -> None:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            got = array.array("i")
            got.frombytes(data[: len(data) - len(data) % got.itemsize])
            fds += got
