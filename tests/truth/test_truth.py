"""The truth test at full size can fail, and at a small size it does not."""

from typing import Any

import pytest

from tests.truth.__main__ import COLUMNS, command, faults, run

MEMORY = 8 << 20


def test_a_small_one_passes() -> None:
    told, found = run(command("heavy", MEMORY, 8))
    assert found == []
    assert told is not None
    assert faults(told, MEMORY) == []
    assert [show(told) for name, show in COLUMNS.items() if name == "wrong pages"] == ["0 of 2048"]


def test_what_fails_is_said() -> None:
    told, found = run(command("idle", MEMORY, 8, ["--downtime-limit", "none"]))
    assert told is None
    assert "none is no number" in "\n".join(found)


def good() -> dict[str, Any]:
    counts = dict.fromkeys(["lost", "doubled", "reordered", "damaged", "failed"], 0)
    guest = {**counts, "sent": 5, "received": 5, "memory_wrong": 0, "memory_pages": 2048}
    return {"guest": guest, "memory": {"tracking": "somebody"}}


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("lost", 2, "2 messages lost"),
        ("damaged", 1, "1 messages damaged"),
        ("received", 4, "5 messages sent, 4 received"),
        ("memory_wrong", 3, "3 pages of memory wrong"),
        ("memory_pages", 0, "0 pages were looked at, of 2048"),
    ],
)
def test_a_fault_is_said(name: str, value: int, line: str) -> None:
    told = good()
    assert faults(told, MEMORY) == []
    told["guest"][name] = value
    assert faults(told, MEMORY) == [line]
