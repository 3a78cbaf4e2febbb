"""What is noted, in how much memory, and as rows for a peer."""

import itertools
import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine.timeline.events import (
    COUNTERS,
    LANES,
    MAX_POINTS,
    MAX_SPANS,
    Notes,
    is_batch,
    is_left_out,
    is_row,
    rows,
    take_row,
)


class Ticking:
    """A clock that goes on by itself, a second a look."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        self.time += 1.0
        return self.time


def test_phases_end_each_other() -> None:
    notes = Notes(Ticking())
    for name in ("one", "one", "two"):
        notes.phase(name)
    notes.phase(None)
    notes.phase(None)
    assert [(s.name, s.begin, s.end) for s in notes.spans("phases")] == [
        ("one", 1.0, 2.0),
        ("two", 2.0, 3.0),
    ]


def test_spans_come_by_their_beginnings_and_the_longer_first() -> None:
    notes = Notes()
    notes.span("arcs", "b", 1.0, 2.0)
    notes.span("firmware", "a", 1.0, 3.0)
    notes.span("arcs", "c", 0.0, 1.0)
    assert [span.name for span in notes.spans()] == ["c", "a", "b"]
    assert [span.name for span in notes.spans("arcs")] == ["c", "b"]


def test_the_first_and_the_last_of_a_lane_are_kept() -> None:
    notes = Notes()
    for number in range(MAX_SPANS + 7):
        notes.span("firmware", str(number), number, number)
    kept = [int(span.name) for span in notes.spans("firmware")]
    half = MAX_SPANS // 2
    assert kept == [*range(half), *range(half + 7, MAX_SPANS + 7)]
    assert notes.left_out == {"firmware": 7}


def test_a_busy_lane_takes_nothing_from_the_others() -> None:
    notes = Notes()
    notes.span("downtime", "suspend", 0.0, 1.0)
    for number in range(3 * MAX_SPANS):
        notes.span("sent", "piece", number, number)
    assert [span.name for span in notes.spans("downtime")] == ["suspend"]


def test_a_counter_keeps_its_form() -> None:
    notes = Notes()
    for number in range(100_000):
        notes.count("bytes", number, float(number))
    points = notes.points("bytes")
    assert len(points) <= MAX_POINTS + 1
    assert points[0] == (0.0, 0.0)
    assert points[-1] == (99_999.0, 99_999.0)
    assert all(at == value for at, value in points)
    gaps = [after[0] - before[0] for before, after in itertools.pairwise(points)]
    # Everywhere about as many: nowhere a hole of more than a hundredth.
    assert max(gaps) < 1000


def test_memory_does_not_grow_with_events() -> None:
    notes = Notes()
    for number in range(20_000):
        notes.span("firmware", "SAVE", number, number + 0.5, bytes=number)
        notes.count("bytes", number, number)
    tracemalloc.start()
    for number in range(20_000, 80_000):
        notes.span("firmware", "SAVE", number, number + 0.5, bytes=number)
        notes.count("bytes", number, number)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 4 << 20
    assert len(notes.spans()) == MAX_SPANS
    assert notes.left_out == {"firmware": 80_000 - MAX_SPANS}


# --- Rows ---------------------------------------------------------------------------------------

_time = st.floats(0, 1e6)
_text = st.text(max_size=300)
_span = st.tuples(
    st.sampled_from(sorted(LANES)),
    _text,
    _time,
    _time,
    st.dictionaries(_text, st.one_of(_text, st.integers(0, 1 << 60)), max_size=12),
)
_point = st.tuples(st.sampled_from(sorted(COUNTERS)), _time, st.integers(0, 1 << 60))


@given(st.lists(_span, max_size=20), st.lists(_point, max_size=20))
def test_rows_are_what_a_peer_takes(spans: list[Any], points: list[Any]) -> None:
    """Whatever was noted, however long its texts: a peer takes it, and has the same."""
    notes, taken = Notes(), Notes()
    for lane, name, begin, lasted, details in spans:
        keys = {f"k{number}": value for number, value in enumerate(details.values())}
        notes.span(lane, name, begin, begin + lasted, **keys)
    for counter, at, value in sorted(points, key=lambda point: float(point[1])):
        notes.count(counter, value, at)
    told = json.loads(json.dumps(list(rows(notes))))
    assert is_batch(told)
    for row in told:
        take_row(taken, row, lambda time: time)
    assert list(rows(taken)) == list(rows(notes))


def test_times_of_a_row_are_moved() -> None:
    notes = Notes()
    take_row(notes, ["arcs", "x", 1.0, 2.0, {}], lambda time: time + 10)
    take_row(notes, ["bytes", 1.0, 5], lambda time: time + 10)
    assert [(span.begin, span.end) for span in notes.spans()] == [(11.0, 12.0)]
    assert notes.points("bytes") == [(11.0, 5)]


@pytest.mark.parametrize(
    "row",
    [
        None,
        [],
        ["arcs"],
        ["arcs", "x", 1.0, 2.0],
        ["nowhere", "x", 1.0, 2.0, {}],
        [["arcs"], "x", 1.0, 2.0, {}],
        ["arcs", "x" * 201, 1.0, 2.0, {}],
        ["arcs", 5, 1.0, 2.0, {}],
        ["arcs", "x", 2.0, 1.0, {}],
        ["arcs", "x", -1.0, 1.0, {}],
        ["arcs", "x", 1.0, float("inf"), {}],
        ["arcs", "x", float("nan"), 1.0, {}],
        ["arcs", "x", True, 2.0, {}],
        ["arcs", "x", 1.0, 2.0, []],
        ["arcs", "x", 1.0, 2.0, {"a": None}],
        ["arcs", "x", 1.0, 2.0, {"a": [1]}],
        ["arcs", "x", 1.0, 2.0, {"a": "x" * 201}],
        ["arcs", "x", 1.0, 2.0, {"a": 1 << 70}],
        ["arcs", "x", 1.0, 2.0, {str(n): n for n in range(9)}],
        ["nothing", 1.0, 2],
        ["bytes", 1.0, -2],
        ["bytes", 1.0, float("nan")],
        ["bytes", "1", 2],
        [{}, 1.0, 2],
    ],
)
def test_rows_that_are_none(row: Any) -> None:
    assert not is_row(row)
    assert not is_batch([row])


def test_what_is_left_out_by_lane() -> None:
    assert is_left_out({"arcs": 5})
    wrongs: tuple[Any, ...] = (
        {"arcs": -1},
        {"nowhere": 1},
        {"arcs": 1.5},
        {"arcs": True},
        [],
        None,
    )
    for wrong in wrongs:
        assert not is_left_out(wrong)
