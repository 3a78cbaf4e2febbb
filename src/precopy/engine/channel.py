"""The channel between source and target: frames over a connected socket.

    magic u16 | kind u8 | 0 u8 | length u32 | checksum u64     (little-endian), then the payload

A control frame's checksum is the xxh3 of its payload; a data frame's is the running xxh3 of its
stream up to and with this frame, so that one pass over the bytes guards frame and order alike.
"""

import contextlib
import socket
import struct
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


class ChannelError(Exception):
    """What was wrong on the wire; the text says where, counted in bytes received."""


class Closed(ChannelError):
    """The peer closed the connection."""


class Wire(Protocol):
    """What the channel needs of a socket; a TLS socket has it too."""

    def sendall(self, data: bytes | memoryview, /) -> None: ...

    def recv_into(self, buffer: memoryview, nbytes: int = 0, /) -> int: ...

    def settimeout(self, value: float | None, /) -> None: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


def _gatherer(wire: Wire) -> Callable[[list[bytes | memoryview]], int]:
    """Sends a header and some or all of what follows it; the bytes sent, at least the header's."""
    if type(wire) is socket.socket:
        plain = wire

        def gather(parts: list[bytes | memoryview]) -> int:
            sent = plain.sendmsg(parts)
            if sent < len(parts[0]):
                plain.sendall(parts[0][sent:])
            return max(sent, len(parts[0]))

        return gather

    def one_by_one(parts: list[bytes | memoryview]) -> int:
        wire.sendall(parts[0])
        return len(parts[0])

    return one_by_one


class Channel:
    """Frames over ``wire``. Used by one thread a direction. Every call may raise ChannelError."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._gather = _gatherer(wire)
        self._head = memoryview(bytearray(HEADER_BYTES))
        self._buffer = memoryview(bytearray(MAX_DATA))
        self._sent = xxhash.xxh3_64()
        self._received = xxhash.xxh3_64()
        #: Bytes sent and received, frames and all.
        self.bytes_sent = 0
        self.bytes_received = 0

    def timeout(self, seconds: float | None) -> None:
        """How long one read or write may stand still before ChannelError."""
        self._wire.settimeout(seconds)

    # --- Sending ------------------------------------------------------------------------------

    def _send(self, kind: int, payload: bytes | memoryview, checksum: int) -> None:
        header = _HEADER.pack(MAGIC, kind, 0, len(payload), checksum)
        try:
            if len(payload) <= 4096:
                self._wire.sendall(header + payload)
            else:
                # Together: a header alone would wake the peer for nothing.
                done = self._gather([header, payload]) - len(header)
                self._wire.sendall(memoryview(payload)[done:])
        except TimeoutError:
            raise ChannelError(f"the peer takes nothing after byte {self.bytes_sent}") from None
        except (OSError, ValueError) as error:
            raise Closed(
                f"the connection broke after byte {self.bytes_sent} sent: {error}"
            ) from None
        self.bytes_sent += len(header) + len(payload)

    def send_data(self, data: memoryview) -> None:
        """A piece of the stream, at most MAX_DATA bytes."""
        self._sent.update(data)
        self._send(DATA, data, self._sent.intdigest())

    def send_control(self, payload: bytes) -> None:
        if len(payload) > MAX_CONTROL:
            raise ChannelError(f"a message of {len(payload)} bytes is too long")
        self._send(CONTROL, payload, xxhash.xxh3_64_intdigest(payload))

    def end_sent(self) -> int:
        """Digest of the stream sent so far; the next data frame begins a new one."""
        digest, self._sent = self._sent.intdigest(), xxhash.xxh3_64()
        return digest

    # --- Receiving ----------------------------------------------------------------------------

    def _fill(self, view: memoryview) -> None:
        got = 0
        while got < len(view):
            try:
                count = self._wire.recv_into(view[got:])
            except TimeoutError:
                at = self.bytes_received + got
                raise ChannelError(f"the peer said nothing for too long (byte {at})") from None
            except (OSError, ValueError) as error:
                at = self.bytes_received + got
                raise Closed(f"the connection broke at byte {at}: {error}") from None
            if not count:
                at = self.bytes_received + got
                inside = "in the middle of a frame" if got or view is not self._head else ""
                raise Closed(
                    f"the peer closed the connection {inside}(byte {at})".replace(
                        "frame(", "frame ("
                    )
                )
            got += count
        self.bytes_received += got

    def receive(self) -> tuple[int, memoryview]:
        """The next frame: DATA or CONTROL, and its payload, valid until the next call."""
        start = self.bytes_received
        self._fill(self._head)
        magic, kind, zero, length, checksum = _HEADER.unpack(self._head)
        if magic != MAGIC or zero or kind not in (DATA, CONTROL):
            raise ChannelError(
                f"no frame at byte {start}: the peer does not speak precopy's protocol"
            )
        if length > (MAX_DATA if kind == DATA else MAX_CONTROL):
            raise ChannelError(f"frame at byte {start} claims {length} bytes: too long")
        payload = self._buffer[:length]
        self._fill(payload)
        if kind == DATA:
            self._received.update(payload)
            digest = self._received.intdigest()
        else:
            digest = xxhash.xxh3_64_intdigest(payload)
        if digest != checksum:
            raise ChannelError(f"frame at byte {start} is damaged (checksum)")
        return kind, payload

    def end_received(self) -> int:
        """Digest of the stream received so far; the next data frame begins a new one."""
        digest, self._received = self._received.intdigest(), xxhash.xxh3_64()
        return digest

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._wire.shutdown(socket.SHUT_RDWR)
        self._wire.close()
