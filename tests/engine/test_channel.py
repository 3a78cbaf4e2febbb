"""Frames and messages: whatever a peer sends, one clear error or the same bytes."""

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine import messages
from precopy.engine.channel import (
    CONTROL,
    DATA,
    HEADER_BYTES,
    MAX_DATA,
    Channel,
    ChannelError,
    Closed,
    Interrupted,
)
from precopy.engine.messages import SCHEMAS, decode, printable


def _wire(data: bytes) -> Channel:
    one, other = socket.socketpair()
    other.sendall(data)
    other.close()
    return Channel(one)


def _frames() -> bytes:
    """A control frame and two of data, as they go over the wire."""
    one, other = socket.socketpair()
    with other:
        channel = Channel(one)
        channel.send_control(b"{}")
        channel.send_data(memoryview(b"first"))
        channel.send_data(memoryview(b"second"))
        channel.close()
        return other.recv(4096)


def _read(data: bytes) -> list[tuple[int, bytes]]:
    channel = _wire(data)
    try:
        return [(kind, bytes(payload)) for kind, payload in (channel.receive() for _ in range(3))]
    finally:
        channel.close()


def test_frames_come_back() -> None:
    assert _read(_frames()) == [(CONTROL, b"{}"), (DATA, b"first"), (DATA, b"second")]


def test_a_connection_cut_at_every_offset() -> None:
    whole = _frames()
    for end in range(len(whole)):
        with pytest.raises(ChannelError, match="closed"):
            _read(whole[:end])


def test_each_byte_flipped() -> None:
    whole = _frames()
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 0x40
        with pytest.raises(ChannelError):
            _read(bytes(damaged))


def test_data_frames_out_of_order_or_twice() -> None:
    whole = _frames()
    control, first = HEADER_BYTES + 2, HEADER_BYTES + 5
    one, two = whole[control : control + first], whole[control + first :]
    for order in (two + one, one + one):
        with pytest.raises(ChannelError, match="damaged"):
            _read(whole[:control] + order)


def test_a_length_of_a_disk_costs_nothing() -> None:
    header = _frames()[:4] + (0xFFFFFFFF).to_bytes(4, "little") + bytes(8)
    with pytest.raises(ChannelError, match="too long"):
        _read(header)


@given(st.binary(max_size=200))
def test_garbage(data: bytes) -> None:
    with pytest.raises(ChannelError):
        _read(data)


@given(st.binary(max_size=200))
def test_garbage_as_a_message(data: bytes) -> None:
    with pytest.raises(ChannelError):
        decode(data)


@given(st.sampled_from(sorted(SCHEMAS)), st.dictionaries(st.text(max_size=8), st.integers()))
def test_a_message_with_other_fields(kind: str, fields: dict[str, int]) -> None:
    fields.pop("kind", None)
    if fields.keys() != SCHEMAS[kind].keys():
        with pytest.raises(ChannelError):
            decode(messages.encode(kind, **{"bytes_": 1, **fields}))


# --- A peer that stands still -------------------------------------------------------------------


def _full() -> tuple[Channel, socket.socket]:
    """A channel to a peer that reads nothing, and the peer's end: less fits than a frame has."""
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    return Channel(one), other


def test_a_send_that_stands_still_is_given_up() -> None:
    channel, other = _full()
    with other:
        channel.limit_writes(0.1)
        with pytest.raises(ChannelError, match="the peer takes nothing after byte 0"):
            channel.send_data(memoryview(bytes(MAX_DATA)))
        # Half a frame is out: what came behind it would be read as the rest of it.
        with pytest.raises(Closed):
            channel.send_control(b"{}")
        channel.close()
        peer = Channel(other)
        with pytest.raises(Closed, match="in the middle of a frame"):
            peer.receive()


def test_a_send_that_stands_still_is_cancelled() -> None:
    channel, other = _full()
    with other:
        channel.cancel.set()
        channel.send_control(b"{}")  # goes through: only who waits is interrupted
        with pytest.raises(Interrupted):
            channel.send_data(memoryview(bytes(MAX_DATA)))
        channel.close()


def test_a_read_that_stands_still() -> None:
    one, other = socket.socketpair()
    with other:
        channel = Channel(one)
        channel.limit_reads(0.05)
        other.sendall(_frames()[:5])
        with pytest.raises(ChannelError, match=r"said nothing for too long \(byte 5\)"):
            channel.receive()
        channel.cancel.set()
        with pytest.raises(Interrupted):
            channel.receive()
        channel.close()


def test_a_peer_that_takes_its_time_gets_every_byte() -> None:
    """The frame is longer than the buffers on the way, and longer than one wait."""
    channel, other = _full()
    payload = bytes(range(256)) * (MAX_DATA // 256)
    peer = Channel(other)
    got: list[bytes] = []

    def read() -> None:
        for _ in range(3):
            got.append(bytes(peer.receive()[1]))

    reader = threading.Timer(0.25, read)
    reader.start()
    for _ in range(3):
        channel.send_data(memoryview(payload))
    reader.join()
    assert got == [payload] * 3
    channel.close()
    peer.close()


class _Wire:
    """A wire that is no plain socket, such as one of TLS: it sends a few bytes at a time."""

    def __init__(self, plain: socket.socket) -> None:
        self._plain = plain
        self.recv_into, self.settimeout = plain.recv_into, plain.settimeout
        self.shutdown, self.close = plain.shutdown, plain.close

    def send(self, data: bytes | memoryview, /) -> int:
        return self._plain.send(bytes(data[:1000]))


def test_another_wire() -> None:
    one, other = socket.socketpair()
    channel, peer = Channel(_Wire(one)), Channel(other)
    channel.send_data(memoryview(bytes(20_000)))
    assert len(peer.receive()[1]) == 20_000
    channel.cancel.set()
    with pytest.raises(Interrupted):
        channel.send_data(memoryview(bytes(MAX_DATA)))
    channel.close()
    peer.close()


def test_an_empty_data_frame() -> None:
    header = _frames()[HEADER_BYTES + 2 : 2 * HEADER_BYTES + 2]
    with pytest.raises(ChannelError, match="is empty"):
        _read(header[:4] + bytes(12))


# --- Texts --------------------------------------------------------------------------------------


@given(st.text())
def test_what_a_peer_says_is_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    shown.encode()  # nothing that no encoding has
    assert printable(shown) == shown


@given(st.lists(st.text(max_size=20), max_size=5), st.text(max_size=20))
def test_texts_in_a_message_are_printable(needs: list[str], name: str) -> None:
    fields = {
        **dict.fromkeys(("vendor_id", "device_id", "stream_version", "flags"), 0),
        **dict.fromkeys(("driver", "firmware", "serial", "stream"), ""),
        "name": name,
        "needs": needs,
        "details": {name: name},
        "precopy": True,
        "guest": False,
        "memory": [[0, 4096]],
    }
    _, found = decode(messages.encode("manifest", **fields))
    assert all(text.isprintable() for text in (found["name"], *found["needs"], *found["details"]))
    assert found["memory"] == [[0, 4096]]


def test_a_reason_of_any_length_is_taken() -> None:
    one, other = socket.socketpair()
    channel, peer = Channel(one), Channel(other)
    messages.send_reason(channel, "failed", "\u00e9\n" * 10_000)
    assert messages.expect(peer, "failed")[1]["reason"].startswith("\u00e9 \u00e9")
    channel.close()
    peer.close()
