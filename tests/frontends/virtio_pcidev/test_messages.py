"""The vhost-user wire, without a socket."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.frontends.virtio_pcidev import messages
from precopy.frontends.virtio_pcidev.messages import (
    REQUESTS,
    Header,
    ProtocolError,
    Region,
    Request,
    VringAddress,
    VringState,
)


def header(request: int, flags: int, size: int) -> bytes:
    return struct.pack("<III", request, flags, size)


def test_every_request_is_laid_out_and_named() -> None:
    assert set(REQUESTS) == set(Request)
    assert messages.MAX_PAYLOAD == 8 + 8 * 32


@pytest.mark.parametrize(
    ("request_", "payload", "fds", "value"),
    [
        (Request.GET_FEATURES, b"", 0, None),
        (Request.SET_FEATURES, struct.pack("<Q", 1 << 63), 0, 1 << 63),
        (Request.SET_VRING_NUM, struct.pack("<II", 1, 256), 0, VringState(1, 256)),
        (
            Request.SET_VRING_ADDR,
            struct.pack("<IIQQQQ", 1, 0, 2, 3, 4, 5),
            0,
            VringAddress(queue=1, flags=0, desc=2, used=3, avail=4, log=5),
        ),
        (
            Request.SET_MEM_TABLE,
            struct.pack("<IIQQQQQQQQ", 2, 0, 1, 2, 3, 4, 5, 6, 7, 8),
            2,
            (Region(guest=1, size=2, user=3, offset=4), Region(5, 6, 7, 8)),
        ),
        (Request.SET_SLAVE_REQ_FD, b"", 1, None),
    ],
)
def test_payloads(request_: Request, payload: bytes, fds: int, value: object) -> None:
    assert messages.parse_header(header(request_, 1, len(payload))) == (
        Header(request_, False, len(payload))
    )
    assert messages.parse_header(header(request_, 9, len(payload))).needs_reply
    assert messages.parse_payload(request_, memoryview(payload), fds) == value
    for wrong in {0, 1, 2, 3} - {fds}:
        with pytest.raises(ProtocolError, match=f"{request_.name} comes with {wrong} file"):
            messages.parse_payload(request_, memoryview(payload), wrong)


@pytest.mark.parametrize("flags", [0, 2, 3, 1 | 4, 1 | 16, 1 | 8 | 4, 0x80000001])
def test_other_flags_than_a_request_has_are_refused(flags: int) -> None:
    with pytest.raises(ProtocolError, match=f"GET_FEATURES has flags {flags:#x}"):
        messages.parse_header(header(1, flags, 0))


@pytest.mark.parametrize("request_", list(Request))
def test_sizes_that_a_request_cannot_have_are_refused(request_: Request) -> None:
    layout = REQUESTS[request_].payload
    for size in (layout.least - 1, layout.most + 1, 0xFFFFFFFF):
        if size >= 0:
            with pytest.raises(ProtocolError, match=f"{request_.name} comes with {size} bytes"):
                messages.parse_header(header(request_, 1, size))


@pytest.mark.parametrize("count", [0, 2, 9, 0xFFFFFFFF])
def test_a_memory_table_has_as_many_regions_as_it_says(count: int) -> None:
    payload = struct.pack("<IIQQQQ", count, 0, 1, 2, 3, 4)
    with pytest.raises(ProtocolError, match=f"table of {count} regions does not fit 40 bytes"):
        messages.parse_payload(Request.SET_MEM_TABLE, memoryview(payload), 1)


def test_a_memory_table_may_have_room_for_more_regions() -> None:
    """As that of Linux 6.12 has."""
    payload = struct.pack("<IIQQQQ32x", 1, 0, 1, 2, 3, 4)
    found = messages.parse_payload(Request.SET_MEM_TABLE, memoryview(payload), 1)
    assert found == (messages.Region(1, 2, 3, 4),)


def test_what_is_sent_is_as_the_kernel_wants_it() -> None:
    assert messages.pack_reply(Request.GET_FEATURES, bytes(8)) == header(1, 5, 8) + bytes(8)
    assert messages.pack_call(1) == header(4, 1, 8) + struct.pack("<II", 1, 0)


@given(st.binary(min_size=12, max_size=12), st.binary(max_size=300), st.integers(0, 9))
def test_anything_is_parsed_or_refused(head: bytes, payload: bytes, fds: int) -> None:
    try:
        parsed = messages.parse_header(head)
    except ProtocolError as error:
        assert "\n" not in str(error)
        return
    payload = payload[: parsed.size].ljust(parsed.size, b"\0")
    try:
        messages.parse_payload(parsed.request, memoryview(payload), fds)
    except ProtocolError as error:
        assert "\n" not in str(error)


@given(st.sampled_from(list(Request)), st.data())
def test_any_payload_of_a_fitting_size_is_parsed_or_refused(
    request_: Request, data: st.DataObject
) -> None:
    layout = REQUESTS[request_].payload
    payload = data.draw(st.binary(min_size=layout.least, max_size=layout.most))
    try:
        messages.parse_payload(request_, memoryview(payload), data.draw(st.integers(0, 9)))
    except ProtocolError as error:
        assert str(error)
