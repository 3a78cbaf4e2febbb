"""A real kernel. ``make lab-test`` builds it first."""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from precopy.lab import MTTY_UUIDS, Job, run, run_linked

TOP = Path(__file__).parents[2]
PRECOPY = (sys.executable, "-m", "precopy")


def test_status_and_output_come_back() -> None:
    result = run(Job(["sh", "-c", "echo out; echo err >&2; exit 7"]))
    assert (result.status, result.out, result.err, result.trouble) == (7, "out\n", "err\n", "")


def test_the_guest_cannot_write_to_the_host(tmp_path: Path) -> None:
    result = run(Job(["touch", str(tmp_path / "harm")]))
    assert result.status == 1
    assert not (tmp_path / "harm").exists()


def test_a_directory_that_is_named_can_be_written(tmp_path: Path) -> None:
    result = run(Job(["touch", str(tmp_path / "fine")], writable=[tmp_path]))
    assert result.status == 0, result.err
    assert (tmp_path / "fine").exists()


def test_a_command_that_does_not_end_is_ended() -> None:
    result = run(Job(["sleep", "1000"], timeout=5))
    assert result.status == 124
    assert "not done within 5 s" in result.trouble


def test_a_command_that_falls_silent_is_ended() -> None:
    talks = "for each in 1 2 3 4; do echo $each; sleep 1; done; sleep 1000"
    result = run(Job(["sh", "-c", talks], timeout=100, silence=4))
    assert (result.status, result.out) == (124, "1\n2\n3\n4\n")
    assert "silent for 4 s" in result.trouble


def test_without_devices_there_are_simulated_ones_only() -> None:
    result = run(Job([*PRECOPY, "devices", "--json"]))
    assert (result.status, result.err) == (0, "")
    assert [each["name"] for each in json.loads(result.out)["devices"]] == ["sim:mlx5"]


def test_devices_are_found() -> None:
    result = run(Job([*PRECOPY, "devices", "--json"], mtty=2))
    first, *found = json.loads(result.out)["devices"]
    assert first["name"] == "sim:mlx5"
    assert [each["name"] for each in found] == list(MTTY_UUIDS[:2])
    for each in found:
        assert (each["driver"], each["id"], each["error"]) == ("mtty", "4348:3253", "")
        assert each["migration"] == "STOP_COPY P2P PRE_COPY"


# --- Two kernels ----------------------------------------------------------------------------------

ADDRESS, DEVICE = "tcp://10.77.0.1:7475", MTTY_UUIDS[0]
CONTENT = b"\x5a\xa5between"


def _script(*commands: Sequence[str]) -> list[str]:
    return ["sh", "-c", " && ".join(shlex.join(each) for each in commands)]


def _inside(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.lab.inside", *arguments]


#: The source fills its device before; the target looks into it after.
SOURCE = _script(
    _inside("set", DEVICE, CONTENT.hex()),
    [*PRECOPY, "migrate", "--json", "--progress", "none", "--wait", "60", DEVICE, ADDRESS],
)
TARGET = _script(
    [*PRECOPY, "receive", "--listen", ADDRESS, "--plain-from-network", "--run-for", "0", DEVICE],
    _inside("get", DEVICE, str(len(CONTENT))),
)


def _require_moved(source: str, target: str) -> None:
    listening, running, content = target.splitlines()
    assert ADDRESS in listening
    assert "runs here" in running
    assert bytes.fromhex(json.loads(content)) == CONTENT
    filled, _, report = source.partition("\n")
    assert filled == "null"
    assert json.loads(report)["outcome"].startswith("moved")


def test_a_device_moves_between_two_kernels_of_one_process() -> None:
    target, source = run_linked(Job(TARGET, mtty=1, cwd=TOP), Job(SOURCE, mtty=1, cwd=TOP))
    assert (source.status, target.status) == (0, 0), source.err + target.err
    assert (source.trouble, target.trouble) == ("", "")
    _require_moved(source.out, target.out)


def test_a_device_moves_between_the_kernels_of_two_commands(tmp_path: Path) -> None:
    path = tmp_path / "link"
    command = [*PRECOPY, "lab", "run", "--mtty", "1", "--link", str(path), "--"]
    first = subprocess.Popen(
        [*command, *TARGET], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TOP
    )
    try:
        assert first.stderr is not None
        said = first.stderr.readline()
        assert said == f"precopy: lab: waiting for the other kernel at {path}\n"
        assert path.stat().st_mode & 0o777 == 0o600
        second = subprocess.run(
            [*command, *SOURCE], capture_output=True, text=True, cwd=TOP, check=False
        )
        out, err = first.communicate(timeout=60)
    finally:
        first.kill()
        first.communicate()
    assert (second.returncode, first.returncode) == (0, 0), second.stderr + err
    _require_moved(second.stdout, out)
    assert not path.exists()
