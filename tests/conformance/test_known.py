"""Known differences: what a file may say, and what comes of what it says."""

from pathlib import Path

import pytest

from precopy.conformance import known
from precopy.conformance.check import Severity
from precopy.conformance.known import KnownError
from precopy.conformance.outcome import ConformStatus, Known, Verdict, status_of
from precopy.conformance.runner import load
from tests.conformance.made_up import made, result

TOP = Path(__file__).parents[2]
CHECKS = {"passing": made()}
FILE = """
[[known]]
requirement = "R38"
reason = "reads give 0"
reference = "main.c"

[[known]]
check = "passing"
reason = "it does not"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "known.toml"
    path.write_text(text)
    return path


def test_file(tmp_path: Path) -> None:
    assert known.load(write(tmp_path, FILE), CHECKS) == [
        Known("", 38, "reads give 0", "main.c"),
        Known("passing", 0, "it does not"),
    ]
    assert known.load(write(tmp_path, ""), CHECKS) == []


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[[known]", "known.toml"),
        ("[other]", r"\[\[known\]\]"),
        ("known = 3", r"\[\[known\]\]"),
        ("[[known]]\nreason='x'", "either a check or a requirement"),
        ("[[known]]\nreason='x'\ncheck='passing'\nrequirement='R1'", "either"),
        ("[[known]]\ncheck='passing'", "reason"),
        ("[[known]]\ncheck='other'\nreason='x'", "no check 'other'"),
        ("[[known]]\nrequirement='R95'\nreason='x'", "no requirement 'R95'"),
        ("[[known]]\nrequirement='R1'\nreason='x'\nwhy='y'", "unknown key 'why'"),
        ("[[known]]\nrequirement=1\nreason='x'", "text"),
        (
            "[[known]]\nrequirement='R1'\nreason='x'\nverdict='hang'",
            "fail or kernel down, not 'hang'",
        ),
        ("[[known]]\nrequirement='R1'\nreason='x'\nkernel='new'", "kernel 'new': write a series"),
    ],
)
def test_file_that_is_wrong(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(KnownError, match=told) as raised:
        known.load(write(tmp_path, text), CHECKS)
    assert "\n" not in str(raised.value) or text == "[[known]"


def test_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(KnownError, match="No such file"):
        known.load(tmp_path / "nothing.toml")


@pytest.mark.parametrize("path", sorted(known.DRIVERS.glob("*.toml")), ids=lambda path: path.stem)
def test_files_of_drivers_are_sound(path: Path) -> None:
    checks = load()
    stated = known.load(path, checks)
    assert stated == known.load(Path(path.stem), checks)
    assert all(each.reference for each in stated)
    told = {(each.subject, each.kernel, each.verdict, each.came) for each in stated}
    assert len(told) == len(stated)
    sections = {each.reference.rpartition("defects: ")[2] for each in stated}
    text = (TOP / "Documentation/conformance/defects.rst").read_text(encoding="utf-8")
    assert [name for name in sections if f".. _defect-{name.replace('_', '-')}:" not in text] == []


def test_stated_failure_is_known_and_all_is_well() -> None:
    results = [result(Verdict.FAIL, 38), result(Verdict.PASS, 19)]
    assert known.apply(results, [Known("", 38, "x")]) == []
    assert [each.told for each in results] == ["known", "pass"]
    assert status_of(results) is ConformStatus.OK


def test_other_failures_stay_failures() -> None:
    results = [result(Verdict.FAIL, 38), result(Verdict.FAIL, 19, name="other")]
    known.apply(results, [Known("passing", 0, "x")])
    assert [each.told for each in results] == ["known", "fail"]
    assert status_of(results) is ConformStatus.NORMATIVE


def test_stated_failure_that_is_gone() -> None:
    results = [result(Verdict.PASS, 38), result(Verdict.NOT_APPLICABLE, 38, name="other")]
    stated = [Known("", 38, "x")]
    gone = known.apply(results, stated)
    assert gone == stated
    assert status_of(results, gone) is ConformStatus.GONE


@pytest.mark.parametrize("verdict", [Verdict.NOT_APPLICABLE, Verdict.HANG, Verdict.NOT_RUN])
def test_what_was_not_checked_is_not_gone(verdict: Verdict) -> None:
    assert known.apply([result(verdict, 38)], [Known("", 38, "x")]) == []
    assert known.apply([result(Verdict.PASS, 19)], [Known("", 38, "x")]) == []


def test_one_failure_of_several_checks_is_not_gone() -> None:
    results = [result(Verdict.PASS, 38), result(Verdict.FAIL, 38, name="other")]
    assert known.apply(results, [Known("", 38, "x")]) == []


def test_a_hang_is_never_expected() -> None:
    results = [result(Verdict.HANG, 38)]
    known.apply(results, [Known("", 38, "x")])
    assert results[0].told == "hang"


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([], ConformStatus.OK),
        ([(Verdict.PASS, Severity.NORMATIVE)], ConformStatus.OK),
        ([(Verdict.NOT_APPLICABLE, Severity.NORMATIVE)], ConformStatus.OK),
        ([(Verdict.FAIL, Severity.QUALITY)], ConformStatus.QUALITY),
        (
            [(Verdict.FAIL, Severity.QUALITY), (Verdict.FAIL, Severity.CONTRACT)],
            ConformStatus.CONTRACT,
        ),
        (
            [(Verdict.FAIL, Severity.CONTRACT), (Verdict.FAIL, Severity.NORMATIVE)],
            ConformStatus.NORMATIVE,
        ),
        (
            [(Verdict.FAIL, Severity.NORMATIVE), (Verdict.HANG, Severity.QUALITY)],
            ConformStatus.HANG,
        ),
        ([(Verdict.NOT_RUN, Severity.QUALITY)], ConformStatus.HANG),
    ],
)
def test_exit_status(verdicts: list[tuple[Verdict, Severity]], status: ConformStatus) -> None:
    results = [result(verdict, severity=severity) for verdict, severity in verdicts]
    assert status_of(results) is status
    gone = [Known("", 38, "x")]
    assert status_of(results, gone) is (status or ConformStatus.GONE)


def test_differences_of_some_kernels(tmp_path: Path) -> None:
    file = """
