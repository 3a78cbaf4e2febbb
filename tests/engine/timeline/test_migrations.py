"""What is in the timeline of a migration: of one that goes well, and of those that do not."""

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest

from precopy.engine import messages
from precopy.engine.channel import CONTROL, Channel, ChannelError
from precopy.engine.outcome import Failed, MigrationError, Refused
from precopy.engine.policy import GiveUp, Policy
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.engine.target import Received, TargetOptions
from precopy.engine.timeline import Notes, Timeline, exchange
from precopy.engine.timeline.events import Span
from precopy.vfio.states import DeviceState
from tests.engine.relay import Frame, Point
from tests.engine.rig import SOURCE, both, control, target


def names(spans: list[Span]) -> list[str]:
    return [span.name for span in spans]


# --- One that goes well -------------------------------------------------------------------------


def test_both_sides_are_there(moved: Timeline) -> None:
    assert [side for side, _ in moved.sides()] == ["source", "target"]
    assert moved.outcome == "moved; the device runs at the target"
    assert not moved.all_remarks()
    assert moved.clock is not None
    assert moved.clock.end is not None
    # Both are one process here, so that the clocks are the same one.
    for offset in (moved.clock.begin, moved.clock.end):
        assert abs(offset.offset) <= offset.error


def test_arcs_of_both_sides(moved: Timeline) -> None:
    assert moved.source is not None
    assert moved.target is not None
    assert names(moved.source.spans("arcs")) == [
        "RUNNING->PRE_COPY",
        "PRE_COPY->PRE_COPY_P2P",
        "PRE_COPY_P2P->STOP_COPY",
        "STOP_COPY->STOP",
    ]
    assert names(moved.target.spans("arcs")) == [
        "RUNNING->RESUMING",
        "RESUMING->STOP",
        "STOP->RUNNING",
    ]


def test_the_stages_are_the_reports(moved: Timeline) -> None:
    """The source's spans follow each other, and last as long together as the downtime of the report."""
    assert moved.source is not None
    spans = moved.source.spans("downtime")
    assert names(spans) == ["suspend", "query and save", "dirty pages", "transfer", "handover"]
    for before, after in itertools.pairwise(spans):
        assert before.end == pytest.approx(after.begin, abs=1e-6)
    window = moved.downtime()
    assert window is not None
    assert window[1] - window[0] == pytest.approx(moved.report["downtime"], abs=1e-6)
    stages = moved.report["stages"]
    assert spans[0].seconds == pytest.approx(stages["suspend"])


def test_the_targets_part_of_the_downtime_lies_in_it(moved: Timeline) -> None:
    assert moved.target is not None
    assert moved.clock is not None
    window = moved.downtime()
    assert window is not None
    spans = moved.target.spans("downtime")
    assert names(spans) == ["final image", "validate", "resume"]
    for span in spans:
        assert window[0] - moved.clock.error <= span.begin
        assert span.end <= window[1] + moved.clock.error
    assert spans[1].seconds == pytest.approx(moved.report["stages"]["validate"], rel=0.01)


def test_images_as_in_the_report(moved: Timeline) -> None:
    assert moved.source is not None
    told = [(span.name, span.details["bytes"]) for span in moved.source.spans("images")]
    assert told == [(image["kind"], image["bytes"]) for image in moved.report["images"]]
    for lane in ("read", "sent"):
        pieces = sum(int(span.details["bytes"]) for span in moved.source.spans(lane))
        assert pieces == moved.report["device_bytes"]
    assert moved.target is not None
    loaded = sum(int(span.details["bytes"]) for span in moved.target.spans("loaded"))
    assert loaded == moved.report["device_bytes"]


def test_moments_and_commands(moved: Timeline) -> None:
    assert moved.source is not None
    assert moved.target is not None
    found = names(moved.source.spans("moments"))
    for name in ("sent sync", "heard synced", "guest paused", "sent run", "heard running"):
        assert name in found
    assert "SWITCH_OVER" in found
    assert "guest started" in names(moved.target.spans("moments"))
    assert "SAVE_VHCA_STATE" in names(moved.source.spans("firmware"))
    assert "LOAD_VHCA_STATE" in names(moved.target.spans("firmware"))
    assert moved.source.points("memory_bytes")
    assert moved.source.points("bytes")[-1][1] == moved.target.points("bytes")[-1][1]


