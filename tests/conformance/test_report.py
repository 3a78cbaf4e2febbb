"""What is told of a run of checks, to people and to machines."""

import io
import json
import re
from xml.etree import ElementTree

import pytest
from rich.console import Console

from precopy.conformance import report as reports
from precopy.conformance.outcome import Known, Result, Verdict
from precopy.conformance.requirements import REQUIREMENTS
from tests.conformance.made_up import failing, made, report, result, run

KNOWN = Known("", 38, "reads give 0", "main.c")


def some() -> list[Result]:
    """One of each kind."""
    stated = result(Verdict.FAIL, 38, name="stated")
    stated.known = KNOWN
    return [
        result(Verdict.PASS, name="well"),
        run(made(failing, 19, 33))[0],
        result(Verdict.NOT_APPLICABLE, name="nothing", came="no #1 here"),
        result(Verdict.HANG, name="stuck"),
        result(Verdict.NOT_RUN, name="after", came="it hangs"),
        stated,
    ]


def in_words(results: list[Result], *gone: Known) -> str:
    out = io.StringIO()
    reports.table(report(results, gone), Console(file=out, width=1000))
    return out.getvalue()


def test_a_failure_is_told_with_all_that_is_needed_to_see_it_again() -> None:
    text = in_words(some())
    told = text[text.index("fail: failing") :]
    for part in (
        f"R33 (normative): {REQUIREMENTS[33].text} [{REQUIREMENTS[33].source}]",
        "step 1: sim:mlx5: SET STOP",
        "at: state",
        "expected: RUNNING",
        "came: STOP",
        "again: precopy conform 'sim:mlx5?qps=1&x=2' --only failing\n",
    ):
        assert part in told


def test_table_has_every_check_and_the_sums() -> None:
    text = in_words(some(), KNOWN)
    rows = re.findall(r"^│ ([a-z ]+?) +│ ([a-z-]+)", text, re.M)
    assert rows == [
        ("pass", "well"),
        ("fail", "failing"),
        ("not applicable", "nothing"),
        ("hang", "stuck"),
        ("not run", "after"),
        ("known", "stated"),
    ]
    assert "R38 is stated as known and fails no more" in text
    sums = "1 pass, 1 known, 1 fail, 1 hang, 1 not run, 1 not applicable"
    assert text.rstrip().endswith(sums)
    # What is known is no failure that needs to be looked at.
    assert "known: stated" not in text


def test_what_a_device_says_drives_no_terminal() -> None:
    text = in_words([result(Verdict.FAIL, came="[bold]\x1b[31m\nnot ok 1")])
    assert "\x1b" not in text
    assert "[bold]\\x1b[31m\\nnot ok 1" in text


def test_dangerous_checks_are_asked_for_again() -> None:
    check = made(failing, dangerous=True)
    assert report([]).again(check).endswith("--only failing --dangerous")


def test_ktap() -> None:
    lines = reports.ktap(report(some(), [KNOWN])).splitlines()
    assert lines[:2] == ["KTAP version 1", "1..6"]
    assert [line for line in lines[2:] if not line.startswith("#")] == [
        "ok 1 well",
        "not ok 2 failing # state: expected RUNNING, came STOP",
        "ok 3 nothing # SKIP no \\#1 here",
        "not ok 4 stuck # TIMEOUT",
        "not ok 5 after # ERROR it hangs",
        "ok 6 stated # XFAIL reads give 0 [main.c]",
    ]
    assert "# came: STOP" in lines
    failure = lines.index("not ok 2 failing # state: expected RUNNING, came STOP")
    assert lines.index("# came: STOP") < failure


#: Lines that KTAP version 1 has (Documentation/dev-tools/ktap.rst).
_KTAP_RESULT = re.compile(
    r"(ok|not ok) (\d+) ([^#\n]+?)(?: # (SKIP|TODO|XFAIL|TIMEOUT|ERROR)?.*)?", re.ASCII
)


@pytest.mark.parametrize("gone", [(), (KNOWN,)])
def test_ktap_is_as_the_kernel_has_it(gone: tuple[Known, ...]) -> None:
    told = report(some(), gone)
    told.stated = True
    version, plan, *lines = reports.ktap(told).splitlines()
    found = [_KTAP_RESULT.fullmatch(line) for line in lines if not line.startswith("# ")]
    assert (version, plan) == ("KTAP version 1", f"1..{len(found)}")
    assert [int(each[2]) for each in found if each] == list(range(1, len(found) + 1))
    last = "not ok 7 known-differences # 1 gone" if gone else "ok 7 known-differences"
    assert lines[-1] == last


def test_nothing_that_a_device_says_forges_a_ktap_line() -> None:
    for line in reports.ktap_result(report([]), 1, result(Verdict.NOT_RUN, came="x\nok 2 y")):
        assert "\n" not in line


def test_junit() -> None:
    suite = ElementTree.fromstring(reports.junit(report(some(), [KNOWN])))
    kinds = [[child.tag for child in case] for case in suite]
    assert kinds == [[], ["failure"], ["skipped"], ["error"], ["error"], ["skipped"], ["failure"]]
    counts = {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}
    assert counts == {"tests": 7, "failures": 2, "errors": 2, "skipped": 2}
    failure = suite[1][0]
    assert failure.attrib["message"] == "state: expected RUNNING, came STOP"
    assert "again: precopy conform" in (failure.text or "")


@pytest.mark.parametrize("came", ["\0\x1b\ud800<&>", "a\nb"])
def test_junit_holds_whatever_is_said(came: str) -> None:
    text = reports.junit(report([result(Verdict.FAIL, came=came)]))
    assert ElementTree.fromstring(text)[0][0].tag == "failure"


def test_json() -> None:
    told = json.loads(reports.as_json(report(some(), [KNOWN])))
    assert list(told) == ["version", "device", "about", "status", "counts", "results", "gone"]
    assert told["version"] == 1
    assert told["status"] == 13
    assert told["counts"]["fail"] == told["counts"]["known"] == 1
    assert [each["verdict"] for each in told["results"]][1:3] == ["fail", "not applicable"]
    failed = told["results"][1]
    assert failed["steps"] == ["sim:mlx5: SET STOP"]
    assert [each["name"] for each in failed["requirements"]] == ["R19", "R33"]
    assert told["results"][5]["known"] == "reads give 0 [main.c]"
    assert told["gone"][0]["subject"] == "R38"
