"""What a command's end is taken for, and the order in which moves are repeated."""

import json

import pytest

from precopy.engine.outcome import ExitStatus
from precopy.engine.policy import GiveUp, Measured, Pace, Policy
from precopy.experiments.moves import (
    Case,
    ExperimentError,
    GivenUp,
    Move,
    Moved,
    guests,
    raw,
    read,
    repeat,
)
from tests.experiments.fakes import report

MOVE = Move("sim:mlx5", "sim:mlx5?ahead=0", ("--no-precopy",))
PATIENT = Move("sim:mlx5", "sim:mlx5", may_give_up=True)


def complaint() -> str:
    """What a policy that gives up says, in the engine's own words."""
    pace = Pace(Policy(downtime_limit=0.05, give_up=GiveUp.CANCEL))
    now = Measured(10_000_000, 100_000_000.0, 0.0, 0.001, memory_bytes=16_900_000)
    return f"precopy: {pace.complaint(now)}; the device runs at the source"


def test_the_command_is_that_of_a_user() -> None:
    assert MOVE.arguments[:3] == ["migrate", "sim:mlx5", "sim:mlx5?ahead=0"]
    assert {"--json", "--no-precopy"} < set(MOVE.arguments)


def test_a_migration_that_went_through() -> None:
    moved = read(MOVE, 0, json.dumps(report(0.02)), "")
    assert moved.downtime_ms == pytest.approx(20)
    assert moved.stage_ms("load") == pytest.approx(5)
    assert moved.stage_ms("nothing of the kind") == 0
    kept = moved.to_dict()
    assert "images" not in kept
    assert kept["stages"] == moved.report["stages"]


def test_a_policy_that_gave_up_is_a_finding_where_it_may() -> None:
    said = f"{complaint()}; its guest has sent 9 messages, 0 faults"
    moved = read(PATIENT, ExitStatus.CANCELLED, "", f"a line before\n{said}\n")
    assert moved == Moved(given_up=GivenUp(0.27, 0))
    assert moved.to_dict() == {"gave_up": {"predicted_downtime": 0.27, "rounds": 0}}
    with pytest.raises(ExperimentError) as caught:
        read(MOVE, ExitStatus.CANCELLED, "", said)
    assert caught.value.status is ExitStatus.CANCELLED


@pytest.mark.parametrize(
    ("status", "said", "complained", "kind", "text"),
    [
        (0, json.dumps(report(faults=2)), "", ExitStatus.GUEST_FAULTS, "counted 2 faults"),
        (
            6,
            json.dumps(report(faults=2)),
            "precopy: the guest counted faults: lost 2\n",
            ExitStatus.GUEST_FAULTS,
            "the guest counted faults: lost 2",
        ),
        (3, "", "precopy: the target refuses\n", ExitStatus.REFUSED, "the target refuses"),
        (-9, "", "", ExitStatus.FAILED, "ended with status -9"),
        (130, "", "precopy: cancelled\n", ExitStatus.CANCELLED, "cancelled"),
        (0, "{", "", ExitStatus.FAILED, "can't be read"),
        (0, "[]", "", ExitStatus.FAILED, "can't be read"),
        (0, "{}", "", ExitStatus.FAILED, "can't be read"),
        (0, json.dumps({**report(), "guest": None}), "", ExitStatus.FAILED, "no guest was there"),
    ],
)
def test_what_ends_an_experiment(
    status: int, said: str, complained: str, kind: ExitStatus, text: str
) -> None:
    with pytest.raises(ExperimentError, match=text) as caught:
        read(PATIENT, status, said, complained)
    assert caught.value.status is kind
    assert "\n" not in str(caught.value)


def test_faults_after_giving_up_end_it_too() -> None:
    said = f"{complaint()}; its guest has sent 9 messages, 10 faults"
    with pytest.raises(ExperimentError, match="10 faults") as caught:
        read(PATIENT, ExitStatus.CANCELLED, "", said)
    assert caught.value.status is ExitStatus.GUEST_FAULTS


def test_moves_are_repeated_in_turn() -> None:
    cases = [Case(("a", 1), MOVE, 3), Case(("b", 2), PATIENT, 1)]
    order: list[Move] = []
    told: list[str] = []

    def mover(move: Move) -> Moved:
        order.append(move)
        return Moved(report(len(order)))

    found = repeat(cases, mover, told.append)
    assert order == [MOVE, PATIENT, MOVE, MOVE]
    assert [each.report["downtime"] for each in found["a", 1]] == [1, 3, 4]
    assert told == ["1 of 4: a 1", "2 of 4: b 2", "3 of 4: a 1", "4 of 4: a 1"]
    runs = raw(cases, found)
    assert [run["downtime"] for run in runs] == [1, 3, 4, 2]
    assert runs[0]["arguments"] == MOVE.arguments
    assert guests(found) == (
        "4 migrations, 40 messages of guests, 12 pages of memory checked: 0 faults"
    )


def test_nothing_to_repeat() -> None:
    assert repeat([], lambda move: Moved(), print) == {}
