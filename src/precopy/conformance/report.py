"""A run of checks, told: to people as a table, to machines as KTAP, JUnit XML or JSON."""

import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from precopy.conformance.check import Check
from precopy.conformance.outcome import FAILURES, Known, Result, Verdict, status_of
from precopy.conformance.requirements import REQUIREMENTS

#: How verdicts look; what is known looks as what passed.
_STYLES = {
    "pass": "green",
    "known": "yellow",
    "fail": "bold red",
    "hang": "bold red",
    "not run": "bold red",
    "kernel down": "bold red",
    "not applicable": "dim",
}


@dataclass(slots=True)
class Report:
    """``device``: its name; ``about``: who it is; ``command``: what runs one check again."""

    device: str
    about: str
    command: Sequence[str]
    results: list[Result] = field(default_factory=list)
    gone: list[Known] = field(default_factory=list)
    #: Whether differences were stated as known. KTAP then has a last result: all of them are still there.
    stated: bool = False

    def again(self, check: Check) -> str:
        """The command that runs just ``check``."""
        words = [*self.command, "--only", check.name]
        return shlex.join([*words, "--dangerous"] if check.dangerous else words)

    def counts(self) -> dict[str, int]:
        """How many results there are of each kind."""
        found = dict.fromkeys(_STYLES, 0)
        for each in self.results:
            found[each.told] += 1
        return found


def numbers(check: Check) -> str:
    """``R33, R34``"""
    return ", ".join(f"R{number}" for number in check.requirements)


def _sources(check: Check) -> Iterator[str]:
    for number in check.requirements:
        said = REQUIREMENTS[number]
        yield f"R{number} ({said.severity.value}): {said.text} [{said.source}]"


def details(report: Report, result: Result) -> list[str]:
    """All about a failure: requirement and source, steps, expected, came, how to run it again."""
    check = result.check
    lines = [f"{result.told}: {check.name}: {check.text}", *_sources(check)]
    lines += [f"step {at}: {step}" for at, step in enumerate(result.steps, 1)]
    if result.what:
        lines += [f"at: {result.what}", f"expected: {result.expected}"]
    lines += [f"came: {result.came}"]
    if result.known:
        lines.append(f"known: {_reason(result.known)}")
    lines.append(f"again: {report.again(check)}")
    return [_line(each) for each in lines]


def _note(result: Result) -> str:
    """What came, in a line."""
    if not result.what:
        return result.came
    return f"{result.what}: expected {result.expected}, came {result.came}"


def _line(text: str) -> str:
    """Nothing that a device says breaks a line or drives a terminal."""
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


def _reason(known: Known) -> str:
    return f"{known.reason} [{known.reference}]" if known.reference else known.reason


def _gone(known: Known) -> str:
    return f"{known.subject} is stated as known and fails no more: {known.reason}"


# --- For people -------------------------------------------------------------------------------


def table(report: Report, console: Console) -> None:
    """Every check in a row, then all about each failure, then the sums."""
    rows = Table(title=escape(f"{report.device}: {report.about}"), title_justify="left")
    rows.add_column("verdict", no_wrap=True)
    rows.add_column("check", no_wrap=True)
    rows.add_column("requirements")
    rows.add_column("severity")
    rows.add_column("s", justify="right")
    rows.add_column("note")
    for each in report.results:
        note = each.known.reason if each.known else _note(each)
        style = _STYLES[each.told]
        rows.add_row(
            f"[{style}]{each.told}[/]",
            each.check.name,
            numbers(each.check),
            each.check.severity.value,
            f"{each.seconds:.2f}",
            escape(_line(note)),
        )
    console.print(rows)
    for each in report.results:
        if each.is_failure:
            first, *rest = details(report, each)
            console.print()
            console.print(first, style="bold", markup=False, highlight=False)
            for line in rest:
                console.print(f"    {line}", markup=False, highlight=False, soft_wrap=True)
    for known in report.gone:
        console.print(_gone(known), style="bold red", markup=False)
    console.print()
    sums = (f"{count} {what}" for what, count in report.counts().items() if count)
    console.print(", ".join(sums), highlight=False)


# --- KTAP -------------------------------------------------------------------------------------


def ktap_head(report: Report, count: int) -> list[str]:
    """Version and plan of ``count`` checks."""
    return ["KTAP version 1", f"1..{count + report.stated}"]


def ktap_result(report: Report, number: int, result: Result) -> list[str]:
    """The lines of one result: KTAP version 1 (Documentation/dev-tools/ktap.rst)."""
    if result.known:
        ended, why = "ok", f"XFAIL {_reason(result.known)}"
    else:
        ended, directive = _KTAP[result.verdict]
        why = f"{directive} {'' if result.verdict is Verdict.PASS else _note(result)}".strip()
    told = details(report, result) if result.verdict in FAILURES else []
    return [*(f"# {line}" for line in told), _ktap_line(ended, number, result.check.name, why)]


