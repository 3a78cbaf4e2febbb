"""What comes from a peer: a stream of bytes and descriptors, taken apart into messages.

Everything that a peer announces is bounded before it costs memory.
"""

import array
import errno
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable

from precopy.vfio_user.messages import (
    HEADER,
    MIG_DATA_HEAD,
    MOST_FDS,
    MOST_HEAD,
    TYPE_MASK,
    Header,
    MessageFlags,
    WireError,
    wrong,
)

#: Messages up to this size (bytes, without the header) are received whole with one call.
_SMALL = 64 << 10

_HEADER_BYTES = HEADER.size

#: What is received at a time, in bytes.
INBOX_BYTES = _HEADER_BYTES + _SMALL

_ROOM_FOR_FDS = socket.CMSG_SPACE((MOST_FDS + 1) * array.array("i").itemsize)
# As plain integers: testing a bit of an enum's costs 1 to 2 us.
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_REPLY, _ERROR = int(MessageFlags.REPLY), int(MessageFlags.ERROR)
_TYPE_AND_ERROR = TYPE_MASK | _ERROR

#: Where the data of the reply to a command goes, by the command's message id; None: nowhere yet.
IntoMemory = Callable[[int], memoryview | None]

_NOTHING = memoryview(b"")


class Gone(OSError):
    """The connection is over; ``errno`` is ENOTCONN, or EPROTO where the peer broke the protocol."""


class Message:
    """A message that came. ``payload`` is valid until it is recycled; the descriptors are the taker's.

    ``problem``: what is wrong with it as a message; then there is no payload.
    """

    __slots__ = ("body", "fds", "header", "payload", "problem")

    def __init__(
        self,
        header: Header,
        payload: memoryview,
        fds: list[int],
        problem: WireError | None = None,
        body: bytearray | None = None,
    ) -> None:
        self.header, self.payload, self.fds = header, payload, fds
        self.problem = problem
        self.body = body

    def close_fds(self) -> None:
        while self.fds:
            os.close(self.fds.pop())


