"""A timeline as one HTML page that needs nothing else: pictures, figures, and a little script.

Its policy lets it load nothing and run no script but its own, which is named by its hash.
"""

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

from precopy.engine.report import human
from precopy.engine.timeline import drawing
from precopy.engine.timeline.drawing import Picture, span_text
from precopy.engine.timeline.timeline import Timeline

#: Of the downtime's length, how much is shown before and after it.
_MARGIN = 0.06


def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """How a policy names a script or a style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page(timeline: Timeline) -> str:
    """The whole page."""
    style, script = _own("page.css"), _own("page.js")
    report = timeline.report
    title = " to ".join(filter(None, (_text(report, "source"), _text(report, "target"))))
    return Template(_own("page.html")).substitute(
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        title=escape(title or "a migration"),
        outcome=escape(timeline.outcome or "no outcome noted"),
        clock=escape(clock_text(timeline)),
        remarks="".join(f"<li>{escape(remark)}</li>" for remark in timeline.all_remarks()),
        pictures="".join(_pictures(timeline)),
        tables="".join(_tables(timeline)),
    )


def clock_text(timeline: Timeline) -> str:
    """Whose clock the times are of, and how far the target's may be off."""
    clock = timeline.clock
    if timeline.source is None:
        return "All times are of the target's own clock."
    if timeline.target is None:
        return "All times are of the source's clock; the target's side is not here."
    if clock is None:
        return "The two clocks were not compared: the sides can't be held against each other."
    found = (
        "All times are of the source's clock. The target's were moved by"
        f" {clock.begin.offset:.6f} s, within ±{span_text(clock.error)}"
    )
    if clock.drift is None or clock.drift_error is None:
        return f"{found}; its drift was not measured."
    return (
        f"{found}; in between its clock drifted by {span_text(clock.drift)}"
        f" ±{span_text(clock.drift_error)}."
    )


def _pictures(timeline: Timeline) -> Iterator[str]:
    begin, end = timeline.extent()
    yield "<h2>All of it</h2>" + _BUTTONS
    yield Picture(timeline, "whole", begin, end, charts=True).svg()
    stages = timeline.report.get("stages") or {}
    if isinstance(stages, dict) and stages:
        numbers = {str(name): _float(value) for name, value in stages.items()}
        yield f"<h2>The downtime: {span_text(sum(numbers.values()))}</h2>"
        yield "<p>Its stages, as the report has them; they add up to it.</p>"
        yield drawing.stages(numbers)
    window = timeline.downtime()
    if window is not None:
        margin = max((window[1] - window[0]) * _MARGIN, 1e-5)
        yield "<p>The same on both sides, as it happened.</p>" + _BUTTONS
        yield Picture(
            timeline, "downtime", window[0] - margin, window[1] + margin, charts=False
        ).svg()


#: Shown by the script, without which they would do nothing.
_BUTTONS = (
    '<p class="zoom" hidden><button data-zoom="0.5">closer</button>'
    ' <button data-zoom="2">wider</button> <button data-zoom="0">all</button>'
    " <span>wheel: closer and wider, drag: along, double click: all</span></p>"
)


# --- Tables -------------------------------------------------------------------------------------


def _float(value: Any) -> float:
    """A number of a report, which may have been read from a file: 0 for what can be none."""
    return float(value) if isinstance(value, int | float) and 0 <= value < 1 << 64 else 0.0


def _text(report: dict[str, Any], name: str) -> str:
    value = report.get(name)
    return value if isinstance(value, str) else ""


def _table(name: str, title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(each)}</td>" for each in row) + "</tr>" for row in rows
    )
    return (
        f'<table id="{name}"><caption>{escape(title)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    )


def _tables(timeline: Timeline) -> Iterator[str]:
    report = timeline.report
    if not report:
        return
    yield _table("figures", "Figures", ("figure", "value"), _figures(report))
    stages = report.get("stages")
    if isinstance(stages, dict) and stages:
        whole = sum(map(_float, stages.values()))
        rows = [
            (str(name), span_text(_float(value)), f"{_float(value) / (whole or 1):.1%}")
            for name, value in stages.items()
        ]
        rows.append(("downtime", span_text(whole), ""))
        yield _table("stage-table", "Downtime", ("stage", "took", "share"), rows)
    images = report.get("images")
    if isinstance(images, list) and images:
        told = [
            (
                str(image.get("kind", "")),
                human(_float(image.get("bytes"))),
                str(image.get("records") if image.get("records") is not None else "-"),
                span_text(_float(image.get("seconds"))),
                f"{human(_float(image.get('rate')))}/s",
            )
            for image in images
            if isinstance(image, dict)
        ]
        yield _table("images", "Images", ("image", "bytes", "records", "took", "rate"), told)


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("source", "target", "outcome", "digest"):
        if _text(report, name):
            yield name, _text(report, name)
    for name, told in (
        ("total_seconds", span_text),
        ("downtime", span_text),
        ("predicted_downtime", span_text),
        ("device_bytes", human),
        ("memory_bytes", human),
    ):
        if report.get(name):
            yield name.removesuffix("_seconds").replace("_", " "), told(_float(report[name]))
    if report.get("bandwidth"):
        yield "bandwidth", f"{human(_float(report['bandwidth']))}/s"
    yield "PRE_COPY", "yes" if report.get("precopy") else "no"
    yield "rounds", str(int(_float(report.get("rounds"))))
    guest = report.get("guest")
    if isinstance(guest, dict):
        yield "guest's faults", str(int(_float(guest.get("faults"))))
    notes = report.get("notes")
    for note in notes if isinstance(notes, list) else []:
        yield "note", str(note)
