"""The results that the documentation shows: of everything, and nothing in them that nobody has explained."""

from pathlib import Path

from precopy.conformance.matrix import ledger
from precopy.conformance.matrix.targets import cells, targets
from precopy.conformance.outcome import ConformStatus
from precopy.conformance.runner import load

ROWS = ledger.load(Path(__file__).parents[3] / "Documentation/conformance/results.json")


def test_they_are_of_every_target_on_every_kernel() -> None:
    expected = {(target.name, kernel.name if kernel else "") for target, kernel in cells(targets())}
    assert {(each.target, each.kernel) for each in ROWS} == expected


def test_every_failure_is_explained() -> None:
    assert ledger.worst(ROWS) is ConformStatus.OK
    assert {each.told for row in ROWS for each in row.entries} <= {"known", "not applicable"}


def test_our_own_devices_pass_everything() -> None:
    ours = [row for row in ROWS if not row.kernel]
    assert len(ours) == 20
    for row in ours:
        assert set(row.counts) <= {"pass", "not applicable"}, row.target


def test_they_are_of_the_checks_that_there_are() -> None:
    named = {each.check for row in ROWS for each in row.entries}
    assert named <= set(load()), "make conform writes them anew"
