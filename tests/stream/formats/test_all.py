"""What holds for the streams of every driver."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.stream.item import Item
from precopy.stream.registry import formats, recognise
from tests.stream.formats.builders import SAMPLES
from tests.stream.hearing import Heard, cut_at, heard, heard_in_pieces

NAMES = sorted(SAMPLES)

#: Cuts that are tried of a long stream: the beginning, and every so many bytes.
DENSE, STRIDE = 700, 97


def leaves(found: Heard) -> list[Item]:
    """Items that have none in them, in the order of the stream."""
    items = [item for item in found.items if item.size]
    following = [*items[1:], None]
    return [
        item
        for item, after in zip(items, following, strict=True)
        if after is None or after.depth <= item.depth
    ]


def covered(found: Heard, size: int) -> list[int]:
    """Bytes of the stream that no leaf tells of."""
    told = bytearray(size)
    for item in found.items:
        if item.fields or item in leaves(found):
            assert item.size is not None
            told[item.offset : item.offset + item.size] = b"\1" * item.size
    return [at for at, known in enumerate(told) if not known]


@pytest.mark.parametrize("name", NAMES)
def test_a_whole_stream_is_recognised_and_nothing_is_wrong(name: str) -> None:
    data, _ = SAMPLES[name]
    found = heard(data)
    assert found.wrongs == []
    (summary,) = found.summaries
    assert summary.format == name
    assert summary.bytes == len(data) == sum(summary.phases.values())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mlx5"])
def test_every_byte_is_in_an_item(name: str) -> None:
    data, _ = SAMPLES[name]
    assert covered(heard(data), len(data)) == []


@pytest.mark.parametrize("name", NAMES)
def test_items_lie_in_their_group(name: str) -> None:
    data, _ = SAMPLES[name]
    stack: list[Item] = []
    for item in heard(data).items:
        while stack and stack[-1].depth >= item.depth:
            stack.pop()
        if stack:
            outer = stack[-1]
            assert outer.size is not None
            assert item.size is not None
            assert outer.offset <= item.offset
            assert item.offset + item.size <= outer.offset + outer.size
        stack.append(item)


@pytest.mark.parametrize("name", NAMES)
def test_a_cut_is_named_where_it_is(name: str) -> None:
    data, whole = SAMPLES[name]
    for end in [*range(1, min(len(data), DENSE)), *range(DENSE, len(data), STRIDE)]:
        found = heard(data[:end], format=name)
        places = [wrong.offset for wrong in found.wrongs]
        assert places == ([] if end in whole else [end]), f"cut at {end}"


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(places=st.lists(st.integers(0, 5000), max_size=20))
def test_how_it_comes_in_pieces_does_not_matter(name: str, places: list[int]) -> None:
    data, _ = SAMPLES[name]
    assert heard_in_pieces(cut_at(data, places)).told() == heard(data).told()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("mlx5", "xe")])
def test_byte_by_byte(name: str) -> None:
    data, _ = SAMPLES[name]
    data = data[:1500]
    pieces = cut_at(data, range(len(data)))
    assert heard_in_pieces(pieces, name).told() == heard(data, name).told()


@pytest.mark.parametrize("name", sorted(set(formats()) & {*NAMES, "pds", "connectx"}))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_damage_gets_a_verdict(name: str, data: st.DataObject) -> None:
    """Bytes of a stream overwritten, taken out and put in anywhere: Damage, and nothing else."""
    stream = bytearray(SAMPLES[name][0] if name in SAMPLES else SAMPLES["mlx5"][0][40:])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, min(len(stream), 6000)))
        gone = data.draw(st.integers(0, 8))
        stream[at : at + gone] = data.draw(st.binary(max_size=8))
    found = heard(bytes(stream), format=name)
    assert sum(summary.wrong for summary in found.summaries) == len(found.wrongs)
    for item in found.items:
        assert item.size is not None
        assert item.offset + item.size <= len(stream)


def test_streams_are_told_apart() -> None:
    for name, (data, _) in SAMPLES.items():
        found = recognise(data[:4096])
        assert found is not None
        assert found.name == name
    assert recognise(bytes(4096)) is None
    assert recognise(b"\x5a" * 65536) is None
