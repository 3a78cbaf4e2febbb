"""The channel between source and target: frames over a connected socket.

    magic u16 | kind u8 | 0 u8 | length u32 | checksum u64     (little-endian), then the payload

A control frame's checksum is the xxh3 of its payload; that of a data frame, or of one with pages of
guest memory, is the running xxh3 of its stream up to and with this frame, so that one pass over the
bytes guards frame and order alike.
"""

import contextlib
import math
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Protocol

import xxhash

MAGIC = 0x5043

_HEADER = struct.Struct("<HBBIQ")
HEADER_BYTES = _HEADER.size

#: Most that a frame carries, in bytes.
MAX_CONTROL = 64 << 10
MAX_DATA = 1 << 20

DATA = 1
CONTROL = 2
MEMORY = 3

#: What carries a stream: the device's state, and pages of guest memory.
_STREAMS = (DATA, MEMORY)

#: Whoever waits for a peer looks so often, in seconds, whether he is to stop.
_SLICE = 0.1


class ChannelError(Exception):
    """What was wrong on the wire; the text says where, counted in bytes received."""


class Closed(ChannelError):
    """The peer closed the connection."""


class Interrupted(ChannelError):
    """``cancel`` was set while the peer stood still."""


class Wire(Protocol):
    """What the channel needs of a socket; a TLS socket has it too."""

    def send(self, data: bytes | memoryview, /) -> int: ...

    def recv_into(self, buffer: memoryview, nbytes: int = 0, /) -> int: ...

    def settimeout(self, value: float | None, /) -> None: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


def _gatherer(wire: Wire) -> Callable[[list[memoryview]], int]:
    """Sends some or all of what is given; the bytes sent. A wire that takes nothing raises in a slice."""
    if type(wire) is socket.socket:
        # The kernel's own limit, since a Python one makes every send cost a poll.
        limit = struct.pack("ll", 0, int(_SLICE * 1e6))
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        return wire.sendmsg
    wire.settimeout(_SLICE)
    return lambda parts: wire.send(parts[0])


