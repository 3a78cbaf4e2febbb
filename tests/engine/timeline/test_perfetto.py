"""Traces hold to the Trace Event Format, and come back as they were."""

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.engine.timeline import Notes, Timeline
from precopy.engine.timeline.clock import Clock, Offset
from precopy.engine.timeline.events import COUNTERS, LANES, MAX_SPANS
from precopy.engine.timeline.perfetto import TraceError, read, write

#: What an event of each phase has to have, and may have, by the Trace Event Format.
_ALWAYS = {"ph": str, "name": str, "pid": int, "tid": int, "ts": (int, float), "args": dict}
_MORE: dict[str, dict[str, Any]] = {
    "X": {"cat": str, "dur": (int, float)},
    "i": {"cat": str, "s": str},
    "C": {"cat": str},
    "M": {},
}
_NAMES = {"process_name", "process_sort_index", "thread_name", "thread_sort_index"}


def written(timeline: Timeline) -> str:
    out = io.StringIO()
    write(timeline, out)
    return out.getvalue()


def check(text: str) -> list[dict[str, Any]]:
    """The events of a trace, every one of which holds to the format."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    found = json.loads(text, parse_constant=refuse)
    assert found.keys() == {"traceEvents", "displayTimeUnit", "otherData"}
    events = found["traceEvents"]
    times = [event["ts"] for event in events]
    assert times == sorted(times)
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    ended: dict[tuple[int, int], float] = defaultdict(float)
    for event in events:
        fields = {**_ALWAYS, **_MORE[event["ph"]]}
        assert event.keys() == fields.keys()
        for name, kind in fields.items():
            assert isinstance(event[name], kind)
        assert event["ts"] >= 0
        thread = event["pid"], event["tid"]
        if event["ph"] == "M":
            assert event["name"] in _NAMES
        elif event["ph"] == "C":
            assert event["name"] in COUNTERS
            [value] = event["args"].values()
            assert isinstance(value, int | float)
        else:
            assert thread in threads
            assert event["cat"] in LANES
        if event["ph"] == "X":
            assert event["dur"] >= 0
            # What overlaps on a thread would be drawn wrong. Times are whole nanoseconds.
            assert event["ts"] >= ended[thread] - 0.0035
            ended[thread] = event["ts"] + event["dur"]
    return list(events)


def test_a_migration(moved: Timeline) -> None:
    events = check(written(moved))
    processes = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert processes == {"precopy source", "precopy target"}
    names = {event["name"] for event in events}
    assert {"RUNNING->PRE_COPY", "initial", "final", "SAVE_VHCA_STATE", "suspend"} <= names
    assert {"bytes", "rate", "initial_bytes", "memory_bytes"} <= names


def test_clock_and_report_are_told(moved: Timeline) -> None:
    other = json.loads(written(moved))["otherData"]
    assert moved.clock is not None
    assert other["clock"]["error_seconds"] == moved.clock.error
    assert other["clock"]["drift_seconds"] == moved.clock.drift
    assert other["report"] == json.loads(json.dumps(moved.report))
    assert other["outcome"] == moved.outcome


def test_it_comes_back(moved: Timeline, tmp_path: Path) -> None:
    """Its times count from the first event then; all else is the same."""
    path = tmp_path / "trace.json"
    path.write_text(written(moved))
    again = read(path)
    assert again.outcome == moved.outcome
    assert again.clock == moved.clock
    assert again.all_remarks() == moved.all_remarks()
    for (_, ours), (_, theirs) in zip(again.sides(), moved.sides(), strict=True):
        assert len(ours.spans()) == len(theirs.spans())
        assert ours.points("bytes")[-1][1] == theirs.points("bytes")[-1][1]
    for each in (again, moved):
        assert any(event["name"] == "rate" for event in check(written(each)))
    # Spans that followed each other still stand on one row.
    threads_ours, threads_theirs = (
        [event for event in check(written(each)) if event["name"] == "thread_name"]
        for each in (again, moved)
    )
    assert threads_ours == threads_theirs


def test_nothing_was_noted() -> None:
    assert check(written(Timeline(Notes()))) != []
    assert check(written(Timeline())) == []


def test_hostile_texts_are_texts(hostile: Timeline) -> None:
    check(written(hostile))


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    timeline = Timeline(Notes())
    assert timeline.source is not None
    for number in range(MAX_SPANS + 5):
        timeline.source.span("firmware", "SAVE", number, number)
    path = tmp_path / "trace.json"
    path.write_text(written(timeline))
    for each in (timeline, read(path)):
        assert any("5 of the firmware are left out" in remark for remark in each.all_remarks())
        assert any("no firmware commands" in remark for remark in each.all_remarks())


_time = st.floats(0, 1e5)
_spans = st.lists(
    st.tuples(st.sampled_from(sorted(LANES)), st.text(max_size=9), _time, st.floats(0, 100)),
    max_size=30,
)


@settings(max_examples=50)
@given(_spans, _spans, st.floats(-1e4, 1e4))
def test_whatever_overlaps(
    source: list[tuple[str, str, float, float]],
    target: list[tuple[str, str, float, float]],
    offset: float,
) -> None:
    timeline = Timeline(Notes(), Notes())
    timeline.clock = Clock(Offset(offset, 0.1, 0.0))
    for (_, notes), spans in zip(timeline.sides(), (source, target), strict=True):
        for lane, name, begin, lasted in spans:
            notes.span(lane, name, begin, begin + lasted)
    kinds = [event["ph"] for event in check(written(timeline))]
    assert kinds.count("X") + kinds.count("i") == len(source) + len(target)


# --- What is none -------------------------------------------------------------------------------


def spoilt(timeline: Timeline, **other: Any) -> dict[str, Any]:
    found = json.loads(written(timeline))
    found["otherData"] |= other
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no timeline"),
        ("{}", "no timeline"),
        ('{"otherData": {"format": "precopy timeline", "version": 9}}', "of version 9"),
        ('{"otherData": {"format": "precopy timeline", "version": 1}}', "no traceEvents"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "trace.json"
    path.write_text(text)
    with pytest.raises(TraceError, match=why):
        read(path)


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        {},
        {"ph": "X"},
        {"ph": "X", "pid": 9, "ts": 0, "dur": 1, "name": "x", "cat": "arcs", "args": {}},
        {"ph": "X", "pid": 1, "ts": "0", "dur": 1, "name": "x", "cat": "arcs", "args": {}},
        {"ph": "X", "pid": 1, "ts": 0, "dur": -1, "name": "x", "cat": "arcs", "args": {}},
        {"ph": "X", "pid": 1, "ts": 0, "dur": 1, "name": 7, "cat": "arcs", "args": {}},
        {"ph": "X", "pid": 1, "ts": 0, "dur": 1, "name": "x", "cat": "nowhere", "args": {}},
        {"ph": "X", "pid": 1, "ts": 0, "dur": 1, "name": "x", "cat": "arcs", "args": []},
        {"ph": "C", "pid": 1, "ts": 0, "name": "bytes", "args": {}},
        {"ph": "C", "pid": 1, "ts": 0, "name": "nothing", "args": {"value": 1}},
    ],
)
def test_events_that_are_none(moved: Timeline, tmp_path: Path, event: Any) -> None:
    found = spoilt(moved)
    found["traceEvents"].insert(3, event)
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(found))
    with pytest.raises(TraceError, match="event 3 is none"):
        read(path)


@pytest.mark.parametrize(
    "other",
    [
        {"own_remarks": 7},
        {"report": 7},
        {"clock": 7},
        {"clock": {}},
        {"clock": {"begin": {"offset": 1e400, "error": 1, "at": 1}, "end": None}},
        {"commands": []},
        {"left_out": {"source": {"arcs": -1}, "target": {}}},
    ],
)
def test_other_data_that_is_damaged(moved: Timeline, tmp_path: Path, other: Any) -> None:
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(spoilt(moved, **other)))
    with pytest.raises(TraceError, match="otherData is damaged"):
        read(path)
