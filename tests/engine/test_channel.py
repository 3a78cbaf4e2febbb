"""Frames and messages: whatever a peer sends, one clear error or the same bytes."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine import messages
from precopy.engine.channel import CONTROL, DATA, HEADER_BYTES, Channel, ChannelError
from precopy.engine.messages import SCHEMAS, decode


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
