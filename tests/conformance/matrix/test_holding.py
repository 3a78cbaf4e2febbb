"""All checks of a target get their verdict, whatever goes down on the way."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.conformance import known
from precopy.conformance.check import Check
from precopy.conformance.matrix import holding
from precopy.conformance.matrix.holding import Held, hold
from precopy.conformance.matrix.targets import Kernel, Target
from precopy.conformance.outcome import ConformStatus, Known, Verdict
from tests.conformance.matrix.fake_lab import PANIC, SPLAT, FakeLab, checks

DRIVER = Target("driver", ("one", "two"), in_kernel=True)
OURS = Target("ours", ("sim:mlx5", "sim:mlx5"))
LACKING = Target("lacking", ("one", "two"), in_kernel=True, migrates=False)
KERNEL = Kernel()


def held(lab: FakeLab, found: Sequence[Check], target: Target = DRIVER) -> Held:
    return hold(target, KERNEL if target.in_kernel else None, found, lab)


def verdicts(came: Held) -> dict[str, str]:
    return {each.check.name: each.told for each in came.results}


def test_all_is_well_in_one_kernel() -> None:
    lab = FakeLab()
    came = held(lab, checks("pass-1", "fail-2", "pass-3"))
    assert verdicts(came) == {"pass-1": "pass", "fail-2": "fail", "pass-3": "pass"}
    assert lab.boots == [("newest", ["pass-1", "fail-2", "pass-3"])]
    assert (came.about, came.release) == ("who driver is", "7.3.4")
    failed = came.results[1]
    assert (failed.what, failed.expected, failed.came) == ("the state", "RUNNING", "STOP")


@pytest.mark.parametrize(
    ("name", "came"), [("down-2", PANIC), ("stuck-2", "silent for 30 s: it runs in some_function")]
)
def test_a_kernel_that_goes_down(name: str, came: str) -> None:
    lab = FakeLab()
    found = held(lab, checks("pass-1", name, "pass-3"))
    assert verdicts(found) == {"pass-1": "pass", name: "kernel down", "pass-3": "pass"}
    assert found.results[1].came == came
    assert lab.boots == [("newest", ["pass-1", name, "pass-3"]), ("newest", ["pass-3"])]
    assert found.status is ConformStatus.HANG


def test_a_program_that_its_kernel_ends() -> None:
    found = held(FakeLab(), checks("killed-1", "pass-2"))
    assert verdicts(found) == {"killed-1": "fail", "pass-2": "pass"}
    assert found.results[0].came == "Out of memory: Killed process 77 (python3)"


def test_a_hang_leaves_the_others_another_kernel() -> None:
    lab = FakeLab()
    came = held(lab, checks("hang-1", "pass-2"))
    assert verdicts(came) == {"hang-1": "hang", "pass-2": "pass"}
    assert [names for _, names in lab.boots] == [["hang-1", "pass-2"], ["pass-2"]]


def test_what_an_earlier_check_has_spoilt_is_tried_in_another_kernel() -> None:
    lab = FakeLab()
    came = held(lab, checks("pass-1", "spoilt-2", "pass-3"))
    assert set(verdicts(came).values()) == {"pass"}
    assert [names for _, names in lab.boots][1] == ["spoilt-2", "pass-3"]


def test_dangerous_checks_have_a_debug_kernel_each() -> None:
    lab = FakeLab()
    names = ("dangerous-down-1", "pass-2", "dangerous-pass-3")
    came = held(lab, checks(*names))
    assert list(verdicts(came)) == list(names)
    assert lab.boots == [
        ("newest", ["pass-2"]),
        ("newest debug", ["dangerous-down-1"]),
        ("newest debug", ["dangerous-pass-3"]),
    ]


def test_our_own_devices_need_no_kernel() -> None:
    lab = FakeLab()
    came = held(lab, checks("dangerous-pass-1", "pass-2"), OURS)
    assert set(verdicts(came).values()) == {"pass"}
    assert lab.boots == [("", ["dangerous-pass-1", "pass-2"])]


def test_a_process_that_goes_down_is_a_hang() -> None:
    assert verdicts(held(FakeLab(), checks("stuck-1"), OURS)) == {"stuck-1": "hang"}


def test_what_the_kernel_complains_of_is_told_of_the_check_that_was_under_way() -> None:
    came = held(FakeLab(), checks("pass-1", "warn-2", "pass-3"))
    assert verdicts(came) == {"pass-1": "pass", "warn-2": "fail", "pass-3": "pass"}
    failed = came.results[1]
    assert (failed.what, failed.came) == ("the kernel's log", SPLAT)


def test_what_the_kernel_complains_of_while_it_comes_up_is_told_of_the_first() -> None:
    came = held(FakeLab(boot=SPLAT), checks("pass-1", "pass-2"))
    assert verdicts(came) == {"pass-1": "fail", "pass-2": "pass"}
    assert came.results[0].came == SPLAT


def test_a_kernel_that_does_not_come_up() -> None:
    lab = FakeLab(broken="no\nNo module named precopy\n")
    came = held(lab, checks("pass-1", "pass-2"))
    assert set(verdicts(came).values()) == {"not run"}
    assert {each.came for each in came.results} == {"No module named precopy"}
    assert len(lab.boots) == 1
    assert came.status is ConformStatus.HANG


def test_not_more_kernels_go_down_than_is_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "MOST_DOWN", 2)
    lab = FakeLab()
    came = held(lab, checks("down-1", "down-2", "down-3", "pass-4"))
    assert list(verdicts(came).values()) == ["kernel down", "kernel down", "not run", "not run"]
    assert len(lab.boots) == 2


def test_no_migration() -> None:
    lab = FakeLab(refused="ENOTTY")
    came = held(lab, checks("pass-1", "dangerous-pass-2"))
    assert verdicts(came) == {"pass-1": "not run", "dangerous-pass-2": "not run"}
    assert came.status is ConformStatus.HANG
    lacking = held(lab, checks("pass-1", "dangerous-pass-2"), LACKING)
    assert set(verdicts(lacking).values()) == {"not applicable"}
    assert (lacking.status, lacking.surprise) == (ConformStatus.OK, "")


def test_migration_that_must_not_be_there() -> None:
    came = held(FakeLab(), checks("pass-1"), LACKING)
    assert "without what it needs" in came.surprise
    assert came.status is ConformStatus.NORMATIVE


def test_known_differences_by_verdict_and_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = [
        Known("fail-1", 0, "it does not"),
        Known("down-2", 0, "it falls", verdict=Verdict.KERNEL_DOWN, kernel="6.12"),
        Known("pass-3", 0, "not so on this one", kernel="7.3"),
        Known("pass-4", 0, "mended"),
    ]
    monkeypatch.setattr(known, "load", lambda path: stated)
    target = Target("driver", ("one", "two"), known="driver", in_kernel=True)
    names = ("fail-1", "down-2", "pass-3", "pass-4")
    on_old = held(FakeLab(release="6.12.117"), checks(*names), target)
    assert list(verdicts(on_old).values()) == ["known", "known", "pass", "pass"]
    assert on_old.gone == [stated[3]]
    assert on_old.status is ConformStatus.OK
    on_new = held(FakeLab(release="7.3.4"), checks(*names), target)
    assert list(verdicts(on_new).values()) == ["known", "kernel down", "pass", "pass"]
    assert on_new.gone == [stated[2], stated[3]]


@given(
    st.lists(
        st.sampled_from(("pass", "fail", "down", "killed", "stuck", "hang", "spoilt", "warn")),
        max_size=12,
    ),
    st.data(),
)
def test_each_check_gets_one_verdict_in_its_place(kinds: list[str], data: st.DataObject) -> None:
    dangerous = data.draw(st.lists(st.booleans(), min_size=len(kinds), max_size=len(kinds)))
    names = [
        f"{'dangerous-' if risky else ''}{kind}-{at}"
        for at, (kind, risky) in enumerate(zip(kinds, dangerous, strict=True))
    ]
    came = held(FakeLab(), checks(*names))
    assert list(verdicts(came)) == names
    assert len(came.results) == len(names)
    told = {"pass": "pass", "spoilt": "pass", "warn": "fail", "down": "kernel down"}
    told |= {"stuck": "kernel down", "killed": "fail"}
    assert list(verdicts(came).values()) == [told.get(kind, kind) for kind in kinds]