class Receiver:
    """Takes messages from ``connected``. One thread at a time.

    ``most_bytes``: the largest payload that is taken, without :data:`MOST_HEAD`. ``into``: see
    :data:`IntoMemory`. Every method raises Gone, and TimeoutError after its ``deadline`` (of
    ``time.monotonic``).
    """

    def __init__(self, connected: socket.socket, most_bytes: int, into: IntoMemory) -> None:
        self._socket, self._into = connected, into
        self._most_bytes = most_bytes
        # What has been received and not yet been taken apart.
        self._inbox = memoryview(bytearray(INBOX_BYTES))
        self._start = self._end = 0
        #: Bytes of the stream before ``_start``, and still to be passed over.
        self._position = 0
        self._discard = 0
        #: Descriptors, each batch with where in the stream the bytes that it came with end.
        self._fds: deque[tuple[int, list[int]]] = deque()
        self._spare: bytearray | None = None

    def receive(self, deadline: float | None = None) -> Message:
        """The next message."""
        if self._discard:
            self._pass_over(deadline)
        while self._end - self._start < _HEADER_BYTES:
            self._fill(deadline)
        start = self._start
        header = Header._make(HEADER.unpack_from(self._inbox, start))
        size = header.size - _HEADER_BYTES
        kind = header.flags & _TYPE_AND_ERROR
        if not 0 <= size <= self._most_bytes + MOST_HEAD or kind & TYPE_MASK > _REPLY:
            return self._refused(header, _problem(header))
        if kind == _REPLY and size > MIG_DATA_HEAD:
            into = self._into(header.message_id)
            if into is not None:
                if size - MIG_DATA_HEAD <= len(into):
                    return self._receive_into(header, size, into, deadline, MIG_DATA_HEAD)
                text = f"a reply of {size} bytes, more than asked for"
                return self._refused(header, wrong(errno.EPROTO, text))
        if size > _SMALL:
            return self._receive_large(header, size, deadline)
        while self._end - self._start < header.size:
            self._fill(deadline)
        at = self._start + _HEADER_BYTES
        payload = memoryview(bytes(self._inbox[at : at + size]))
        return self._taken(header, payload, header.size)

    def recycle(self, message: Message) -> None:
        """``message`` has been dealt with: its descriptors are closed, its memory is used again."""
        if message.fds:
            message.close_fds()
        # Who raised it left it with a traceback that leads back here.
        message.problem = None
        if message.body is not None:
            self._spare, message.body = message.body, None

    def close(self) -> None:
        """Close what came with messages that are not complete."""
        while self._fds:
            _close(self._fds.popleft()[1])

    # --- Messages -----------------------------------------------------------------------------

    def _refused(self, header: Header, problem: WireError) -> Message:
        # What it announces is passed over, so that the next message is found.
        self._discard = max(header.size - _HEADER_BYTES, 0)
        return self._taken(header, _NOTHING, _HEADER_BYTES, problem)

    def _receive_large(self, header: Header, size: int, deadline: float | None) -> Message:
        body, self._spare = self._spare, None
        if body is None or len(body) < size:
            body = bytearray(size)
        view = memoryview(body)[:size]
        message = self._receive_into(header, size, view, deadline, 0)
        message.payload, message.body = view, body
        return message

    def _receive_into(
        self, header: Header, size: int, into: memoryview, deadline: float | None, head: int
    ) -> Message:
        """A message whose payload from byte ``head`` on goes into memory without a detour."""
        while self._end - self._start < _HEADER_BYTES + head:
            self._fill(deadline)
        at = self._start + _HEADER_BYTES
        fixed = memoryview(bytes(self._inbox[at : at + head]))
        at += head
        rest = size - head
        have = min(self._end - at, rest)
        into[:have] = self._inbox[at : at + have]
        message = self._taken(header, fixed, _HEADER_BYTES + head + have)
        try:
            self._receive_rest(into[have:rest], deadline)
        except BaseException:
            message.close_fds()
            raise
        return message

    def _receive_rest(self, into: memoryview, deadline: float | None) -> None:
        while into:
            self._await_data(deadline)
            try:
                count = self._socket.recv_into(into)
            except OSError as error:
                raise Gone(errno.ENOTCONN, "the peer has gone") from error
            if not count:
                raise Gone(errno.EPROTO, "the connection ended in the middle of a message")
            into = into[count:]
            self._position += count

    def _taken(
        self, header: Header, payload: memoryview, size: int, problem: WireError | None = None
    ) -> Message:
        """The message that is made of the next ``size`` bytes, with the descriptors among them."""
        self._skip(size)
        fds: list[int] = []
        while self._fds and self._fds[0][0] <= self._position:
            fds += self._fds.popleft()[1]
        return Message(header, payload, fds, problem)

    def _skip(self, size: int) -> None:
        self._start += size
        self._position += size
        if self._start == self._end:
            self._start = self._end = 0

    def _pass_over(self, deadline: float | None) -> None:
        while self._discard:
            count = min(self._discard, self._end - self._start)
            self._skip(count)
            self._discard -= count
            while self._fds and self._fds[0][0] <= self._position:
                _close(self._fds.popleft()[1])
            if self._discard:
                self._fill(deadline)

    # --- Bytes --------------------------------------------------------------------------------

    def _await_data(self, deadline: float | None) -> None:
        if deadline is None:
            return
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise TimeoutError(errno.ETIMEDOUT, "the peer does not answer")

    def _fill(self, deadline: float | None) -> None:
        """Receive what there is, at least a byte."""
        if deadline is not None:
            self._await_data(deadline)
        if self._start:
            rest = bytes(self._inbox[self._start : self._end])
            self._inbox[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        room = self._inbox[self._end :] if self._end else self._inbox
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into([room], _ROOM_FOR_FDS, _CLOEXEC)
        except OSError as error:
            raise Gone(errno.ENOTCONN, "the peer has gone") from error
        self._end += count
        if ancillary:
            self._take_fds(ancillary, flags)
        if not count:
            if self._end or self._discard:
                raise Gone(errno.EPROTO, "the connection ended in the middle of a message")
            raise Gone(errno.ENOTCONN, "the peer has gone")

    def _take_fds(self, ancillary: list[tuple[int, int, bytes]], flags: int) -> None:
        fds: list[int] = []
        for level, kind, data in ancillary:
            if (level, kind) == _RIGHTS:
                got = array.array("i")
                got.frombytes(data[: len(data) - len(data) % got.itemsize])
                fds += got
        self._fds.append((self._position + self._end, fds))
        # What is here belongs to one message that is not complete, or to that and the next.
        held = sum(len(each) for _, each in self._fds)
        if flags & _TRUNCATED or len(fds) > MOST_FDS or held > 2 * MOST_FDS:
            raise Gone(errno.EPROTO, "more descriptors came than a message may have")


def _problem(header: Header) -> WireError:
    """What is wrong with a header."""
    if header.size < _HEADER_BYTES:
        return wrong(errno.EINVAL, f"a message of {header.size} bytes is shorter than its header")
    if header.flags & TYPE_MASK > _REPLY:
        return wrong(errno.EINVAL, f"flags {header.flags:#x}: neither command nor reply")
    return wrong(errno.EINVAL, f"a message of {header.size} bytes is too large")


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
