"""Where the fields of a page tracker stand, byte by byte as mlx5_ifc.h has them."""

import pytest

from precopy.mlx5_abi.commands import (
    COMMANDS,
    GeneralObjectIn,
    GeneralObjectOut,
    Opcode,
    PageTrackIn,
    PageTrackOut,
)
from precopy.mlx5_abi.general_object import OBJECT_CHANGE, PageTrack, pack_ranges


def test_headers() -> None:
    inbox = GeneralObjectIn(
        opcode=0xA02, uid=0x0102, vhca_tunnel_id=0x0304, obj_type=0x46, obj_id=0x05060708
    )
    assert bytes(inbox.buf).hex() == "0a02010203040046" + "05060708" + "00000000"
    out = GeneralObjectOut(status=3, syndrome=0x01020304, obj_id=0x05060708)
    assert bytes(out.buf).hex() == "03000000010203040506070800000000"
    assert [COMMANDS[code].opcode for code in range(0xA00, 0xA04)] == [
        Opcode.CREATE_GENERAL_OBJECT,
        Opcode.MODIFY_GENERAL_OBJECT,
        Opcode.QUERY_GENERAL_OBJECT,
        Opcode.DESTROY_GENERAL_OBJECT,
    ]


@pytest.mark.parametrize(
    ("field", "value", "at", "expected"),
    [
        ("modify_field_select", 0x0102030405060708, 0, "0102030405060708"),
        ("vhca_id", 0x0102, 10, "0102"),
        ("state", 0x2, 16, "20"),
        ("track_type", 0x1, 16, "01"),
        ("log_addr_space_size", 0x2A, 17, "2a"),
        ("log_page_size", 0x15, 18, "15"),
        ("log_msg_size", 0x14, 19, "14"),
        ("reporting_qpn", 0x010203, 21, "010203"),
        ("num_ranges", 0xFF, 27, "ff"),
        ("range_start_address", 0x0102030405060708, 32, "0102030405060708"),
        ("length", 0x0102030405060708, 40, "0102030405060708"),
    ],
)
def test_fields(field: str, value: int, at: int, expected: str) -> None:
    inbox = PageTrackIn()
    setattr(inbox.page_track, field, value)
    place = bytes.fromhex(expected)
    body = bytes(inbox.buf)[16:]
    assert body == bytes(at) + place + bytes(PageTrack.SIZE - at - len(place))
    out = PageTrackOut(bytes(16) + body)
    assert getattr(out.page_track, field) == value


def test_ranges_and_the_event() -> None:
    assert pack_ranges([(1, 2), (1 << 63, 3)]).hex() == (
        "0000000000000001" + "0000000000000002" + "8000000000000000" + "0000000000000003"
    )
    assert OBJECT_CHANGE.pack(0x46, 0x01020304).hex() == "0000" + "0046" + "01020304"