def test_without_a_timeline_nothing_is_asked(conversation: list[Frame]) -> None:
    assert not {frame.kind for frame in conversation} & messages.OF_TIMELINES


def test_a_target_notes_for_itself() -> None:
    notes = Notes()
    with both() as pair:
        pair.move(target_options=TargetOptions(notes=notes))
        assert isinstance(pair.at_source, Report)
    assert names(notes.spans("arcs"))[0] == "RUNNING->RESUMING"
    assert names(notes.spans("phases"))[-1] == "running"


# --- Those that do not --------------------------------------------------------------------------


def test_a_refusal() -> None:
    timeline = Timeline()
    with both(SOURCE, "sim:mlx5?log_max_qp=4") as pair:
        pair.move(Options(timeline=timeline))
        assert type(pair.at_source) is Refused
        assert timeline.outcome == str(pair.at_source)
    assert timeline.source is not None
    assert "heard refuse" in names(timeline.source.spans("moments"))
    assert timeline.remarks == [
        "the target's side is missing: it is fetched once the device runs there"
    ]


def test_a_cancel_after_some_of_it() -> None:
    timeline = Timeline()
    options = Options(timeline=timeline)
    with both() as pair:
        pair.move(options, Point("source", "sync"), options.cancel.set)
        assert isinstance(pair.at_source, MigrationError)
        assert timeline.outcome == str(pair.at_source)
    assert timeline.source is not None
    assert names(timeline.source.spans("arcs")) == ["RUNNING->PRE_COPY", "PRE_COPY->RUNNING"]
    assert names(timeline.source.spans("images"))[0] == "initial"
    assert timeline.downtime() is None


def test_it_is_given_up() -> None:
    timeline = Timeline()
    with both() as pair:
        pair.move(Options(policy=Policy(0.0, 0, 300.0, GiveUp.CANCEL), timeline=timeline))
        assert isinstance(pair.at_source, MigrationError)
    assert timeline.source is not None
    assert "GIVE_UP" in names(timeline.source.spans("moments"))


# --- A peer that is none ------------------------------------------------------------------------


