"""What every dissector gets from the core: pieces, damage, going on behind it, streams in streams."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.stream.dissect import MAX_WRONG
from tests.stream.example import CARRIED, OPAQUE, block, example
from tests.stream.hearing import cut_at, heard, heard_in_pieces

MTTY = struct.pack("<QIIII", 0x7E9D09898C3E2C4E, 1, 0, 2, 0) + bytes(72)

#: An mtty's state in three blocks, with others between them.
WHOLE = example(
    block(OPAQUE, b"x" * 33),
    block(CARRIED, MTTY[:10]),
    block(CARRIED, MTTY[10:30]),
    block(OPAQUE, b""),
    block(CARRIED, MTTY[30:]),
)


def test_items_have_places_sizes_and_depths() -> None:
    found = heard(WHOLE)
    assert not found.wrongs
    first = found.named("block 1")[0]
    assert (first.offset, first.size, first.depth, first.text) == (8, 41, 0, "whole")
    header = found.named("header")[0]
    assert [(each.name, each.offset, each.value) for each in header.fields][-1] == ("size", 12, 33)
    assert header.depth == 1


def test_a_stream_in_pieces_is_one_stream() -> None:
    found = heard(WHOLE)
    assert bytes(found.carried["device"]) == MTTY
    inner = [item for item in found.items if item.stream == "device"]
    assert [(item.name, item.offset, item.size) for item in inner] == [
        ("header", 0, 24),
        ("port 0", 24, 36),
        ("port 1", 60, 36),
    ]
    assert WHOLE[inner[0].file_offset :][:8] == MTTY[:8]
    assert WHOLE[inner[1].file_offset :][:6] == MTTY[24:30]
    device = next(each for each in found.summaries if each.stream == "device")
    assert (device.format, device.bytes, device.phases["all"]) == ("mtty", 96, 96)


@given(st.lists(st.integers(0, len(WHOLE))))
def test_how_it_comes_in_pieces_does_not_matter(places: list[int]) -> None:
    assert heard_in_pieces(cut_at(WHOLE, places)).told() == heard(WHOLE).told()


def test_byte_by_byte() -> None:
    assert heard_in_pieces(cut_at(WHOLE, range(len(WHOLE)))).told() == heard(WHOLE).told()


@pytest.mark.parametrize("end", range(8, len(WHOLE)))
def test_a_cut_is_found_where_it_is(end: int) -> None:
    found = heard(WHOLE[:end])
    at_block = end in (8, 49, 67, 95, 103)
    of_file = [wrong for wrong in found.wrongs if not wrong.stream]
    if at_block:
        assert not of_file
    else:
        assert [(wrong.offset, wrong.found) for wrong in of_file] == [
            (end, "the end of the stream")
        ]


def test_a_wrong_byte_is_named_and_what_follows_is_dissected() -> None:
    damaged = bytearray(WHOLE)
    damaged[49 + 3] = 7  # the second block's zero
    found = heard(bytes(damaged))
    first = found.wrongs[0]
    assert (first.offset, first.expected, first.found) == (52, "0", "7")
    passed = found.named("passed over")[0]
    assert (passed.offset, passed.size) == (49, 18)
    assert found.named("block 4")
    # The device's stream lacks its beginning, and says so for itself.
    assert [wrong.stream for wrong in found.wrongs[1:]] == ["device"]


def test_where_nothing_is_known_any_more_the_rest_is_told() -> None:
    found = heard(example(block(OPAQUE, b"y" * 9), b"?" * 70_000))
    assert [wrong.offset for wrong in found.wrongs] == [25]
    assert [(item.offset, item.size) for item in found.named("passed over")] == [(25, 70_000)]


def test_so_many_wrong_places_end_it() -> None:
    bad = block(OPAQUE, b"")[:3] + b"\x01" + bytes(4)
    found = heard(example(*[bad + block(OPAQUE, b"")] * (MAX_WRONG + 50)))
    assert len(found.wrongs) == MAX_WRONG
    assert found.named("rest")


def test_what_nobody_knows_is_said_so() -> None:
    found = heard(b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert found.wrongs[0].expected == "a format that is known"
    assert [(item.name, item.size) for item in found.items] == [("unknown bytes", 58)]
    assert heard(b"").items[0].name == "nothing"


def test_digests_of_what_nobody_looks_into() -> None:
    one, other = (
        heard(example(block(OPAQUE, content)), digests=True) for content in (b"ab", b"ac")
    )
    assert one.named("content")[0].digest != other.named("content")[0].digest
    assert not heard(WHOLE).named("content")[0].digest


@given(st.binary(max_size=300), st.sampled_from(["", "example"]))
def test_any_bytes_get_a_verdict(data: bytes, format: str) -> None:
    found = heard(data, format)
    # All that there is belongs to some item.
    covered = 0
    for item in (each for each in found.items if not each.depth and not each.stream):
        assert item.offset == covered
        covered += item.size or 0
    assert covered == len(data)
