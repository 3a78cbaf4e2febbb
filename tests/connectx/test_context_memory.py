"""Context memory: slots in tables, and which of their pages are there and have changed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.connectx.context_memory import PAGE_SIZE, ContextMemory, TableSpec

TABLES = {
    "small": TableSpec(64, 200),  # 4 pages, the last not full
    "none": TableSpec(4096, 0),
    "page": TableSpec(4096, 5),
    "large": TableSpec(8192, 3),  # 6 pages
    "odd": TableSpec(2048, 3),  # 2 pages
}
FIRST = {"small": 0, "none": 4, "page": 4, "large": 9, "odd": 15}
ALL_PAGES = 17


@pytest.fixture
def memory() -> ContextMemory:
    return ContextMemory(TABLES)


def present(memory: ContextMemory) -> list[int]:
    found: list[int] = memory.present_pages().tolist()
    return found


def dirty(memory: ContextMemory) -> list[int]:
    found: list[int] = memory.dirty_pages().tolist()
    return found


def test_tables_follow_each_other_in_whole_pages(memory: ContextMemory) -> None:
    assert len(memory.pages) == ALL_PAGES
    assert {name: table.first_page for name, table in memory.tables.items()} == FIRST
    counts = {name: table.page_count for name, table in memory.tables.items()}
    assert counts == {"small": 4, "none": 0, "page": 5, "large": 6, "odd": 2}


def test_nothing_is_there_before_it_is_written(memory: ContextMemory) -> None:
    for table in memory.tables.values():
        for number in range(table.slots):
            assert not any(table.slot(number))
    assert present(memory) == dirty(memory) == []
    assert (memory.present_count(), memory.dirty_count()) == (0, 0)


@pytest.mark.parametrize(
    ("table", "number", "pages"),
    [
        ("small", 0, [0]),
        ("small", 63, [0]),
        ("small", 64, [1]),
        ("small", 199, [3]),
        ("page", 4, [8]),
        ("large", 1, [11, 12]),
        ("odd", 2, [16]),
    ],
)
def test_an_edit_marks_the_pages_of_its_slot(
    memory: ContextMemory, table: str, number: int, pages: list[int]
) -> None:
    memory.tables[table].edit(number)[0] = 7
    assert present(memory) == dirty(memory) == pages
    assert memory.tables[table].slot(number)[0] == 7
    memory.take(memory.dirty_pages())
    memory.tables[table].slot(number)
    assert (present(memory), dirty(memory)) == (pages, [])


@pytest.mark.parametrize("number", [-1, 200, 1 << 40])
def test_slots_that_are_not_there(memory: ContextMemory, number: int) -> None:
    for call in (memory.tables["small"].slot, memory.tables["small"].edit):
        with pytest.raises(IndexError, match="no slot"):
            call(number)
    with pytest.raises(IndexError, match="no slot"):
        memory.tables["none"].slot(0)
    assert present(memory) == []


def test_bytes_of_a_table(memory: ContextMemory) -> None:
    page = memory.tables["page"]
    page.edit_bytes(4090, 12)[:] = b"over an edge"
    assert bytes(page.slot(0)[4090:]) + bytes(page.slot(1)[:6]) == b"over an edge"
    assert present(memory) == [4, 5]
    assert len(page.edit_bytes(5 * 4096, 0)) == 0
    for offset, length in ((-1, 2), (5 * 4096, 1), (0, 5 * 4096 + 1)):
        with pytest.raises(IndexError, match="outside the table"):
            page.edit_bytes(offset, length)
    assert present(memory) == [4, 5]


def test_all_slots_at_once_are_for_reading(memory: ContextMemory) -> None:
    small = memory.tables["small"]
    small.edit(150)[3] = 9
    assert small.rows[150, 3] == 9
    with pytest.raises(ValueError, match="read-only"):
        small.rows[150, 3] = 1


def test_slots_found_by_a_flag(memory: ContextMemory) -> None:
    for name in ("small", "large", "odd"):
        table = memory.tables[name]
        for number, value in ((0, 0b01), (1, 0b10), (2, 0b11)):
            table.edit(number)[5] = value
        assert table.flagged_slots(5, 0b01).tolist() == [0, 2]
        assert table.flagged_slots(5, 0b10).tolist() == [1, 2]
        assert table.flagged_slots(6, 0b11).tolist() == []
    # Slots on pages that are there, none beyond the end of the table.
    small = memory.tables["small"]
    small.edit(199)
    assert small.present_slots().tolist() == [*range(64), *range(192, 200)]
    assert memory.tables["large"].present_slots().tolist() == [0, 1, 2]
    assert memory.tables["page"].present_slots().tolist() == []


def test_a_full_save_begins_with_all_that_is_there(memory: ContextMemory) -> None:
    memory.tables["page"].edit(0)
    memory.tables["odd"].edit(2)
    memory.take(np.array([4]))
    assert dirty(memory) == [16]
    memory.mark_all_dirty()
    assert dirty(memory) == [4, 16]


def test_clearing_gives_zeroes_and_is_counted(memory: ContextMemory) -> None:
    for table in memory.tables.values():
        for number in range(table.slots):
            table.edit(number)[:] = b"\xff" * table.slot_bytes
    assert len(present(memory)) == ALL_PAGES
    before = memory.clearings
    memory.clear()
    assert memory.clearings == before + 1
    assert not memory.bytes.any()
    assert present(memory) == dirty(memory) == []


@pytest.mark.parametrize(
    "pages",
    [[0], [3, 7, 9], list(range(100)), list(range(300, 700)), [*range(80), 81], []],
    ids=["one", "few", "long run", "long run inside", "run with a hole", "none"],
)
def test_what_is_restored_is_there_and_counts_as_written(pages: list[int]) -> None:
    memory = ContextMemory({"bulk": TableSpec(4096, 1000)})
    content = np.random.default_rng(1).integers(0, 256, (len(pages), PAGE_SIZE), dtype=np.uint8)
    memory.restore(np.array(pages, dtype=np.int64), content)
    assert present(memory) == dirty(memory) == pages
    assert np.array_equal(memory.pages[pages], content)
    others = np.delete(memory.pages, pages, axis=0)
    assert not others.any()


def test_a_memory_of_nothing() -> None:
    memory = ContextMemory({"none": TableSpec(4096, 0)})
    assert present(memory) == []
    assert memory.tables["none"].page_count == 0


slots = st.sampled_from([name for name in TABLES if name != "none"]).flatmap(
    lambda name: st.tuples(st.just(name), st.integers(0, TABLES[name].slots - 1))
)
steps = st.one_of(
    st.tuples(st.just("write"), slots, st.integers(0, 255)),
    st.tuples(st.just("take"), st.sets(st.integers(0, ALL_PAGES - 1)), st.none()),
    st.tuples(st.just("restore"), st.sets(st.integers(0, ALL_PAGES - 1)), st.integers(0, 255)),
    st.tuples(st.sampled_from(["clear", "mark"]), st.none(), st.none()),
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(history=st.lists(steps, max_size=40))
def test_any_history_against_a_plain_model(history: list[tuple[str, Any, Any]]) -> None:
    memory = ContextMemory(TABLES)
    content = bytearray(ALL_PAGES * PAGE_SIZE)
    there: set[int] = set()
    changed: set[int] = set()
    for what, where, value in history:
        if what == "write":
            name, number = where
            size = TABLES[name].slot_bytes
            start = FIRST[name] * PAGE_SIZE + number * size
            memory.tables[name].edit(number)[:] = bytes([value]) * size
            content[start : start + size] = bytes([value]) * size
            pages = set(range(start // PAGE_SIZE, (start + size - 1) // PAGE_SIZE + 1))
            there |= pages
            changed |= pages
        elif what == "take":
            memory.take(np.array(sorted(where), dtype=np.int64))
            changed -= where
        elif what == "restore":
            rows = np.full((len(where), PAGE_SIZE), value, dtype=np.uint8)
            memory.restore(np.array(sorted(where), dtype=np.int64), rows)
            for page in where:
                content[page * PAGE_SIZE : (page + 1) * PAGE_SIZE] = bytes([value]) * PAGE_SIZE
            there |= where
            changed |= where
        elif what == "mark":
            memory.mark_all_dirty()
            changed = set(there)
        else:
            memory.clear()
            content = bytearray(len(content))
            there, changed = set(), set()
        assert present(memory) == sorted(there)
        assert dirty(memory) == sorted(changed)
    assert memory.view == content
