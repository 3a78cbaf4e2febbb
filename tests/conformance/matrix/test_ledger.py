"""The file of results: what it keeps, and what it is when parts of it are made anew."""

from pathlib import Path

import pytest

from precopy.conformance.matrix import ledger
from precopy.conformance.matrix.holding import Held, hold
from precopy.conformance.matrix.ledger import Entry, LedgerError, Row
from precopy.conformance.matrix.targets import Kernel, Target, targets
from precopy.conformance.outcome import ConformStatus
from tests.conformance.matrix.fake_lab import PANIC, FakeLab, checks

DRIVER = Target("mtty", ("one", "two"), in_kernel=True)


def held(*names: str, version: str = "newest", target: str = "mtty") -> Held:
    return hold(
        Target(target, ("one", "two"), in_kernel=True), Kernel(version), checks(*names), FakeLab()
    )


def test_what_is_kept() -> None:
    row = ledger.row(held("pass-1", "pass-2", "fail-3", "down-4"))
    assert (row.target, row.kernel, row.release) == ("mtty", "newest", "7.3.4")
    assert row.counts == {"pass": 2, "fail": 1, "kernel down": 1}
    assert [(each.check, each.told) for each in row.entries] == [
        ("fail-3", "fail"),
        ("down-4", "kernel down"),
    ]
    assert row.entries[0].why == "the state: expected RUNNING, came STOP"
    assert PANIC in row.entries[1].why
    assert row.status == ConformStatus.HANG


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    rows = [ledger.row(held("pass-1", "fail-2")), ledger.row(held("pass-1", version="6.12"))]
    file = tmp_path / "results.json"
    file.write_text(ledger.dump(rows))
    assert ledger.load(file) == rows
    assert ledger.dump(ledger.load(file)) == file.read_text()


def test_a_known_difference_is_gone_when_no_target_of_its_driver_has_it() -> None:
    seen = (Entry("a", "known", "it does not"),)
    rows = [
        Row("mlx5", "newest", "7.3.4", "", 0, {}, (), gone=(("a", "it does not"),)),
        Row("mlx5 bulk", "newest", "7.3.4", "", 0, {}, seen),
    ]
    assert (ledger.gone(rows), ledger.worst(rows)) == ([], ConformStatus.OK)
    rows += [
        Row("mlx5", "6.12", "6.12.117", "", 0, {}, (), gone=(("a", "it does not"),)),
        Row("mtty", "6.12", "6.12.117", "", 0, {}, seen),
    ]
    assert ledger.gone(rows) == [("mlx5 6.12", "a", "it does not")]
    assert ledger.worst(rows) is ConformStatus.GONE
    # What is stated of a requirement shows in any of its checks.
    rows = [
        Row("mlx5", "", "", "", 0, {}, seen, gone=(("R45", "it does not"), ("R46", "other"))),
    ]
    assert ledger.gone(rows) == [("mlx5", "R46", "other")]


def test_what_is_made_anew_replaces_the_old() -> None:
    old = [ledger.row(held("pass-1", target="sim")), ledger.row(held("fail-1", version="6.12"))]
    old.append(ledger.row(held("pass-1", target="a target that is no more")))
    new = [ledger.row(held("pass-1", version="6.12")), ledger.row(held("pass-1"))]
    merged = ledger.merge(old, new)
    assert [(each.target, each.kernel) for each in merged] == [
        ("mtty", "newest"),
        ("mtty", "6.12"),
        ("sim", "newest"),
    ]
    assert merged[1] == new[0]


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ((), 0),
        ((0, 0), 0),
        ((0, 14), 14),
        ((12, 11, 14), 11),
        ((10, 13, 0), 13),
    ],
)
def test_the_worst_counts(statuses: tuple[int, ...], expected: int) -> None:
    rows = [Row("mtty", "", "", "", status, {}, ()) for status in statuses]
    assert ledger.worst(rows) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "no file of results"),
        ("[]", "no file of results"),
        ('{"format": 1}', "no file of results"),
        ('{"format": 0, "rows": []}', "format is not 1"),
    ],
)
def test_what_is_no_file_of_results(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(LedgerError, match=told):
        ledger.load(file)
    with pytest.raises(LedgerError, match="No such file"):
        ledger.load(tmp_path / "nothing")


def test_names_are_unique() -> None:
    names = [each.name for each in targets()]
    assert len(names) == len(set(names))
