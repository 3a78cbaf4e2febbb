"""One socket between two peers: messages with their descriptors, and replies matched to commands.

Both sides may send commands. There is no thread that reads: whoever waits for something reads for
all, so that a command and its reply cost no switch between threads. Everything that a peer announces
is bounded before it costs memory.
"""

import array
import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from precopy.vfio.device import Buffer
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

#: Commands of the peer that may wait while one of them is carried out: number, bytes of all, and
#: their descriptors.
MOST_WAITING, MOST_WAITING_BYTES, MOST_WAITING_FDS = 1024, 8 << 20, 64

_ROOM_FOR_FDS = socket.CMSG_SPACE((MOST_FDS + 1) * array.array("i").itemsize)
# As plain integers: testing a bit of the socket module's own costs 2 us.
_CLOEXEC, _TRUNCATED = int(socket.MSG_CMSG_CLOEXEC), int(socket.MSG_CTRUNC)
_ANCILLARY = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_REPLY, _ERROR = int(MessageFlags.REPLY), int(MessageFlags.ERROR)


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


@dataclass(slots=True)
class _Call:
    """A command that waits for its reply; data of a MIG_DATA_READ's goes ``into`` memory."""

    into: memoryview | None
    reply: Message | None = None


@dataclass(slots=True)
class _Waiting:
    """Commands of the peer that nobody has taken yet."""

    messages: deque[Message] = field(default_factory=deque)
    size: int = 0
    fds: int = 0


_NOTHING = memoryview(b"")


