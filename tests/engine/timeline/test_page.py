"""The page as a text: whole, closed to the outside, harmless whatever a peer has said."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.engine.timeline import Notes, Timeline
from precopy.engine.timeline.clock import Clock, Offset
from precopy.engine.timeline.drawing import Picture, joined, span_text, ticks
from precopy.engine.timeline.events import Span
from precopy.engine.timeline.page import clock_text, page
from precopy.engine.timeline.timeline import ROUNDING, rates, rows_of
from tests.engine.timeline.conftest import HOSTILE


class Parsed(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]

    def bars(self) -> list[dict[str, str | None]]:
        return [each for each in self.of("g") if (each.get("class") or "").startswith("bar ")]


def test_every_span_is_a_bar(moved: Timeline) -> None:
    found = Parsed(page(moved))
    whole = sum(len(notes.spans()) for _, notes in moved.sides())
    window = moved.downtime()
    assert window is not None
    # In all of it each once; those of the downtime once more.
    assert whole < len(found.bars()) < 2 * whole
    assert len(found.of("svg")) == 3


def test_nothing_from_elsewhere(moved: Timeline) -> None:
    text = page(moved)
    assert not re.search(r"(src|href)=", text)
    # No address at all but the name of SVG, which nobody looks up.
    assert set(re.findall(r"\w+://[^\"]*", text)) == {"http://www.w3.org/2000/svg"}
    [policy] = [
        each["content"] or ""
        for each in Parsed(text).of("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_hostile_texts_are_texts(hostile: Timeline) -> None:
    """There are as many scripts and pictures as in any page, and no attribute that runs anything."""
    found = Parsed(page(hostile))
    assert len(found.of("script")) == 1
    assert not found.of("img")
    assert not [
        name for _, attributes in found.elements for name in attributes if name.startswith("on")
    ]
    assert HOSTILE in found.text


def test_the_report_is_there(moved: Timeline) -> None:
    text = Parsed(page(moved)).text
    assert moved.outcome in text
    assert moved.report["digest"] in text
    for stage, seconds in moved.report["stages"].items():
        assert stage in text
        assert span_text(seconds) in text
    assert span_text(moved.report["downtime"]) in text


def test_stages_are_as_wide_as_they_are_long(moved: Timeline) -> None:
    found = Parsed(page(moved))
    stages = [each for each in found.of("g") if (each.get("class") or "").startswith("stage ")]
    assert [float(each["data-seconds"] or 0) for each in stages] == pytest.approx(
        list(moved.report["stages"].values()), abs=1e-9
    )


def test_a_failed_migration() -> None:
    timeline = Timeline(Notes())
    assert timeline.source is not None
    timeline.source.phase("connecting")
    timeline.end("the target refuses: no")
    text = Parsed(page(timeline)).text
    assert "the target refuses: no" in text
    assert "the target's side is not here" in text


def test_nothing_was_noted() -> None:
    assert "no outcome noted" in page(Timeline())


@pytest.mark.parametrize(
    ("timeline", "clock", "told"),
    [
        (Timeline(None, Notes()), None, "the target's own clock"),
        (Timeline(Notes()), None, "not here"),
        (Timeline(Notes(), Notes()), None, "not compared"),
        (Timeline(Notes(), Notes()), Clock(Offset(1, 0.001, 0)), "drift was not measured"),
        (
            Timeline(Notes(), Notes()),
            Clock(Offset(1, 0.001, 0), Offset(1.002, 0.003, 5)),
            "moved by 1.000000 s, within ±3.00 ms; in between its clock drifted by 2.00 ms ±4.00 ms",
        ),
    ],
)
def test_whose_clock_it_is(timeline: Timeline, clock: Clock | None, told: str) -> None:
    timeline.clock = clock
    assert told in clock_text(timeline)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
_NAMES = ["stages", "images", "guest", "notes", "downtime", "rounds", "bandwidth", "source"]


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(_NAMES), _json),
    st.lists(st.dictionaries(st.sampled_from(["kind", "bytes", "seconds", "rate"]), _json)),
    st.dictionaries(st.text(max_size=5), st.floats() | st.integers()),
)
def test_whatever_a_report_from_a_file_holds(
    report: dict[str, Any], images: list[Any], stages: dict[str, Any]
) -> None:
    timeline = Timeline(Notes())
    for more in ({}, {"images": images}, {"stages": stages}):
        timeline.end("moved", {**report, **more})
        assert Parsed(page(timeline)).of("table")[:1] == (
            [{"id": "figures"}] if timeline.report else []
        )


# --- Drawing ------------------------------------------------------------------------------------


def test_a_bar_lies_where_its_time_is() -> None:
    timeline = Timeline(Notes())
    assert timeline.source is not None
    timeline.source.span("arcs", "all", 100.0, 200.0)
    timeline.source.span("downtime", "half", 150.0, 200.0)
    svg = Parsed(Picture(timeline, "whole", 100.0, 200.0, charts=False).svg())
    all_of_it, half = svg.of("rect")[1:]
    assert float(half["x"] or 0) - float(all_of_it["x"] or 0) == pytest.approx(
        float(all_of_it["width"] or 0) / 2, abs=0.02
    )
    assert half["width"] == f"{float(all_of_it['width'] or 0) / 2:g}"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0"),
        (1.25, "1.25 s"),
        (125.0, "125 s"),
        (0.0125, "12.5 ms"),
        (0.000125, "125 µs"),
        (3e-8, "0.03 µs"),
        (-0.002, "-2.00 ms"),
        (5000.0, "5000 s"),
    ],
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_lie_within_and_are_not_many(begin: float, span: float) -> None:
    found = ticks(begin, begin + span)
    assert len(found) <= 11
    allowed = span * 1e-6 + 1e-6
    assert all(begin - allowed <= each <= begin + span + allowed for each in found)


_some = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10), st.sampled_from("ab")), max_size=40)


@given(_some)
def test_on_no_row_do_spans_overlap(some: list[tuple[float, float, str]]) -> None:
    spans = sorted(
        (Span("arcs", name, begin, begin + lasted) for begin, lasted, name in some),
        key=lambda span: span.begin,
    )
    rows = rows_of(spans)
    assert sum(map(len, rows)) == len(spans)
    for row in rows:
        for index in range(1, len(row)):
            assert row[index - 1].end <= row[index].begin + ROUNDING


@given(_some, st.floats(0, 50))
def test_joined_neighbours_lose_nothing(some: list[tuple[float, float, str]], apart: float) -> None:
    spans = rows_of(
        sorted(
            (Span("sent", name, at, at + lasted, {"bytes": 3}) for at, lasted, name in some),
            key=lambda span: span.begin,
        )
    )
    for row in spans:
        found = joined(row, apart)
        assert sum(int(span.details["bytes"]) for span in found) == 3 * len(row)
        assert sum(int(span.details.get("pieces", 1)) for span in found) == len(row)
        assert (found[0].begin, found[-1].end) == (row[0].begin, row[-1].end)


def test_how_fast_a_value_grew() -> None:
    points = [(0.0, 0.0), (1.0, 100.0), (1.0001, 150.0), (3.0, 500.0)]
    assert rates(points) == [(0.0, 100.0), (1.0, 200.0), (3.0, 0.0)]
    assert rates(points[:1]) == []