def test_a_target_of_version_2(monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves as ever; its side is missing, and the timeline says so."""
    monkeypatch.setattr(messages, "VERSIONS", (2,))
    timeline = Timeline()
    with both() as pair:
        pair.move(Options(timeline=timeline))
        assert isinstance(pair.at_source, Report)
        assert isinstance(pair.at_target, Received)
    assert timeline.clock is None
    assert timeline.target is None
    assert timeline.remarks == ["the target's side is missing: it speaks version 2 of the protocol"]


def test_a_source_of_version_2_has_no_clock_to_compare() -> None:
    with target() as side:
        side.take([control("hello", program="old", versions=[2]), control("timeline")])
        assert type(side.outcome) is Failed
        assert "timeline where manifest should come" in str(side.outcome)


def test_a_source_that_asks_for_the_time_without_an_end() -> None:
    hello = control("hello", program="x", versions=[3])
    with target() as side:
        side.take([hello, control("timeline"), *[control("clock")] * 100])
        assert type(side.outcome) is Failed
        assert "the time without an end" in str(side.outcome)


Act = Callable[[Channel], object]


def noted(rows: list[Any], **fields: Any) -> Act:
    told = {"rows": rows, "more": False, "left_out": {}, "commands": True, **fields}
    return lambda channel: messages.send(channel, "noted", **told)


def flood(channel: Channel) -> None:
    row = ["arcs", "x", 1.0, 1.0, {}]
    with contextlib.suppress(ChannelError):
        for _ in range(exchange.MAX_ROWS // 500 + 2):
            noted([row] * 500, more=True)(channel)


TROUBLE: dict[str, Act] = {
    "closed": lambda channel: channel.close(),
    "another message": lambda channel: messages.send(
        channel, "ready", load=0, memory=0, validate=0
    ),
    "no message": lambda channel: channel.send_control(b'{"kind": "?"}'),
    "data": lambda channel: channel.send_data(memoryview(b"x")),
    "no lane": noted([["nowhere", "x", 1.0, 2.0, {}]]),
    "no times": noted([["arcs", "x", "1", 2.0, {}]]),
    "too long": noted([["arcs", "x" * 5000, 1.0, 2.0, {}]]),
    "left out less than nothing": noted([], left_out={"arcs": -5}),
    "a flood": flood,
}


def answer_as_a_target(channel: Channel, act: Act, at: str) -> None:
    """After RUNNING: answers clocks, and does ``act`` instead of an answer to ``at``."""
    with contextlib.suppress(ChannelError):
        while True:
            frame, payload = channel.receive()
            assert frame == CONTROL
            kind, _ = messages.decode(payload)
            if kind == at:
                act(channel)
                return
            exchange.answer_clock(channel)


def after_running(monkeypatch: pytest.MonkeyPatch, act: Act, at: str) -> Timeline:
    """A migration to a target that does ``act`` when it is asked for its side of the timeline."""
    monkeypatch.setattr(
        exchange, "serve", lambda channel, notes: answer_as_a_target(channel, act, at)
    )
    timeline = Timeline()
    with both() as pair:
        pair.move(Options(timeline=timeline))
        # Whatever it does: the device has moved.
        assert isinstance(pair.at_source, Report)
        assert isinstance(pair.at_target, Received)
        assert pair.source.device.state is DeviceState.STOP
        assert pair.target.device.state is DeviceState.RUNNING
    assert timeline.outcome == "moved; the device runs at the target"
    assert timeline.source is not None
    return timeline


@pytest.mark.parametrize("at", ["clock", "tell"])
@pytest.mark.parametrize("name", TROUBLE)
def test_a_target_in_trouble_after_the_device_has_moved(
    monkeypatch: pytest.MonkeyPatch, name: str, at: str
) -> None:
    monkeypatch.setattr(exchange, "MAX_ROWS", 2000)
    timeline = after_running(monkeypatch, TROUBLE[name], at)
    assert timeline.target is None
    [remark] = timeline.remarks
    assert remark.startswith("the target's side is missing: ")
    assert "\n" not in remark


def test_a_target_that_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_SILENCE", 0.2)
    gone = threading.Event()
    timeline = after_running(monkeypatch, lambda channel: gone.wait(0.5), "tell")
    assert "said nothing for too long" in timeline.remarks[0]


def talk_without_an_end(channel: Channel) -> None:
    with contextlib.suppress(ChannelError):
        while True:
            noted([], more=True)(channel)


def test_a_target_that_never_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "_ALL", 0.3)
    timeline = after_running(monkeypatch, talk_without_an_end, "tell")
    assert timeline.target is None
    assert len(timeline.remarks) == 1


def test_texts_of_a_target_are_printable(monkeypatch: pytest.MonkeyPatch) -> None:
    row = ["arcs", "a\x1b[2J\nb", 1.0, 2.0, {"k\x07": "v\x1b"}]
    timeline = after_running(monkeypatch, noted([row]), "tell")
    assert timeline.target is not None
    [span] = timeline.target.spans("arcs")
    assert span.name == "a?[2J b"
    assert dict(span.details) == {"k?": "v?"}


def ask_without_an_end(channel: Channel) -> None:
    for _ in range(100):
        messages.send(channel, "clock")


@pytest.mark.parametrize(
    "act",
    [
        lambda channel: channel.close(),
        lambda channel: messages.send(channel, "run"),
        lambda channel: channel.send_control(b'{"kind": "?"}'),
        ask_without_an_end,
    ],
)
def test_a_source_in_trouble_after_the_device_has_moved(
    monkeypatch: pytest.MonkeyPatch, act: Act
) -> None:
    def fetch(timeline: Timeline, channel: Channel) -> None:
        with contextlib.suppress(ChannelError):
            act(channel)

    monkeypatch.setattr(exchange, "fetch", fetch)
    with both() as pair:
        pair.move(Options(timeline=Timeline()))
        assert isinstance(pair.at_source, Report)
        assert isinstance(pair.at_target, Received)
        assert pair.target.device.state is DeviceState.RUNNING
        [note] = pair.at_target.notes
        assert note.startswith("the source did not fetch the timeline: ")


def test_more_than_a_message_holds() -> None:
    """All of it comes, in as many messages as it takes."""
    notes = Notes()
    for number in range(3000):
        notes.span("firmware", f"{number}" + "\u2028" * 150, number, number + 1.0)
    timeline = Timeline()
    with both() as pair:
        pair.move(Options(timeline=timeline), target_options=TargetOptions(notes=notes))
        assert isinstance(pair.at_source, Report)
    assert not timeline.remarks
    assert timeline.target is not None
    assert len(timeline.target.spans("firmware")) == len(notes.spans("firmware"))