class Conversation:
    """Takes over ``connected``, a blocking stream socket.

    ``most_bytes``: the largest payload that is taken, without :data:`MOST_HEAD`. Any thread may call,
    send and ask for the next request.
    """

    def __init__(self, connected: socket.socket, most_bytes: int) -> None:
        self._socket = connected
        self.most_bytes = most_bytes
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._reading = False
        self._gone: Gone | None = None
        self._calls: dict[int, _Call] = {}
        self._next_id = 0
        self._waiting = _Waiting()
        # What has been received and not yet been taken apart.
        self._inbox = memoryview(bytearray(HEADER.size + _SMALL))
        self._start = self._end = 0
        #: Bytes of the stream before ``_start``, and still to be passed over.
        self._position = 0
        self._discard = 0
        #: Descriptors, each batch with where in the stream the bytes that it came with end.
        self._fds: deque[tuple[int, list[int]]] = deque()
        self._spare: bytearray | None = None

    # --- Sending ------------------------------------------------------------------------------

    def call(
        self,
        command: int,
        payload: Sequence[Buffer] = (),
        *,
        fds: Sequence[int] = (),
        into: memoryview | None = None,
        timeout: float | None = None,
    ) -> Message:
        """Send a command and wait for its reply.

        ``into``: where the data of a MIG_DATA_READ's reply is put; ``payload`` of the reply then ends
        before it. OSError with the errno that the peer answered; Gone; TimeoutError after ``timeout``
        seconds, from which on the conversation is over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        call = _Call(into)
        with self._changed:
            if self._gone is not None:
                raise self._gone
            number = self._next_id
            while number in self._calls:
                number = (number + 1) & 0xFFFF
            self._next_id = (number + 1) & 0xFFFF
            self._calls[number] = call
        try:
            self._send(number, command, 0, 0, payload, fds)
            self._read_until(lambda: call.reply is not None, deadline)
        except TimeoutError:
            self.cut(errno.ETIMEDOUT, "the peer does not answer")
            raise
        finally:
            with self._changed:
                del self._calls[number]
        reply = call.reply
        assert reply is not None
        if reply.problem is not None:
            reply.close_fds()
            self.cut(errno.EPROTO, f"a reply that can't be: {reply.problem.strerror}")
            raise Gone(errno.EPROTO, reply.problem.strerror)
        if reply.header.flags & _ERROR:
            reply.close_fds()
            code = reply.header.error or errno.EIO
            raise OSError(code, os.strerror(code))
        return reply

    def post(self, command: int, payload: Sequence[Buffer]) -> None:
        """Send a command that wants no reply."""
        with self._changed:
            number = self._next_id
            self._next_id = (number + 1) & 0xFFFF
        self._send(number, command, MessageFlags.NO_REPLY, 0, payload, ())

    def reply(self, to: Header, payload: Sequence[Buffer] = (), fds: Sequence[int] = ()) -> None:
        """Answer a command, if it wants that."""
        if to.wants_reply:
            self._send(to.message_id, to.command, _REPLY, 0, payload, fds)

    def fail(self, to: Header, code: int) -> None:
        """Answer a command with an errno, if it wants an answer."""
        if to.wants_reply:
            self._send(to.message_id, to.command, _REPLY | _ERROR, code, (), ())

    def _send(
        self,
        number: int,
        command: int,
        flags: int,
        code: int,
        payload: Sequence[Buffer],
        fds: Sequence[int],
    ) -> None:
        size = HEADER.size + sum(map(len, payload))
        parts: list[Buffer] = [HEADER.pack(number, command, size, flags, code), *payload]
        ancillary = [(*_ANCILLARY, array.array("i", fds))] if fds else []
        try:
            with self._sending:
                sent = self._socket.sendmsg(parts, ancillary, _NO_SIGNAL)
                while sent < size:
                    while sent >= len(parts[0]):
                        sent -= len(parts[0])
                        size -= len(parts[0])
                        del parts[0]
                    parts[0] = memoryview(parts[0])[sent:]
                    size -= sent
                    sent = self._socket.sendmsg(parts, (), _NO_SIGNAL)
        except OSError as error:
            raise self._over(errno.ENOTCONN, "the peer has gone") from error

    # --- Receiving ----------------------------------------------------------------------------

    def next_request(self, timeout: float | None = None) -> Message:
        """The peer's next command, or what came instead of one. Gone, TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = self._waiting
        while True:
            self._read_until(lambda: bool(waiting.messages), deadline)
            with self._changed:
                if not waiting.messages:
                    # Another thread was faster.
                    continue
                message = waiting.messages.popleft()
                waiting.size -= len(message.payload)
                waiting.fds -= len(message.fds)
                return message

    def recycle(self, message: Message) -> None:
        """``message`` has been dealt with: its descriptors are closed, its memory is used again."""
        message.close_fds()
        if message.body is not None:
            self._spare, message.body = message.body, None

    def _read_until(self, ready: Callable[[], bool], deadline: float | None) -> None:
        changed = self._changed
        while True:
            with changed:
                while not ready():
                    if self._gone is not None:
                        raise self._gone
                    if not self._reading:
                        self._reading = True
                        break
                    left = None if deadline is None else deadline - time.monotonic()
                    if left is not None and left <= 0:
                        raise TimeoutError(errno.ETIMEDOUT, "the peer does not answer")
                    changed.wait(left)
                else:
                    return
            try:
                message = self._receive(deadline)
            except BaseException:
                with changed:
                    self._reading = False
                    changed.notify_all()
                raise
            with changed:
                self._reading = False
                refused = self._sort(message)
                changed.notify_all()
            if refused:
                message.close_fds()
                if not message.header.is_reply:
                    self.fail(message.header, errno.ENOBUFS)

    def _sort(self, message: Message) -> bool:
        """Give a message to whom it is for; whether there is no room for it."""
        if message.header.is_reply:
            call = self._calls.get(message.header.message_id)
            if call is not None and call.reply is None:
                call.reply = message
                return False
            if message.problem is None:
                message.problem = wrong(errno.EINVAL, "a reply that nobody waits for")
        waiting = self._waiting
        size, fds = waiting.size + len(message.payload), waiting.fds + len(message.fds)
        if waiting.messages and (
            len(waiting.messages) >= MOST_WAITING
            or size > MOST_WAITING_BYTES
            or fds > MOST_WAITING_FDS
        ):
            return True
        waiting.messages.append(message)
        waiting.size, waiting.fds = size, fds
        return False

    def _receive(self, deadline: float | None) -> Message:
        """The next message. Only who has :attr:`_reading` may."""
        while self._discard:
            self._skip(min(self._discard, self._end - self._start))
            if self._discard:
                self._fill(deadline)
        while self._end - self._start < HEADER.size:
            self._fill(deadline)
        header = Header(*HEADER.unpack_from(self._inbox, self._start))
        problem = self._check(header)
        if problem is not None:
            # What it announces is passed over, so that the next message is found.
            self._discard = max(header.size - HEADER.size, 0)
            return self._taken(header, _NOTHING, HEADER.size, problem)
        size = header.size - HEADER.size
        if header.is_reply and not header.flags & _ERROR:
            call = self._calls.get(header.message_id)
            # A second reply to the same command finds its memory given away.
            into = None if call is None or call.reply is not None else call.into
            if into is not None and size > MIG_DATA_HEAD:
                if size - MIG_DATA_HEAD <= len(into):
                    return self._receive_into(header, size, into, deadline)
                self._discard = size
                problem = wrong(errno.EPROTO, f"a reply of {size} bytes, more than asked for")
                return self._taken(header, _NOTHING, HEADER.size, problem)
        if size <= _SMALL:
            while self._end - self._start < header.size:
                self._fill(deadline)
            at = self._start + HEADER.size
            payload = memoryview(bytes(self._inbox[at : at + size]))
            return self._taken(header, payload, header.size, None)
        body = self._spare
        self._spare = None
        if body is None or len(body) < size:
            body = bytearray(size)
        view = memoryview(body)[:size]
        message = self._receive_into(header, size, view, deadline, head=0)
        message.payload, message.body = view, body
        return message

    def _check(self, header: Header) -> WireError | None:
        if header.size < HEADER.size:
            return wrong(
                errno.EINVAL, f"a message of {header.size} bytes is shorter than its header"
            )
        if header.size - HEADER.size > self.most_bytes + MOST_HEAD:
            return wrong(errno.EINVAL, f"a message of {header.size} bytes is too large")
        if header.flags & TYPE_MASK > MessageFlags.REPLY:
            return wrong(errno.EINVAL, f"flags {header.flags:#x}: neither command nor reply")
        return None

    def _receive_into(
        self,
        header: Header,
        size: int,
        into: memoryview,
        deadline: float | None,
        head: int = MIG_DATA_HEAD,
    ) -> Message:
        """A message whose payload from byte ``head`` on goes into memory without a detour."""
        while self._end - self._start < HEADER.size + head:
            self._fill(deadline)
        at = self._start + HEADER.size
        fixed = memoryview(bytes(self._inbox[at : at + head]))
        at += head
        rest = size - head
        have = min(self._end - at, rest)
        into[:have] = self._inbox[at : at + have]
        message = self._taken(header, fixed, HEADER.size + head + have, None)
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
                raise self._over(errno.ENOTCONN, "the peer has gone") from error
            if not count:
                raise self._over(errno.EPROTO, "the connection ended in the middle of a message")
            into = into[count:]
            self._position += count

    def _taken(
        self, header: Header, payload: memoryview, size: int, problem: WireError | None
    ) -> Message:
        """The message that is made of the next ``size`` bytes, with the descriptors among them."""
        self._skip(size, discarding=False)
        fds: list[int] = []
        while self._fds and self._fds[0][0] <= self._position:
            fds += self._fds.popleft()[1]
        return Message(header, payload, fds, problem)

    def _skip(self, size: int, *, discarding: bool = True) -> None:
        self._start += size
        self._position += size
        if self._start == self._end:
            self._start = self._end = 0
        if discarding:
            self._discard -= size
            while self._fds and self._fds[0][0] <= self._position:
                _close(self._fds.popleft()[1])

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
        self._await_data(deadline)
        if self._start:
            rest = bytes(self._inbox[self._start : self._end])
            self._inbox[: len(rest)] = rest
            self._start, self._end = 0, len(rest)
        try:
            count, ancillary, flags, _ = self._socket.recvmsg_into(
                [self._inbox[self._end :]], _ROOM_FOR_FDS, _CLOEXEC
            )
        except OSError as error:
            raise self._over(errno.ENOTCONN, "the peer has gone") from error
        self._end += count
        if ancillary:
            fds: list[int] = []
            for level, kind, data in ancillary:
                if (level, kind) == _ANCILLARY:
                    got = array.array("i")
                    got.frombytes(data[: len(data) - len(data) % got.itemsize])
                    fds += got
            self._fds.append((self._position + self._end, fds))
            # What is here belongs to one message that is not complete, or to that and the next.
            held = sum(len(each) for _, each in self._fds)
            if flags & _TRUNCATED or len(fds) > MOST_FDS or held > 2 * MOST_FDS:
                raise self._over(errno.EPROTO, "more descriptors came than a message may have")
        if not count:
            if self._end or self._discard:
                raise self._over(errno.EPROTO, "the connection ended in the middle of a message")
            raise self._over(errno.ENOTCONN, "the peer has gone")

    # --- The end ------------------------------------------------------------------------------

    def _over(self, code: int, text: str) -> Gone:
        """The conversation is over: everybody who waits is told."""
        with self._changed:
            if self._gone is None:
                self._gone = Gone(code, text)
            self._changed.notify_all()
            return self._gone

    def cut(self, code: int = errno.ENOTCONN, text: str = "the connection was ended here") -> None:
        """End the connection, from any thread: who waits for it raises Gone."""
        self._over(code, text)
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and what came with messages that nobody took."""
        self.cut()
        with self._changed:
            while self._waiting.messages:
                self._waiting.messages.popleft().close_fds()
            while self._fds:
                _close(self._fds.popleft()[1])
        self._socket.close()


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
