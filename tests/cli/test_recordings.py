"""``precopy save``, ``load``, ``replay`` and ``migrate --record``, as commands."""

import json
import os
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precopy.backends import open_device
from precopy.cli.main import main
from precopy.vfio.states import DeviceState
from tests.cli.processes import BLANK, SMALL, Process
from tests.cli.test_serve import serving

FAULT = BLANK + "&fault=LOAD_VHCA_STATE:1:0x1"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "vf.state"
    done = run("save", "--progress", "none", SMALL, path)
    assert done.exit_code == 0, done.output
    return path


def test_save_tells_what_it_took_and_the_guest_works_on(tmp_path: Path) -> None:
    done = run("save", "--json", "--progress", "none", SMALL, tmp_path / "state")
    found = json.loads(done.stdout)
    assert found["outcome"].endswith("the device runs on")
    assert [image["kind"] for image in found["images"]] == ["initial", "final"]
    assert found["guest"]["faults"] == 0
    stopped = run("save", "--stopped", "--json", "--progress", "none", SMALL, tmp_path / "other")
    assert [image["kind"] for image in json.loads(stopped.stdout)["images"]] == ["final"]


def test_load_runs_it_here(saved: Path) -> None:
    done = run("load", "--json", "--run-for", "0.05", "--progress", "none", saved, BLANK)
    assert done.exit_code == 0, done.output
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert "running" in lines[0]
    assert lines[-1]["guest"]["received"] > 0
    assert not lines[-1]["guest"]["lost"]


def test_replay_to_a_device(saved: Path) -> None:
    done = run("replay", "--speed", "0", "--run-for", "0.05", "--progress", "none", saved, BLANK)
    assert done.exit_code == 0, done.output
    assert "the target runs the device, after" in done.output
    assert ", 0 faults" in done.output


def test_replay_tells_what_is_not_as_it_was(saved: Path) -> None:
    speed = ("--speed", "0", "--run-for", "0", "--progress", "none")
    done = run("replay", "--json", *speed, saved, "sim:mlx5?log_max_qp=9")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["guest"]["faults"] == 0
    told = {(each["answer"], each["field"]): each for each in found["differences"]}
    assert told["accept", "name"]["now"] == "sim:mlx5?log_max_qp=9"
    assert told["accept", "name"]["recorded"] == saved.name
    assert ("accept", "firmware") not in told
    assert told["running", "resume"]["now"] > 0


def test_a_recorded_failure_fails_again(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    moved = run("migrate", "--record", path, "--progress", "none", SMALL, FAULT)
    assert moved.exit_code == 4
    assert "the device runs at the source" in moved.output
    again = run("replay", "--speed", "0", "--progress", "none", path, FAULT)
    assert again.exit_code == 4
    assert again.output.rstrip().endswith(", as in the recording")
    loaded = run("load", "--progress", "none", path, BLANK)
    assert loaded.exit_code == 4
    assert "does not hold all of a device's state" in loaded.output


def test_a_recorded_migration_is_loaded_and_inspected(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    moved = run("migrate", "--record", path, "--run-for", "0", "--progress", "none", SMALL, BLANK)
    assert moved.exit_code == 0, moved.output
    loaded = run("load", "--run-for", "0", "--progress", "none", path, BLANK)
    assert loaded.exit_code == 0, loaded.output
    seen = run("inspect", "--brief", path)
    assert seen.exit_code == 0
    assert "mlx5" in seen.output


def test_a_recording_that_breaks_off_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writev, calls = os.writev, []

    def full(*arguments: object) -> int:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        return writev(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("precopy.stream.recording.os.writev", full)
    path = tmp_path / "run.rec"
    moved = run("migrate", "--record", path, "--run-for", "0", "--progress", "none", SMALL, BLANK)
    assert moved.exit_code == 0, moved.output
    assert "the recording broke off: No space left on device" in moved.output
    assert not path.exists()
    assert run("inspect", "--brief", f"{path}.partial").exit_code == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("save", SMALL, "/nonexistent/file"), 4, "No such file or directory; nothing has changed"),
        (("save", SMALL, "/dev/null"), 2, "/dev/null exists: --force replaces it"),
        (("save", "--force", SMALL, "/dev/null"), 4, "there is something that is no file"),
        (("load", "/nonexistent", BLANK), 4, "No such file or directory; nothing has changed"),
        (("load", "/dev/null", BLANK), 4, "it ends at byte 0x0"),
        (("load", "/etc/passwd", BLANK), 4, "it is no recording; nothing has changed"),
        (("replay", "/etc/passwd", BLANK), 4, "it is no recording; nothing has changed"),
        (
            ("migrate", "--compare", "--record", "x", SMALL, BLANK),
            2,
            "--record takes one migration",
        ),
        (("migrate", "--record", "/nonexistent/x", SMALL, BLANK), 4, "nothing has changed"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    arguments: tuple[str, ...], status: int, text: str
) -> None:
    done = run(arguments[0], "--progress", "none", *arguments[1:])
    assert done.exit_code == status, done.output
    assert done.output.count("\n") == 1
    assert done.output.startswith("precopy: ")
    assert text in done.output


def test_a_file_with_a_flipped_bit_never_reaches_the_device(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 3] ^= 1
    altered = tmp_path / "altered"
    altered.write_bytes(data)
    # A device that can't be opened: it is not even tried.
    done = run("load", "--progress", "none", altered, "vfio:9999:00:00.0")
    assert done.exit_code == 4
    assert "was altered" in done.output


def test_another_kind_of_device_refuses_it(saved: Path) -> None:
    done = run("load", "--progress", "none", saved, "sim:mlx5?log_max_qp=4")
    assert done.exit_code == 3
    assert "lacks log_max_qp" in done.output


def let_go(server: Process) -> None:
    """Its client has gone, and it has noticed: another one can have the device."""
    assert any(line.endswith(": gone\n") for line in server.stderr)


def test_a_device_that_another_process_serves(tmp_path: Path) -> None:
    """Stopped it is saved, stopped it is loaded into another; each stays so for who comes next."""
    one, other, path = tmp_path / "one", tmp_path / "other", tmp_path / "state"

    def state(server: Process, name: str) -> DeviceState:
        let_go(server)
        with closing(open_device(name)) as opened:
            found = opened.device.state
        let_go(server)
        return found

    with serving(one) as source, serving(other) as target:
        names = f"vfio-user:{one}", f"vfio-user:{other}"
        done = run("save", "--keep", "stopped", "--json", "--progress", "none", names[0], path)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["outcome"] == f"saved to {path}; the device is kept in STOP"
        assert state(source, names[0]) is DeviceState.STOP
        done = run("load", "--stop", "--progress", "none", path, names[1])
        assert done.exit_code == 0, done.output
        assert " is loaded, in STOP (" in done.output
        assert state(target, names[1]) is DeviceState.STOP
        again = run("load", "--progress", "none", path, names[1])
        assert again.exit_code == 3
        assert "this device is in STOP, not RUNNING" in again.output


def test_a_device_that_is_to_stay_stopped_runs_on_where_its_file_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("precopy.stream.recording.os.fsync", full)
    with serving(tmp_path / "socket") as server:
        name = f"vfio-user:{tmp_path / 'socket'}"
        done = run("save", "--keep", "stopped", "--progress", "none", name, tmp_path / "state")
        assert done.exit_code == 4
        assert done.output.endswith("No space left on device; the device runs on\n")
        let_go(server)
        with closing(open_device(name)) as opened:
            assert opened.device.state is DeviceState.RUNNING
    assert not list(tmp_path.glob("state*"))
