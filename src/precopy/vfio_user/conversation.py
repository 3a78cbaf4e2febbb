"""One socket between two peers: replies matched to commands, which both sides may send.

There is no thread that reads: whoever waits for something reads for all, so that a command and its
reply cost no switch between threads.
"""

import array
import contextlib
import errno
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from precopy.vfio.device import Buffer
from precopy.vfio_user.messages import HEADER, TYPE_MASK, Header, MessageFlags, wrong
from precopy.vfio_user.receiving import Gone, Message, Receiver

#: Commands of the peer that may wait while one of them is carried out: number, bytes of all, and
#: their descriptors.
MOST_WAITING, MOST_WAITING_BYTES, MOST_WAITING_FDS = 1024, 8 << 20, 64

#: Up to this size (bytes) it is cheaper to join the parts of a message than to send them as parts.
_JOINED = 4096

#: What the kernel may hold of what was sent and not yet received, in bytes. With its default (208 KiB)
#: both sides wait for each other: data goes at half the speed.
_SEND_BUFFER = 4 << 20
#: SO_SNDBUFFORCE of include/uapi/asm-generic/socket.h: beyond net.core.wmem_max, for root.
_SO_SNDBUFFORCE = 32

_HEADER_BYTES = HEADER.size
_RIGHTS = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
# As plain integers: testing a bit of an enum's costs 1 to 2 us.
_NO_SIGNAL = int(socket.MSG_NOSIGNAL)
_REPLY, _ERROR = int(MessageFlags.REPLY), int(MessageFlags.ERROR)
_NO_REPLY = int(MessageFlags.NO_REPLY)


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


