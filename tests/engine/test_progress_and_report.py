"""What is told while a migration runs, and after it."""

import io
import json
from dataclasses import asdict, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from precopy.cli.show import Display, show
from precopy.engine.progress import (
    JsonLines,
    Lines,
    Progress,
    Snapshot,
    line,
    safely,
    silent,
)
from precopy.engine.report import Image, Report, human
from precopy.vfio.guest import GuestCounts

NOW = Snapshot("middle images", 300 << 20, 1.5e9, 1 << 20, 4096, 0.0123)

REPORT = Report(
    source="sim:a",
    target="sim:b",
    outcome="moved; the device runs at the target",
    images=[
        Image("initial", 3 << 20, 4, 0.5),
        Image("middle 1", 1000, 1, 0.0),
        Image("final", 24, None, 0.25),
    ],
    stages={"suspend": 0.001, "transfer": 0.0025, "resume": 0.0005},
    memory_bytes=5 << 20,
    total_seconds=1.25,
    bandwidth=1e6,
    predicted_downtime=0.005,
    digest="0123",
    rounds=1,
    guest=GuestCounts(100, 90, 4, 3, 2, 1, 5),
    notes=["a note"],
)


def shown(report: Report) -> str:
    out = io.StringIO()
    show(report, Console(file=out, width=100))
    return out.getvalue()


def row(text: str, name: str) -> list[str]:
    """The cells of the table's row that begins with ``name``."""
    rows = [each.strip("│ ").split("│") for each in text.splitlines() if "│" in each]
    found = [[cell.strip() for cell in cells] for cells in rows if cells[0].strip() == name]
    assert len(found) == 1, text
    return found[0]


# --- Progress -----------------------------------------------------------------------------------


def test_a_line() -> None:
    assert line(Snapshot("PRE_COPY")) == "PRE_COPY"
    assert line(Snapshot("loading", 2048, 1 << 20)) == "loading: 2.0 KiB, 1.0 MiB/s"
    assert line(NOW) == (
        "middle images: 300.0 MiB, 1.4 GiB/s, initial 1.0 MiB, dirty 4.0 KiB,"
        " predicted downtime 12 ms"
    )


@pytest.mark.parametrize("kind", [Lines, JsonLines])
def test_every_phase_once_however_often_it_is_told(kind: type[Lines] | type[JsonLines]) -> None:
    out = io.StringIO()
    tell = kind(out)
    for phase in ("PRE_COPY", "initial image", "STOP_COPY", "PRE_COPY"):
        for count in range(1000):
            tell(Snapshot(phase, count))
    told = out.getvalue().splitlines()
    # A thousand calls take less than the second between two lines of one phase; were it more, the
    # phases would still come in this order.
    phases = [each.split('"')[3] if kind is JsonLines else each.split(":")[0] for each in told]
    assert list(dict.fromkeys(phases)) == ["PRE_COPY", "initial image", "STOP_COPY"]
    assert phases[0] == phases[-1] == "PRE_COPY"
    assert len(told) < 40


def test_json_lines_hold_every_field() -> None:
    out = io.StringIO()
    JsonLines(out)(NOW)
    assert json.loads(out.getvalue()) == asdict(NOW)


def test_a_display() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=80)
    with Display(console) as display:
        display(NOW)
    assert "middle images" in out.getvalue()
    assert "300.0 MiB at 1.4 GiB/s" in out.getvalue()


class Full:
    """A listener that can be told only so many times."""

    def __init__(self, times: int, error: Exception) -> None:
        self.left, self.error, self.calls = times, error, 0

    def __call__(self, now: Snapshot) -> None:
        self.calls += 1
        if self.calls > self.left:
            raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(32, "x"), ValueError("closed file")])
def test_a_listener_that_is_gone(error: Exception) -> None:
    full = Full(2, error)
    tell: Progress = safely(full)
    for _ in range(10):
        tell(NOW)
    assert full.calls == 3


def test_a_defect_of_a_listener_is_not_hidden() -> None:
    with pytest.raises(KeyError):
        safely(Full(0, KeyError("x")))(NOW)
    silent(NOW)


# --- The report ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert human(count) == text


def test_a_report_for_people() -> None:
    text = shown(REPORT)
    assert "sim:a -> sim:b: moved; the device runs at the target" in text
    assert row(text, "initial") == ["initial", "3,145,728", "4", "0.500", "6.0 MiB/s"]
    assert row(text, "middle 1") == ["middle 1", "1,000", "1", "0.000", "0 B/s"]
    assert row(text, "final") == ["final", "24", "-", "0.250", "96 B/s"]
    assert row(text, "transfer") == ["transfer", "2.5 ms"]
    assert row(text, "in all") == ["in all", "4.0 ms"]
    assert "downtime 4.0 ms (predicted 5.0 ms)" in text.replace("\n", " ")
    assert (
        "guest: 100 messages sent, 90 received, 4 lost, 3 doubled, 2 reordered, 1 damaged, 5 failed"
        in text.replace("\n", " ")
    )
    assert "a note" in text


def test_what_a_peer_calls_itself_is_no_markup() -> None:
    text = shown(replace(REPORT, target="[bold red]b[/] [link=x]"))
    assert "[bold red]b[/] [link=x]" in text


def many(count: int, records: int | None) -> Report:
    middle = [Image(f"middle {n + 1}", 1 << 20, records, 0.5) for n in range(count)]
    images = [Image("initial", 9, 1, 1.0), *middle, Image("final", 7, 1, 1.0)]
    return replace(REPORT, images=images)


def test_up_to_twelve_images_are_told_one_by_one() -> None:
    text = shown(many(10, 2))
    assert [row(text, f"middle {n}")[1] for n in range(1, 11)] == ["1,048,576"] * 10


@pytest.mark.parametrize(("records", "told"), [(2, "22"), (None, "-")])
def test_more_images_are_folded(records: int | None, told: str) -> None:
    text = shown(many(11, records))
    folded = row(text, "middle 1 to 11")
    assert folded == ["middle 1 to 11", "11,534,336", told, "5.500", "2.0 MiB/s"]
    assert row(text, "initial")[1] == "9"
    assert row(text, "final")[1] == "7"
    assert "middle 1 │" not in text


def test_folding_changes_no_figure() -> None:
    report = many(40, 2)
    shown(report)
    assert len(report.images) == 42
    assert report.device_bytes == 40 * (1 << 20) + 16


def test_a_report_without_anything() -> None:
    text = shown(Report())
    assert row(text, "in all") == ["in all", "0.0 ms"]
    assert "guest:" not in text


def test_json() -> None:
    found = json.loads(json.dumps(REPORT.to_dict()))
    assert found == REPORT.to_dict()
    # Everything that is there, and what follows from it.
    assert found.keys() == {each.name for each in fields(Report)} | {"downtime", "device_bytes"}
    assert found["downtime"] == pytest.approx(0.004)
    assert found["device_bytes"] == (3 << 20) + 1024
    assert found["images"][0]["rate"] == 6 << 20
    assert found["guest"]["faults"] == 15
    # It can be read back, for whoever compares migrations.
    images = [
        Image(**{key: image[key] for key in ("kind", "bytes", "records", "seconds")})
        for image in found["images"]
    ]
    assert images == REPORT.images
    assert json.loads(json.dumps(Report().to_dict()))["guest"] is None


@given(st.dictionaries(st.text(max_size=10), st.floats(0, 1e6)))
def test_stages_add_up(stages: dict[str, float]) -> None:
    report = Report(stages=stages)
    assert report.downtime == pytest.approx(sum(stages.values()))
    assert report.to_dict()["downtime"] == report.downtime
