"""Each experiment on migrations that did not happen: what it computes from them."""

from dataclasses import replace

import pytest

from precopy.backends import sim
from precopy.cli.main import main
from precopy.experiments import convergence, downtime, queues
from precopy.experiments.moves import Case, Move, Moved
from precopy.experiments.result import Result, Spread
from tests.experiments.fakes import AsPredicted, parameter, report


def silent(text: str) -> None:
    pass


def rows(result: Result, title: str) -> list[dict[str, object]]:
    return next(list(map(dict, each.rows)) for each in result.tables if each.title == title)


def all_cases() -> list[Case]:
    found = []
    for settings in (downtime.Settings(), queues.Settings()):
        found += [*settings.cases(), *settings.quick().cases()]
    pace = convergence.Settings()
    for each in (pace, pace.quick()):
        found += [each.case(point) for point in (*each.points(), *each.others)]
    return found


def test_every_move_is_one_that_the_command_takes() -> None:
    migrate = main.get_command(None, "migrate")  # type: ignore[arg-type]
    assert migrate is not None
    for case in all_cases():
        sim.parse(case.move.source)
        sim.parse(case.move.target)
        context = migrate.make_context("migrate", list(case.move.arguments[1:]))
        assert context.params["as_json"]
        assert context.params["source"] == case.move.source


def test_the_names_of_cases_are_their_own() -> None:
    for cases in (downtime.Settings().cases(), queues.Settings().cases()):
        assert len({case.key for case in cases}) == len(cases)


# --- downtime ---------------------------------------------------------------------------------


def test_downtime_compares_medians() -> None:
    settings = downtime.Settings(sizes=(16 << 20, 64 << 20), runs=3)
    count = 0

    def mover(move: Move) -> Moved:
        nonlocal count
        count += 1
        size = parameter(move.source, "state", "M")
        stopped = "--no-precopy" in move.options
        return Moved(report((size * 0.004 if stopped else size * 0.001) + count * 1e-9))

    result = downtime.run(settings, mover, silent)
    assert count == 12
    found = rows(result, "Downtime")
    assert [row["state"] for row in found] == [16, 64]
    assert [row["less"] for row in found] == [pytest.approx(75, abs=0.01)] * 2
    spread = found[1]["stopped"]
    assert isinstance(spread, Spread)
    assert len(spread.values) == 3
    assert spread.median == pytest.approx(256, abs=0.01)
    stages = rows(result, "Stage by stage, 64 MiB")
    assert [row["stage"] for row in stages] == ["transfer", "load", "resume"]
    assert len(result.runs) == 12
    assert "12 migrations, 120 messages" in result.notes[0]


def test_the_active_part_grows_with_the_state() -> None:
    settings = downtime.Settings(active=2.0)
    pairs = parameter(settings.device(1 << 30), "qps")
    assert pairs * 4400 == pytest.approx((1 << 30) * 0.02, rel=0.01)
    assert parameter(settings.device(1 << 30), "active") == pairs


# --- queues -----------------------------------------------------------------------------------


def test_queues_tells_what_is_saved_and_by_what() -> None:
    seconds = {"nothing ahead": 1.0, "contexts ahead": 0.3, "contexts and buffer ahead": 0.25}

    def mover(move: Move) -> Moved:
        for way, (target, options) in queues.WAYS.items():
            if move.target == target and move.options[-len(options) or 99 :] == options:
                return Moved(report(seconds[way]))
        return Moved(report(seconds["contexts ahead" if "ahead=0" in move.target else way]))

    result = queues.run(queues.Settings(pairs=(100,), runs=2), mover, silent)
    (row,) = rows(result, "Downtime")
    assert row["less"] == pytest.approx(75)
    assert row["by_buffer"] == pytest.approx(50)
    (split,) = rows(result, "Without anything ahead: what the target's load is of it")
    assert [split[name].median for name in ("load", "transfer", "rest")] == [  # type: ignore[attr-defined]
        pytest.approx(250),
        pytest.approx(500),
        pytest.approx(250),
    ]


def test_so_many_queues_are_not_moved_so_often() -> None:
    runs = {case.key[0]: case.runs for case in queues.Settings(runs=9).cases()}
    assert runs == {100: 9, 1_000: 9, 10_000: 9, 100_000: 2}


# --- convergence ------------------------------------------------------------------------------


def test_convergence_finds_what_was_predicted_where_that_comes_true() -> None:
    mover = AsPredicted()
    settings = replace(convergence.Settings(runs=2), loads=(6.25, 93.75, 120))
    result = convergence.run(settings, mover, silent)
    assert len(mover.moves) == 2 * (3 + 3)
    found = rows(result, "Rounds")
    for row in found[:2]:
        spread = row["rounds"]
        assert isinstance(spread, Spread)
        assert spread.median == row["saturating"]
        assert row["gave_up"] == 0
    assert (found[2]["saturating"], found[2]["geometric"]) == ("never", "never")
    assert found[2]["gave_up"] == 2
    assert found[2]["rounds"] == Spread.of([8, 8])
    assert found[2].get("seconds") is None
    other = rows(result, "What sets the number of rounds")
    # The row that the others are beside, then a higher limit, a higher still, a small working set.
    rounds = [row["saturating"] for row in other]
    assert rounds[0] > rounds[1] > rounds[2]  # type: ignore[operator]
    assert rounds[3] < rounds[0]  # type: ignore[operator]


def test_a_prediction_does_not_look_at_the_results() -> None:
    settings = replace(convergence.Settings(runs=1), loads=(50.0,), others=())
    told = [
        rows(convergence.run(settings, mover, silent), "Rounds")[0]
        for mover in (AsPredicted(), lambda move: Moved(report(9.0, rounds=(1,) * 99)))
    ]
    assert told[0]["rounds"] != told[1]["rounds"]
    for name in ("geometric", "saturating"):
        assert told[0][name] == told[1][name]


def test_some_runs_that_gave_up_leave_the_figures_of_the_others() -> None:
    settings = replace(convergence.Settings(runs=2), loads=(100.0,), others=())
    mover = AsPredicted()

    def wavering(move: Move) -> Moved:
        if len(mover.moves):
            return AsPredicted()(replace(move, source=move.source.replace("writes=", "writes=9")))
        return mover(move)

    (row,) = rows(convergence.run(settings, wavering, silent), "Rounds")
    assert row["gave_up"] == 1
    spread = row["rounds"]
    assert isinstance(spread, Spread)
    assert len(spread.values) == 1


def test_curves_of_the_models_end_at_the_cliff() -> None:
    result = convergence.run(convergence.Settings(runs=1), AsPredicted(), silent)
    measured, geometric, saturating = result.charts[0].curves
    assert not measured.predicted
    assert geometric.predicted
    assert saturating.predicted
    assert geometric.points[-1][0] < 100 < saturating.points[-1][0]
    cliff = result.settings["cliff_percent"]
    assert saturating.points[-1][0] < cliff < 120
    # As predicted: the next load above the cliff is the first that is given up.
    assert result.charts[0].marks == [(cliff, "cliff, predicted"), (112.5, "every run given up")]
