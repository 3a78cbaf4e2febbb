"""Captures of precopy's channel, made by migrations."""

import json
import struct

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.engine.channel import CONTROL, HEADER_BYTES, MAGIC
from precopy.engine.source import Options
from tests.engine.relay import SOURCE, TARGET
from tests.engine.rig import both
from tests.stream.hearing import cut_at, heard, heard_in_pieces


@pytest.fixture(scope="module")
def captures() -> dict[str, bytes]:
    """What source and target said in a migration of a device with a guest."""
    with both() as pair:
        said = pair.move(Options(min_rounds=2)).said
    return {
        who: b"".join(frame.header + frame.payload for frame in said[who])
        for who in (SOURCE, TARGET)
    }


def frame(message: dict[str, object]) -> bytes:
    payload = json.dumps(message).encode()
    checksum = xxhash.xxh3_64_intdigest(payload)
    return struct.pack("<HBBIQ", MAGIC, CONTROL, 0, len(payload), checksum) + payload


def test_a_migration_is_dissected_whole(captures: dict[str, bytes]) -> None:
    found = heard(captures[SOURCE])
    assert not [wrong for wrong in found.wrongs if not wrong.stream]
    names = [item.name for item in found.items if item.name.startswith("message")]
    assert names[:2] == ["message hello", "message manifest"]
    assert names[-1] == "message run"
    assert {"message final", "message end", "message switch"} <= set(names)
    summaries = {each.stream: each for each in found.summaries}
    assert summaries[""].phases["guest memory"] > 0
    (device,) = (each for name, each in summaries.items() if name)
    assert device.stream.startswith("sim:mlx5")
    assert device.phases["PRE_COPY"] > 0
    assert device.phases["STOP_COPY"] > 0
    assert sum(device.phases[name] for name in ("PRE_COPY", "STOP_COPY")) == device.bytes


def test_the_target_s_side_too(captures: dict[str, bytes]) -> None:
    found = heard(captures[TARGET])
    assert not found.wrongs
    assert [item.name for item in found.items if item.name.startswith("message")][-1] == (
        "message running"
    )


def test_the_device_s_stream_comes_out_as_it_went_in(captures: dict[str, bytes]) -> None:
    with both() as pair:
        said = pair.move(Options(min_rounds=1)).said[SOURCE]
    data = b"".join(each.header + each.payload for each in said)
    (stream,) = heard(data).carried.values()
    assert stream == b"".join(each.payload for each in said if each.kind == "data")


@settings(max_examples=10, deadline=None)
@given(places=st.lists(st.integers(0, 1 << 18), max_size=20))
def test_how_it_comes_in_pieces_does_not_matter(
    captures: dict[str, bytes], places: list[int]
) -> None:
    data = captures[SOURCE]
    assert heard_in_pieces(cut_at(data, places)).told() == heard(data).told()


def test_a_frame_with_a_flipped_bit_is_named_and_what_follows_is_dissected(
    captures: dict[str, bytes],
) -> None:
    data = bytearray(captures[TARGET])
    second = HEADER_BYTES + struct.unpack_from("<I", data, 4)[0]
    data[second + HEADER_BYTES + 3] ^= 0x10
    found = heard(bytes(data))
    assert found.wrongs[0].offset == second + 8
    assert "checksum" in found.wrongs[0].expected
    assert found.named("message running")


def test_behind_a_broken_header_the_next_frame_is_found(captures: dict[str, bytes]) -> None:
    data = bytearray(captures[TARGET])
    second = HEADER_BYTES + struct.unpack_from("<I", data, 4)[0]
    data[second] ^= 1
    found = heard(bytes(data))
    assert [wrong.offset for wrong in found.wrongs] == [second]
    assert found.named("message running")


def test_a_wrong_digest_of_the_stream_is_found() -> None:
    wrong = frame({"kind": "end", "bytes": 0, "digest": 5})
    found = heard(frame({"kind": "hello", "program": "x", "versions": [2]}) + wrong)
    assert [each.found for each in found.wrongs] == ["0x5"]


@pytest.mark.parametrize(
    "message",
    [{"kind": "unheard of"}, {"kind": "run", "more": 1}, {"no": "kind"}],
)
def test_messages_that_are_none(message: dict[str, object]) -> None:
    found = heard(frame({"kind": "run"}) + frame(message) + frame({"kind": "run"}))
    assert [each.expected for each in found.wrongs] == ["a message of the protocol"]
    assert len([item for item in found.items if item.name == "message run"]) == 2
