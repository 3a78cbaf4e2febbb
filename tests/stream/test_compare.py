"""Two streams compared."""

import io
import itertools
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from precopy.stream.compare import Change, Difference, Inventory, compare, inventory
from precopy.stream.recording import MOVED, TO_SOURCE, TO_TARGET, Recorder
from tests.fuzz.stream_seeds import channel
from tests.stream.example import CARRIED, OPAQUE, block, example
from tests.stream.test_dissect import MTTY


def differences(one: bytes, other: bytes) -> list[Difference]:
    return list(compare(inventory(io.BytesIO(one)), inventory(io.BytesIO(other))))


def test_the_same_does_not_differ() -> None:
    data = example(block(OPAQUE, b"a"), block(CARRIED, MTTY))
    assert not differences(data, data)


def test_content_that_nobody_looks_into_differs_by_its_digest() -> None:
    (found,) = differences(example(block(OPAQUE, b"ab")), example(block(OPAQUE, b"ax")))
    assert found.path == ("block 1", "content")
    assert found.change is Change.CHANGED
    assert "another content" in found.text
    assert found.offset == 16


def test_a_field_that_differs_is_named_with_both_values() -> None:
    found = differences(example(block(OPAQUE, b"ab")), example(block(OPAQUE, b"abc")))
    assert [each.path[-1] for each in found] == ["header", "content"]
    assert found[0].text == "size 2 -> 3"
    assert found[1].text == "2 bytes -> 3 bytes"


def test_what_only_one_has_is_told_once_with_what_is_in_it() -> None:
    short, long = example(block(OPAQUE, b"")), example(block(OPAQUE, b""), block(OPAQUE, b"q"))
    (gone,) = differences(long, short)
    (new,) = differences(short, long)
    assert (gone.change, new.change) == (Change.GONE, Change.NEW)
    assert gone.path == new.path == ("block 2",)
    assert gone.inside == 2


def test_streams_in_them_are_compared_under_their_place() -> None:
    other = bytearray(MTTY)
    other[30] ^= 1
    one = example(block(CARRIED, MTTY))
    (found,) = differences(one, example(block(CARRIED, bytes(other))))
    assert found.path == ("stream 1", "port 0")
    assert found.offset == one.index(MTTY) + 24


@given(st.lists(st.binary(max_size=4), max_size=6), st.lists(st.binary(max_size=4), max_size=6))
def test_they_differ_where_and_only_where_they_do(one: list[bytes], other: list[bytes]) -> None:
    first, second = (example(*(block(OPAQUE, each) for each in blocks)) for blocks in (one, other))
    found = differences(first, second)
    assert bool(found) == (first != second)
    changed = {each.path[0] for each in found if each.change is Change.CHANGED}
    assert changed == {
        f"block {number}"
        for number, (a, b) in enumerate(zip(one, other, strict=False), 1)
        if a != b
    }
    only = sum(each.change is not Change.CHANGED and len(each.path) == 1 for each in found)
    assert only == abs(len(one) - len(other))


def recording(state: bytes, source_first: bool) -> Inventory:
    """Of a recording in which the target or the source speaks first."""
    frames = channel(state)
    said = [(TO_TARGET, frames), (TO_SOURCE, channel(b""))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recording")
        recorder = Recorder(path, itertools.count().__next__)
        for kind, whole in said if source_first else said[::-1]:
            recorder.frame(kind, b"", whole)
        recorder.close(MOVED)
        with path.open("rb") as file:
            return inventory(file)


def test_what_carries_streams_is_compared_only_if_wanted() -> None:
    other = bytearray(MTTY)
    other[24 + 16] ^= 1
    for first in (True, False):
        one, two = recording(MTTY, first), recording(bytes(other), True)
        assert len(list(compare(one, two))) > 3
        one.keep_carried()
        two.keep_carried()
        found = list(compare(one, two))
        assert found
        assert {each.path[0] for each in found} == {"stream 1"}


def test_a_stream_that_carries_nothing_is_kept() -> None:
    found = inventory(io.BytesIO(channel(b"")))
    before = len(found.items)
    found.keep_carried()
    assert len(found.items) == before > 0