#: How a result line begins, and its directive.
_KTAP = {
    Verdict.PASS: ("ok", ""),
    Verdict.NOT_APPLICABLE: ("ok", "SKIP"),
    Verdict.FAIL: ("not ok", ""),
    Verdict.HANG: ("not ok", "TIMEOUT"),
    Verdict.NOT_RUN: ("not ok", "ERROR"),
    Verdict.KERNEL_DOWN: ("not ok", "ERROR"),
}


def _ktap_line(ended: str, number: int, name: str, why: str) -> str:
    told = _line(why).replace("#", "\\#")
    return f"{ended} {number} {name}" + (f" # {told}" if told else "")


def ktap_tail(report: Report) -> list[str]:
    """The last result, where differences were stated: none of them is gone."""
    if not report.stated:
        return []
    number = len(report.results) + 1
    gone = len(report.gone)
    ended, why = ("not ok", f"{gone} gone") if gone else ("ok", "")
    told = [f"# {_line(_gone(known))}" for known in report.gone]
    return [*told, _ktap_line(ended, number, "known-differences", why)]


def ktap(report: Report) -> str:
    """All of it at once."""
    lines = ktap_head(report, len(report.results))
    for number, result in enumerate(report.results, 1):
        lines += ktap_result(report, number, result)
    return "\n".join([*lines, *ktap_tail(report)])


# --- JUnit and JSON ---------------------------------------------------------------------------


def junit(report: Report) -> str:
    """JUnit's XML, as build servers read it."""
    results = report.results
    suite = ElementTree.Element(
        "testsuite",
        name=_xml(f"precopy conform {report.device}"),
        tests=str(len(results)),
        failures=str(
            sum(each.is_failure and each.verdict is Verdict.FAIL for each in results)
            + len(report.gone)
        ),
        errors=str(sum(each.is_failure and each.verdict is not Verdict.FAIL for each in results)),
        skipped=str(sum(_is_skipped(each) for each in results)),
        time=f"{sum(each.seconds for each in results):.3f}",
    )
    for each in results:
        case = _case(suite, each.check.name, numbers(each.check), each.seconds)
        if each.is_failure:
            kind = "failure" if each.verdict is Verdict.FAIL else "error"
            told = ElementTree.SubElement(
                case, kind, message=_xml(_note(each)), type=each.check.severity.value
            )
            told.text = _xml("\n".join(details(report, each)))
        elif _is_skipped(each):
            why = f"known: {_reason(each.known)}" if each.known else each.came
            ElementTree.SubElement(case, "skipped", message=_xml(why))
    for known in report.gone:
        case = _case(suite, f"known difference {known.subject}", known.subject, 0)
        ElementTree.SubElement(case, "failure", message=_xml(_gone(known)), type="gone")
    suite.set("tests", str(len(results) + len(report.gone)))
    ElementTree.indent(suite)
    text = ElementTree.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'


def _is_skipped(result: Result) -> bool:
    return result.known is not None or result.verdict is Verdict.NOT_APPLICABLE


def _case(
    suite: ElementTree.Element, name: str, classname: str, seconds: float
) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", name=name, classname=classname, time=f"{seconds:.3f}"
    )


def _xml(text: str) -> str:
    """Without what XML can't hold."""
    return "\n".join(_line(line) for line in text.split("\n"))


def as_json(report: Report) -> str:
    """JSON: everything, with the exit status. ``version`` changes where a key changes its meaning."""
    return json.dumps(
        {
            "version": 1,
            "device": report.device,
            "about": report.about,
            "status": int(status_of(report.results, report.gone)),
            "counts": report.counts(),
            "results": [_told(report, each) for each in report.results],
            "gone": [
                {"subject": each.subject, "reason": each.reason, "reference": each.reference}
                for each in report.gone
            ],
        },
        indent=2,
    )


def _told(report: Report, result: Result) -> dict[str, object]:
    check = result.check
    return {
        "check": check.name,
        "text": check.text,
        "requirements": [
            {"name": f"R{number}", "text": said.text, "source": said.source}
            for number in check.requirements
            if (said := REQUIREMENTS[number])
        ],
        "severity": check.severity.value,
        "verdict": result.verdict.value,
        "known": _reason(result.known) if result.known else None,
        "what": result.what,
        "expected": result.expected,
        "came": result.came,
        "steps": list(result.steps),
        "seconds": round(result.seconds, 4),
        "again": report.again(check),
    }


#: Formats that are written at the end, by name; KTAP is written as results come.
WHOLE: dict[str, Callable[[Report], str]] = {"junit": junit, "json": as_json}
