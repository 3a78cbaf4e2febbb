"""A timeline as a trace in Chrome's Trace Event Format, which Perfetto and chrome://tracing open.

A process for each side, a thread for each row of a lane, spans as complete events ("X"), moments as
instants ("i"), counters ("C"). Times are microseconds from the first thing noted; events stand in the
order of their times. What is no event (clock, report, outcome, remarks) is in ``otherData``.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from precopy.engine.messages import printable
from precopy.engine.timeline import events
from precopy.engine.timeline.clock import Clock, Offset
from precopy.engine.timeline.events import LANES, Notes, Span
from precopy.engine.timeline.timeline import SIDES, Timeline, rows_of, series_of

#: In ``otherData``: what the trace is, and the version of what stands there.
FORMAT = "precopy timeline"
VERSION = 1

#: A trace larger than this is not read, in bytes.
MAX_TRACE = 256 << 20

_PIDS = {side: number for number, side in enumerate(SIDES, 1)}

#: Threads of one lane are numbered from a multiple of this.
_ROWS = 100


class TraceError(ValueError):
    """Why a file is no trace of a timeline, in a line."""


# --- Writing ------------------------------------------------------------------------------------


def write(timeline: Timeline, out: IO[str]) -> None:
    """The trace, event by event. OSError from ``out``."""
    begin, _ = timeline.extent()
    out.write('{"displayTimeUnit":"ms","otherData":')
    out.write(json.dumps(_other(timeline, begin)))
    out.write(',"traceEvents":[')
    separator = "\n"
    for event in trace_events(timeline):
        out.write(separator + json.dumps(event, allow_nan=False))
        separator = ",\n"
    out.write("\n]}\n")


def trace_events(timeline: Timeline) -> Iterator[dict[str, Any]]:
    """Names of processes and threads first, then all that happened, in order."""
    begin, _ = timeline.extent()
    named: list[dict[str, Any]] = []
    happened: list[dict[str, Any]] = []
    for side, notes in timeline.sides():
        pid = _PIDS[side]
        named.append(_name("process_name", pid, 0, name=f"precopy {side}"))
        named.append(_name("process_sort_index", pid, 0, sort_index=pid))
        for number, (lane, title) in enumerate(LANES.items(), 1):
            for row, spans in enumerate(rows_of(notes.spans(lane))):
                tid = number * _ROWS + min(row, _ROWS - 1)
                name = title if not row else f"{title} ({row + 1})"
                named.append(_name("thread_name", pid, tid, name=name))
                named.append(_name("thread_sort_index", pid, tid, sort_index=tid))
                happened += [_event(span, pid, tid, begin) for span in spans]
        for counter, points in series_of(notes).items():
            for at, value in points:
                event = {"ph": "C", "name": counter, "cat": "counter", "pid": pid, "tid": 0}
                happened.append({**event, "ts": _us(at - begin), "args": {"value": value}})
    yield from named
    yield from sorted(happened, key=lambda event: float(event["ts"]))


def _us(seconds: float) -> float:
    """Whole nanoseconds."""
    return round(max(seconds, 0.0) * 1e6, 3)


def _name(kind: str, pid: int, tid: int, **args: str | int) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": args}


def _event(span: Span, pid: int, tid: int, begin: float) -> dict[str, Any]:
    event: dict[str, Any] = {"name": span.name, "cat": span.lane, "pid": pid, "tid": tid}
    event["ts"] = _us(span.begin - begin)
    if span.lane == "moments":
        event |= {"ph": "i", "s": "t"}
    else:
        event |= {"ph": "X", "dur": round(_us(span.end - begin) - event["ts"], 3)}
    return event | {"args": dict(span.details)}


def _other(timeline: Timeline, begin: float) -> dict[str, Any]:
    clock = timeline.clock
    told: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "begin": begin,
        "outcome": timeline.outcome,
        "remarks": timeline.all_remarks(),
        "own_remarks": timeline.remarks,
        "left_out": {side: notes.left_out for side, notes in timeline.sides()},
        "commands": {side: notes.commands for side, notes in timeline.sides()},
        "report": timeline.report,
        "clock": None,
    }
    if clock is not None:
        told["clock"] = {
            "offset_seconds": clock.begin.offset,
            "error_seconds": clock.error,
            "drift_seconds": clock.drift,
            "drift_error_seconds": clock.drift_error,
            "begin": asdict(clock.begin),
            "end": asdict(clock.end) if clock.end is not None else None,
        }
    return told


# --- Reading ------------------------------------------------------------------------------------


def read(path: Path) -> Timeline:
    """A timeline from a trace that :func:`write` wrote; nothing in it is believed.

    TraceError says what is wrong with it; OSError.
    """
    if path.stat().st_size > MAX_TRACE:
        raise TraceError(f"larger than {MAX_TRACE >> 20} MiB")
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TraceError(f"no JSON: {error}") from None
    other = found.get("otherData") if isinstance(found, dict) else None
    if not isinstance(other, dict) or other.get("format") != FORMAT:
        raise TraceError("JSON, but no timeline of precopy's")
    if other.get("version") != VERSION:
        raise TraceError(f"a timeline of version {str(other.get('version'))[:20]}, not {VERSION}")
    rows = found.get("traceEvents")
    if not isinstance(rows, list):
        raise TraceError("no traceEvents")
    sides: dict[int, Notes] = {}
    for number, event in enumerate(rows):
        try:
            _take(event, sides)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise TraceError(f"event {number} is none of a timeline's") from None
    try:
        return _timeline(sides, other)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise TraceError("its otherData is damaged") from None


def _take(event: Mapping[str, Any], sides: dict[int, Notes]) -> None:
    """Note one event. KeyError, TypeError, ValueError, AttributeError: it is none."""
    kind, pid = event["ph"], event["pid"]
    if pid not in _PIDS.values():
        raise ValueError(pid)
    notes = sides.setdefault(pid, Notes())
    if kind == "M" or (kind == "C" and event["name"] == "rate"):
        return
    at = event["ts"] / 1e6
    row: list[Any]
    if kind == "C":
        row = [event["name"], at, event["args"]["value"]]
    else:
        lasted = event["dur"] / 1e6 if kind == "X" else 0.0
        details = {printable(key): _clean(value) for key, value in event["args"].items()}
        row = [event["cat"], printable(event["name"]), at, at + lasted, details]
    if not events.is_row(row):
        raise ValueError(kind)
    events.take_row(notes, row, lambda time: time)


def _clean(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


def _timeline(sides: Mapping[int, Notes], other: Mapping[str, Any]) -> Timeline:
    timeline = Timeline(sides.get(_PIDS["source"]), sides.get(_PIDS["target"]))
    timeline.outcome = printable(str(other["outcome"]))
    timeline.remarks = [printable(str(each)) for each in other["own_remarks"]]
    timeline.report = dict(other["report"])
    for side, notes in timeline.sides():
        notes.commands = bool(other["commands"][side])
        left_out = other["left_out"][side]
        if not events.is_left_out(left_out):
            raise ValueError(side)
        for lane, count in left_out.items():
            notes.leave_out(lane, count)
    clock = other["clock"]
    if clock is not None:
        end = clock["end"]
        timeline.clock = Clock(_offset(clock["begin"]), _offset(end) if end is not None else None)
    return timeline


def _offset(told: Mapping[str, Any]) -> Offset:
    found = Offset(float(told["offset"]), float(told["error"]), float(told["at"]))
    if not all(map(math.isfinite, asdict(found).values())):
        raise ValueError(found)
    return found