class Channel:
    """Frames over ``wire``. Used by one thread a direction. Every call may raise ChannelError."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._gather = _gatherer(wire)
        self._head = memoryview(bytearray(HEADER_BYTES))
        self._buffer = memoryview(bytearray(MAX_DATA))
        self._sent = {kind: xxhash.xxh3_64() for kind in _STREAMS}
        self._received = {kind: xxhash.xxh3_64() for kind in _STREAMS}
        self._pace = 0.0
        self._due = 0.0
        self._read_limit = self._write_limit = math.inf
        #: A frame that did not leave whole: what would follow it means nothing.
        self._broken = False
        #: Set it to end, by Interrupted, whatever waits for the peer (a read: only with a limit).
        self.cancel = threading.Event()
        #: Told of every frame: whether it is sent (it is about to be), its header and its payload.
        self.tap: Callable[[bool, bytes | memoryview, bytes | memoryview], object] | None = None
        #: Bytes sent and received, frames and all.
        self.bytes_sent = 0
        self.bytes_received = 0

    def limit_reads(self, seconds: float) -> None:
        """How long a read may stand still before ChannelError; at first for ever."""
        self._read_limit = seconds
        self._wire.settimeout(min(seconds, _SLICE))

    def limit_writes(self, seconds: float) -> None:
        """How long a write may stand still before ChannelError; at first for ever."""
        self._write_limit = seconds

    def limit_rate(self, rate: float) -> None:
        """Send at most ``rate`` bytes a second from now on; 0: as fast as it goes."""
        self._pace, self._due = rate, time.monotonic()

    def _wait_for_turn(self, size: int) -> None:
        """Until a frame of ``size`` bytes may go. Interrupted."""
        now = time.monotonic()
        while self._due > now:
            if self.cancel.is_set():
                raise Interrupted("interrupted")
            time.sleep(min(self._due - now, _SLICE))
            now = time.monotonic()
        # Time in which nothing was to be sent is not made up for.
        self._due = max(self._due, now - _SLICE) + size / self._pace

    @staticmethod
    def _broke(where: str, error: OSError | ValueError) -> Closed:
        reason = error.strerror if isinstance(error, OSError) else None
        return Closed(f"the connection broke {where}: {reason or error}")

    # --- Sending ------------------------------------------------------------------------------

    def _send(self, kind: int, payload: bytes | memoryview, checksum: int) -> None:
        self._send_frame(_HEADER.pack(MAGIC, kind, 0, len(payload), checksum), payload)

    def _send_frame(self, header: bytes, payload: bytes | memoryview) -> None:
        # Together: a header alone would wake the peer for nothing.
        if len(payload) <= 4096:
            parts = [memoryview(header + payload)]
        else:
            parts = [memoryview(header), memoryview(payload)]
        if self._broken:
            raise Closed(f"the connection broke after byte {self.bytes_sent} sent")
        if self._pace:
            self._wait_for_turn(len(header) + len(payload))
        if self.tap is not None:
            # Before it goes: the answer can't be told of earlier.
            self.tap(True, header, payload)
        try:
            self._push(parts)
        except BaseException:
            self._broken = True
            raise
        self.bytes_sent += len(header) + len(payload)

    def _push(self, parts: list[memoryview]) -> None:
        stood = 0
        while parts:
            try:
                sent = self._gather(parts)
            except (TimeoutError, BlockingIOError):
                stood += 1
                if self.cancel.is_set():
                    raise Interrupted("interrupted") from None
                if stood * _SLICE >= self._write_limit:
                    raise ChannelError(
                        f"the peer takes nothing after byte {self.bytes_sent}"
                    ) from None
                continue
            except (OSError, ValueError) as error:
                raise self._broke(f"after byte {self.bytes_sent} sent", error) from None
            stood = 0
            while parts and sent >= len(parts[0]):
                sent -= len(parts.pop(0))
            if sent:
                parts[0] = parts[0][sent:]

    def send_data(self, data: memoryview) -> None:
        """A piece of the stream, at most MAX_DATA bytes."""
        self._send_stream(DATA, data)

    def send_memory(self, data: memoryview) -> None:
        """Pages of guest memory, at most MAX_DATA bytes."""
        self._send_stream(MEMORY, data)

    def _send_stream(self, kind: int, data: memoryview) -> None:
        digest = self._sent[kind]
        digest.update(data)
        self._send(kind, data, digest.intdigest())

    def send_control(self, payload: bytes) -> None:
        if len(payload) > MAX_CONTROL:
            raise ChannelError(f"a message of {len(payload)} bytes is too long")
        self._send(CONTROL, payload, xxhash.xxh3_64_intdigest(payload))

    def send_recorded(self, frame: memoryview) -> None:
        """A frame, header and all, as another channel has sent it; nothing in it is looked at."""
        self._send_frame(bytes(frame[:HEADER_BYTES]), frame[HEADER_BYTES:])

    def count_sent(self, kind: int, payload: bytes | memoryview) -> None:
        """A control message belongs to a stream: its digest from now on covers that, too."""
        self._sent[kind].update(payload)

    def count_received(self, kind: int, payload: bytes | memoryview) -> None:
        """The same at the other end."""
        self._received[kind].update(payload)

    def end_sent(self, kind: int = DATA) -> int:
        """Digest of the stream sent so far; its next frame begins a new one."""
        digest, self._sent[kind] = self._sent[kind].intdigest(), xxhash.xxh3_64()
        return digest

    # --- Receiving ----------------------------------------------------------------------------

    def _fill(self, view: memoryview) -> None:
        got = stood = 0
        while got < len(view):
            at = self.bytes_received + got
            try:
                count = self._wire.recv_into(view[got:])
            except (TimeoutError, BlockingIOError):
                stood += 1
                if self.cancel.is_set():
                    raise Interrupted("interrupted") from None
                if stood * _SLICE >= self._read_limit:
                    raise ChannelError(f"the peer said nothing for too long (byte {at})") from None
                continue
            except (OSError, ValueError) as error:
                raise self._broke(f"at byte {at}", error) from None
            if not count:
                inside = "in the middle of a frame " if got or view is not self._head else ""
                raise Closed(f"the peer closed the connection {inside}(byte {at})")
            got += count
            stood = 0
        self.bytes_received += got

    def receive(
        self, place: Callable[[int], memoryview | None] | None = None
    ) -> tuple[int, memoryview]:
        """The next frame: DATA, MEMORY or CONTROL, and its payload, valid until the next call.

        ``place`` may name where the payload of a MEMORY frame of so many bytes is to be put, and
        gets it there also where the frame turns out to be damaged.
        """
        start = self.bytes_received
        self._fill(self._head)
        magic, kind, zero, length, checksum = _HEADER.unpack(self._head)
        if magic != MAGIC or zero or kind not in (*_STREAMS, CONTROL):
            raise ChannelError(
                f"no frame at byte {start}: the peer does not speak precopy's protocol"
            )
        if length > (MAX_CONTROL if kind == CONTROL else MAX_DATA):
            raise ChannelError(f"frame at byte {start} claims {length} bytes: too long")
        if not length:
            raise ChannelError(f"frame at byte {start} is empty")
        found = place(length) if place is not None and kind == MEMORY else None
        payload = self._buffer[:length] if found is None else found
        self._fill(payload)
        if kind == CONTROL:
            digest = xxhash.xxh3_64_intdigest(payload)
        else:
            stream = self._received[kind]
            stream.update(payload)
            digest = stream.intdigest()
        if digest != checksum:
            raise ChannelError(f"frame at byte {start} is damaged (checksum)")
        if self.tap is not None:
            self.tap(False, self._head, payload)
        return kind, payload

    def end_received(self, kind: int = DATA) -> int:
        """Digest of the stream received so far; its next frame begins a new one."""
        digest, self._received[kind] = self._received[kind].intdigest(), xxhash.xxh3_64()
        return digest

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        self._wire.close()
