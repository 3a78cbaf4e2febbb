"""``precopy experiment``: options, errors, and small ones to their end."""

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from click.testing import Result as Ended

from precopy.cli import experiment
from precopy.cli.main import main
from precopy.engine.outcome import ExitStatus
from precopy.experiments.moves import ExperimentError, Move, Moved, move
from tests.experiments.fakes import AsPredicted, report


def run(*arguments: str) -> Ended:
    return CliRunner().invoke(main, ["experiment", *arguments])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("downtime", "--sizes", "1K"), "write whole MiB"),
        (("downtime", "--sizes", "much"), "is no size"),
        (("downtime", "--runs", "0"), "--runs"),
        (("queues", "--pairs", "1,131073"), "with commas between"),
        (("queues", "--pairs", "x"), "with commas between"),
        (("convergence", "--loads", "0"), "with commas between"),
        (("convergence", "--loads", "nan"), "with commas between"),
        (("convergence", "--plot", "curve.gif"), "a plot ends in .svg or .png"),
    ],
)
def test_what_a_user_may_get_wrong(arguments: tuple[str, ...], text: str) -> None:
    done = run(*arguments)
    assert done.exit_code == ExitStatus.USAGE
    assert text in done.output
    assert "Traceback" not in done.output


def test_a_plot_without_matplotlib_is_one_line_and_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    moves = AsPredicted()
    monkeypatch.setattr(experiment, "move", moves)
    done = run("convergence", "--plot", str(tmp_path / "curve.svg"))
    assert done.exit_code == ExitStatus.FAILED
    assert done.output == (
        "precopy: --plot needs matplotlib, which is not installed: pip install 'precopy[plot]'\n"
    )
    assert not moves.moves


@pytest.mark.parametrize("status", [ExitStatus.GUEST_FAULTS, ExitStatus.REFUSED])
def test_a_migration_that_fails_ends_it_with_its_status(
    monkeypatch: pytest.MonkeyPatch, status: ExitStatus
) -> None:
    def fails(move: Move) -> Moved:
        raise ExperimentError("it failed", status)

    monkeypatch.setattr(experiment, "move", fails)
    done = run("queues", "--quick")
    assert done.exit_code == status
    assert done.output.splitlines()[-1] == "precopy: it failed"


def test_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(move: Move) -> Moved:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "move", interrupted)
    done = run("downtime")
    assert done.exit_code == ExitStatus.CANCELLED
    assert done.output.splitlines()[-1] == "precopy: experiment: interrupted"


def test_a_plot_and_the_same_plot_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(experiment, "move", AsPredicted())
    paths = [tmp_path / name for name in ("one.svg", "two.svg", "three.png")]
    for path in paths:
        done = run("convergence", "--loads", "25,50", "--runs", "1", "--plot", str(path))
        assert done.exit_code == 0, done.output
    one, two, three = (path.read_bytes() for path in paths)
    assert one == two
    assert b"saturating, predicted" in one
    assert three.startswith(b"\x89PNG")


def test_a_plot_that_can_not_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "move", lambda move: Moved(report()))
    done = run("downtime", "--sizes", "1M", "--plot", "/nonexistent/curve.svg")
    assert done.exit_code == ExitStatus.FAILED
    assert (
        done.output.splitlines()[-1] == "precopy: /nonexistent/curve.svg: No such file or directory"
    )


def test_tables_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "move", AsPredicted())
    done = run("convergence", "--quick")
    assert done.exit_code == 0
    for text in ("rounds, geometric", "never", "published", "cliff", "cores"):
        assert text in done.stdout
    assert "experiment: 8 of 8" in done.stderr


def test_downtime_to_its_end() -> None:
    done = run("downtime", "--sizes", "1M", "--runs", "1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["machine"]["command"].startswith("precopy ")
    (row,) = found["tables"][0]["rows"]
    assert row["state"] == 1
    for name in ("stopped", "precopy"):
        assert row[name]["median"] > 0
    assert [each["guest"]["faults"] for each in found["runs"]] == [0, 0]
    assert "--no-precopy" in found["runs"][0]["arguments"]


def test_convergence_to_its_end() -> None:
    arguments = ("--loads", "50", "--memory", "2M", "--max-bandwidth", "8M", "--runs", "1")
    done = run("convergence", *arguments, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    (row,) = found["tables"][0]["rows"]
    assert row["geometric"] == 3
    assert row["rounds"]["median"] >= 1
    assert found["runs"][0]["guest"]["memory_wrong"] == 0


def test_a_policy_that_gives_up_to_its_end() -> None:
    options = ("--downtime-limit", "0", "--max-rounds", "0", "--give-up", "cancel")
    found = move(Move("sim:mlx5", "sim:mlx5", options, may_give_up=True))
    assert found.given_up is not None
    assert found.given_up.rounds == 0


#: PR_SET_CHILD_SUBREAPER of include/uapi/linux/prctl.h.
_SET_CHILD_SUBREAPER = 36


def test_a_signal_ends_it_with_the_migration_that_is_under_way() -> None:
    command = [sys.executable, "-m", "precopy", "experiment", "downtime", "--sizes", "1M"]
    # Whoever loses its parent becomes a child of this process.
    prctl = ctypes.CDLL(None).prctl
    assert prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "precopy: experiment: 1 of 10: 1M stopped\n"
        process.terminate()
        assert process.stderr.read() == "precopy: experiment: interrupted\n"
        assert process.wait() == ExitStatus.CANCELLED
        # Nobody of its group is left; one that ends a little later is waited for, one that stays for ever.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-process.pid, 0)
    assert prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_a_limit_that_allows_for_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment, "move", AsPredicted())
    done = run("convergence", "--memory", "1M", "--json")
    assert done.exit_code == 0, done.output
    assert "Infinity" not in done.stdout
    assert json.loads(done.stdout)["settings"]["cliff_percent"] is None