class Conversation:
    """Takes over ``connected``, a blocking stream socket.

    ``most_bytes``: the largest payload that is taken (see ``Receiver``). Any thread may call, send
    and ask for the next request.
    """

    def __init__(self, connected: socket.socket, most_bytes: int) -> None:
        self._socket = connected
        enlarge(connected)
        self._receiver = Receiver(connected, most_bytes, self._into)
        # The condition's lock by itself is cheaper to take.
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._sleepers = 0
        self._sending = threading.Lock()
        self._reading = False
        self._gone: Gone | None = None
        self._calls: dict[int, _Call] = {}
        self._next_id = 0
        self._waiting = _Waiting()

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
        """Send a command and wait for its reply: :meth:`begin` and :meth:`finish`."""
        return self.finish(self.begin(command, payload, fds=fds, into=into), timeout)

    def begin(
        self,
        command: int,
        payload: Sequence[Buffer] = (),
        *,
        fds: Sequence[int] = (),
        into: memoryview | None = None,
    ) -> int:
        """Send a command; its number, for :meth:`finish`, which has to follow. Gone.

        ``into``: where the data of a MIG_DATA_READ's reply is put; ``payload`` of the reply then ends
        before it.
        """
        with self._lock:
            if self._gone is not None:
                raise self._gone
            number = self._next_id
            while number in self._calls:
                number = (number + 1) & 0xFFFF
            self._next_id = (number + 1) & 0xFFFF
            self._calls[number] = _Call(into)
        try:
            self._send(number, command, 0, 0, payload, fds)
        except BaseException:
            with self._lock:
                del self._calls[number]
            raise
        return number

    def finish(self, number: int, timeout: float | None = None) -> Message:
        """The reply to command ``number``.

        OSError with the errno that the peer answered; Gone; TimeoutError after ``timeout`` seconds,
        from which on the conversation is over.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        call = self._calls[number]
        try:
            self._read_until(lambda: call.reply is not None, deadline)
        except TimeoutError:
            self.cut(errno.ETIMEDOUT, "the peer does not answer")
            raise
        finally:
            with self._lock:
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
        with self._lock:
            number = self._next_id
            self._next_id = (number + 1) & 0xFFFF
        self._send(number, command, _NO_REPLY, 0, payload, ())

    def reply(self, to: Header, payload: Sequence[Buffer] = (), fds: Sequence[int] = ()) -> None:
        """Answer a command, if it wants that."""
        if not to.flags & _NO_REPLY:
            self._send(to.message_id, to.command, _REPLY, 0, payload, fds)

    def fail(self, to: Header, code: int) -> None:
        """Answer a command with an errno, if it wants an answer."""
        if not to.flags & _NO_REPLY:
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
        size = _HEADER_BYTES
        for part in payload:
            size += len(part)
        parts: list[Buffer] = [HEADER.pack(number, command, size, flags, code), *payload]
        if size <= _JOINED:
            parts = [b"".join(parts)]
        try:
            with self._sending:
                if fds:
                    rights = [(*_RIGHTS, array.array("i", fds))]
                    sent = self._socket.sendmsg(parts, rights, _NO_SIGNAL)
                elif len(parts) == 1:
                    sent = self._socket.send(parts[0], _NO_SIGNAL)
                else:
                    sent = self._socket.sendmsg(parts, (), _NO_SIGNAL)
                if sent < size:
                    self._send_rest(parts, sent)
        except OSError as error:
            raise self._over(Gone(errno.ENOTCONN, "the peer has gone")) from error

    def _send_rest(self, parts: list[Buffer], sent: int) -> None:
        """All but the first ``sent`` bytes of ``parts``."""
        while True:
            while parts and sent >= len(parts[0]):
                sent -= len(parts[0])
                del parts[0]
            if not parts:
                return
            parts[0] = memoryview(parts[0])[sent:]
            sent = self._socket.sendmsg(parts, (), _NO_SIGNAL)

    # --- Receiving ----------------------------------------------------------------------------

    def next_request(self, timeout: float | None = None) -> Message:
        """The peer's next command, or what came instead of one. Gone, TimeoutError."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = self._waiting
        while True:
            self._read_until(lambda: bool(waiting.messages), deadline)
            with self._lock:
                if not waiting.messages:
                    # Another thread was faster.
                    continue
                message = waiting.messages.popleft()
                waiting.size -= len(message.payload)
                waiting.fds -= len(message.fds)
                return message

    def recycle(self, message: Message) -> None:
        """``message`` has been dealt with: its descriptors are closed, its memory is used again."""
        self._receiver.recycle(message)

    def _into(self, message_id: int) -> memoryview | None:
        call = self._calls.get(message_id)
        # A second reply to the same command finds its memory given away.
        return None if call is None or call.reply is not None else call.into

    def _read_until(self, ready: Callable[[], bool], deadline: float | None) -> None:
        while True:
            with self._lock:
                while not ready():
                    if self._gone is not None:
                        raise self._gone
                    if not self._reading:
                        self._reading = True
                        break
                    self._sleep(deadline)
                else:
                    return
            try:
                message = self._receiver.receive(deadline)
            except BaseException as error:
                with self._lock:
                    self._reading = False
                    self._changed.notify_all()
                if not isinstance(error, Gone):
                    raise
                over = self._over(error)
                if over is error:
                    raise
                raise over from error
            with self._lock:
                self._reading = False
                refused = self._sort(message)
                if self._sleepers:
                    self._changed.notify_all()
            if refused:
                message.close_fds()
                if not message.header.is_reply:
                    self.fail(message.header, errno.ENOBUFS)

    def _sleep(self, deadline: float | None) -> None:
        """Until something has changed; TimeoutError. The lock is held."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError(errno.ETIMEDOUT, "the peer does not answer")
        self._sleepers += 1
        try:
            self._changed.wait(left)
        finally:
            self._sleepers -= 1

    def _sort(self, message: Message) -> bool:
        """Give a message to whom it is for; whether there is no room for it."""
        header = message.header
        if header.flags & TYPE_MASK == _REPLY:
            call = self._calls.get(header.message_id)
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

    # --- The end ------------------------------------------------------------------------------

    def _over(self, gone: Gone) -> Gone:
        """The conversation is over: everybody who waits is told; the reason that came first."""
        with self._lock:
            if self._gone is None:
                self._gone = gone
            self._changed.notify_all()
            return self._gone

    def cut(self, code: int = errno.ENOTCONN, text: str = "the connection was ended here") -> None:
        """End the connection, from any thread: who waits for it raises Gone."""
        self._over(Gone(code, text))
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, and what came with messages that nobody took."""
        self.cut()
        with self._lock:
            if self._gone is not None:
                # Its traceback holds all that was under way, this among it.
                self._gone.__traceback__ = self._gone.__cause__ = None
            while self._waiting.messages:
                self._waiting.messages.popleft().close_fds()
            self._receiver.close()
        self._socket.close()


def enlarge(connected: socket.socket) -> None:
    """As much room to send as is allowed."""
    for option in (_SO_SNDBUFFORCE, socket.SO_SNDBUF):
        with contextlib.suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, option, _SEND_BUFFER)
            return


__all__ = ["Conversation", "Gone", "Message"]