[[known]]
check = "passing"
reason = "it falls"
verdict = "kernel down"
kernel = "6.1"

[[known]]
check = "passing"
reason = "it does not"
"""
    stated = known.load(write(tmp_path, file), CHECKS)
    assert stated[0] == Known("passing", 0, "it falls", "", Verdict.KERNEL_DOWN, "6.1")
    assert known.of_kernel(stated, "6.1.4-amd64") == stated
    assert known.of_kernel(stated, "6.12.117") == known.of_kernel(stated, "") == stated[1:]


def test_a_kernel_that_goes_down_is_only_expected_where_that_is_stated() -> None:
    down = result(Verdict.KERNEL_DOWN, name="a")
    failed = result(Verdict.FAIL, name="b")
    stated = [Known(name, 0, "it fails") for name in ("a", "b")]
    falls = [Known(name, 0, "it falls", verdict=Verdict.KERNEL_DOWN) for name in ("a", "b")]
    assert known.apply([down, failed], stated) == []
    assert (down.known, failed.known) == (None, stated[1])
    failed.known = None
    assert known.apply([down, failed], falls) == []
    assert (down.known, failed.known) == (falls[0], None)
    assert status_of([down]) is ConformStatus.OK


def test_a_failure_that_says_something_else_is_not_expected() -> None:
    stated = [Known("a", 0, "memory", came="Out of memory")]
    for came, expected in (("Out of memory: Killed", stated[0]), ("STOP", None)):
        failed = result(Verdict.FAIL, name="a", came=came)
        assert known.apply([failed], stated) == []
        assert failed.known is expected
