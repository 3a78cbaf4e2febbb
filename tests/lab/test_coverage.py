"""Coverage of the kernel's mlx5 VFIO driver, counted by a real kernel and read by the real gcov."""

import subprocess
import sys
from pathlib import Path

import pytest

from precopy.lab import Job, run
from precopy.lab.coverage import Coverage, measure
from tests.lab.test_trouble import MOVE


@pytest.fixture(scope="module")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of three boots: two that move a VF, and one that ends without its shutdown."""
    directory = tmp_path_factory.mktemp("counters")
    for shutdown in (True, True, False):
        job = Job(
            MOVE, adapter="mlx5?vfs=2", variant="ordinary", coverage=directory, shutdown=shutdown
        )
        result = run(job)
        assert (result.status, result.trouble) == (0, ""), result.err
    return directory


@pytest.fixture(scope="module")
def found(counters: Path) -> Coverage:
    return measure(counters)


def test_what_a_move_runs(found: Coverage) -> None:
    """Each boot suspends two VFs, as initiator and as responder, and resumes one."""
    calls = {
        line.function: line.count for line in found.lines if "mlx5_cmd_exec_inout" in line.text
    }
    assert found.boots == 3
    assert calls["mlx5vf_cmd_suspend_vhca"] == 3 * 2 * 2
    assert calls["mlx5vf_cmd_resume_vhca"] == 3 * 2


def test_what_it_does_not_run(found: Coverage) -> None:
    missed = {line.function for line in found.missed()}
    assert "mlx5vf_start_page_tracker" in missed
    assert 40 < found.percent() < 90


def test_both_files_and_nothing_else(found: Coverage) -> None:
    assert {line.file for line in found.lines} == {"main.c", "cmd.c"}
    assert all(line.text for line in found.lines)
    assert len(found.lines) > 1000


def test_the_command(counters: Path) -> None:
    command = [sys.executable, "-m", "precopy", "lab", "coverage", "--directory", str(counters)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 boots\nmain.c: ")
