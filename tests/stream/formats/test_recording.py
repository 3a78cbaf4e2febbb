"""Recordings dissected: streams in streams, three deep."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.stream.recording import (
    ENTRY_HEADER,
    FILE_HEADER,
    MOVED,
    TO_SOURCE,
    TO_TARGET,
    Recorder,
)
from tests.engine.relay import SOURCE, TARGET
from tests.engine.rig import both
from tests.stream.hearing import cut_at, heard, heard_in_pieces
from tests.stream.test_recording import clock


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("recording") / "file"
    recorder = Recorder(path, clock())
    with both() as pair:
        said = pair.move().said
    for who, kind in ((SOURCE, TO_TARGET), (TARGET, TO_SOURCE)):
        for frame in said[who]:
            recorder.frame(kind, frame.header, frame.payload)
    recorder.close(MOVED)
    return path.read_bytes()


def test_both_directions_and_the_device_are_streams_of_their_own(whole: bytes) -> None:
    found = heard(whole)
    assert not found.wrongs
    names = [each.stream for each in found.summaries]
    assert names[-1] == ""
    assert {"to target", "to source"} < set(names)
    device = next(each for each in found.summaries if each.stream.startswith("sim:mlx5"))
    assert device.format == "mlx5"
    assert device.phases["PRE_COPY"] + device.phases["STOP_COPY"] == device.bytes
    assert found.named("closing")[0].text.startswith(MOVED)


@settings(max_examples=10, deadline=None)
@given(places=st.lists(st.integers(0, 1 << 17), max_size=20))
def test_how_it_comes_in_pieces_does_not_matter(whole: bytes, places: list[int]) -> None:
    assert heard_in_pieces(cut_at(whole, places)).told() == heard(whole).told()


def test_a_flipped_bit_is_found_in_its_entry(whole: bytes) -> None:
    damaged = bytearray(whole)
    damaged[FILE_HEADER.size + ENTRY_HEADER.size + 20] ^= 1
    found = heard(bytes(damaged))
    of_file = [wrong for wrong in found.wrongs if not wrong.stream]
    assert [wrong.offset for wrong in of_file] == [FILE_HEADER.size + 16]
    assert "to target" in {wrong.stream for wrong in found.wrongs}
    assert found.named("closing")


def test_behind_a_broken_entry_the_next_one_is_found(whole: bytes) -> None:
    damaged = bytearray(whole)
    damaged[FILE_HEADER.size] = 77
    found = heard(bytes(damaged))
    assert found.wrongs[0].offset == FILE_HEADER.size
    assert "a kind of entry" in found.wrongs[0].expected
    assert found.named("passed over")
    assert found.named("closing")


def test_a_recording_that_was_cut_is_wrong_at_its_end(whole: bytes) -> None:
    found = heard(whole[:-1])
    assert [(wrong.stream, wrong.offset) for wrong in found.wrongs] == [("", len(whole) - 1)]
