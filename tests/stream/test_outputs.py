"""The tree, JSON lines, what lies at an offset, and extraction."""

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.stream.dissect import dissect
from precopy.stream.extract import Extract
from precopy.stream.item import Item
from precopy.stream.place import Place
from precopy.stream.show import MAX_WAITING, Lines, Tree
from tests.stream.test_dissect import MTTY, WHOLE


def tree(data: bytes) -> list[str]:
    told: list[str] = []
    sink = Tree(told.append)
    dissect(io.BytesIO(data), sink)
    sink.close()
    return "".join(told).splitlines()


def test_the_tree_stands_in_the_order_of_the_stream() -> None:
    lines = tree(WHOLE)
    assert lines[0].strip() == "example, a format of tests"
    for wanted in (True, False):  # those in the device's stream, and the others
        places = [
            int(line[:10], 16)
            for line in lines
            if line.startswith("0x") and ("+0x" in line) == wanted
        ]
        assert len(places) > 1
        assert places == sorted(places)
    assert any("block 1  whole" in line and " 41 " in line for line in lines)
    assert any("+0x18" in line and "port 0" in line for line in lines)
    assert "device: mtty, 96 B, 2 ports, all 96 B, initial 24 B, final 72 B" in lines[-1]


def test_what_is_wrong_stands_in_the_tree() -> None:
    lines = tree(WHOLE[:40])
    assert any("WRONG: byte 0x28: expected" in line for line in lines)
    assert lines[-1].endswith("1 wrong")


def test_the_tree_does_not_wait_for_ever() -> None:
    told: list[str] = []
    sink = Tree(told.append)
    sink.begin(Item("", 0, 0, 0, "endless"))
    for number in range(3 * MAX_WAITING):
        item = Item("", number, number, 1, "small", 1)
        sink.begin(item)
        sink.end(item)
    assert len(told) >= 2 * MAX_WAITING
    assert "?" in told[0]
    assert "endless" in told[0]


def test_a_json_object_a_line() -> None:
    told: list[str] = []
    sink = Lines(told.append)
    dissect(io.BytesIO(WHOLE[:-1]), sink)
    sink.close()
    found = [json.loads(line) for line in "".join(told).splitlines()]
    kinds = [each["what"] for each in found]
    assert set(kinds) == {"item", "wrong", "stream"}
    wrong = found[kinds.index("wrong")]
    assert wrong["file_offset"] == len(WHOLE) - 1
    header = next(each for each in found if each.get("name") == "header")
    assert header["fields"][0]["value"] == b"Bl".hex()
    assert {each["stream"]: each["bytes"] for each in found if each["what"] == "stream"} == {
        "": len(WHOLE) - 1,
        "device": len(MTTY) - 1,
    }


@given(st.integers(0, len(WHOLE) - 1))
def test_what_lies_at_an_offset(offset: int) -> None:
    place = Place(offset)
    dissect(io.BytesIO(WHOLE), place)
    items = place.items()
    assert items[0].name == ("magic" if offset < 8 else items[0].name)
    for item in items:
        at = place.offset_in(item.stream)
        assert item.size is not None
        assert item.offset <= at < item.offset + item.size
        if item.stream:
            assert MTTY[at] == WHOLE[offset]
    field = place.field()
    assert (field is not None) == (items[-1].name in ("header", "port 0", "port 1"))


def test_an_offset_in_a_stream_in_the_stream() -> None:
    place = Place(WHOLE.index(MTTY[10:30]) + 2)
    dissect(io.BytesIO(WHOLE), place)
    assert [(item.stream, item.name) for item in place.items()][-1] == ("device", "header")
    field = place.field()
    assert field is not None
    assert field.name == "minor_ver"


def test_extraction(tmp_path: Path) -> None:
    sink = Extract(tmp_path / "new")
    dissect(io.BytesIO(WHOLE), sink)
    sink.close()
    assert {name: path.read_bytes() for name, path in sink.written.items()} == {"device": MTTY}


def test_extraction_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "device").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        dissect(io.BytesIO(WHOLE), Extract(tmp_path))
    assert (tmp_path / "device").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["../../etc/passwd", "/", "..", "a/b c\n", "\x1b[2J"])
def test_a_stream_s_name_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    sink = Extract(tmp_path / "here")
    sink.piece(name, 0, 0, memoryview(b"x"))
    sink.close()
    (path,) = sink.written.values()
    assert path.parent == tmp_path / "here"
    assert path.name.strip("._")
    assert list(tmp_path.iterdir()) == [tmp_path / "here"]
