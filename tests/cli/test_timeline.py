"""``--timeline`` of migrate and receive, and ``precopy timeline``: processes, files, and what is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from precopy.cli.main import main
from precopy.cli.timeline import written
from precopy.engine.outcome import ExitStatus, Refused
from precopy.engine.timeline import Notes, Timeline
from tests.cli.processes import BLANK, SMALL, Ended, listens, precopy, start_receiver

QUIET = ("--progress", "none", "--run-for", "0.1")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments])


def trace(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def names(found: dict[str, Any], pid: int) -> set[str]:
    return {event["name"] for event in found["traceEvents"] if event["pid"] == pid}


def test_a_migration_between_two_processes(tmp_path: Path) -> None:
    """Both files at once, both sides in each, and the page is the one that the trace gives."""
    json_file, page = tmp_path / "t.json", tmp_path / "t.html"
    files = ("--timeline", str(json_file), "--timeline", str(page))
    done = precopy("migrate", SMALL, BLANK, *QUIET, *files)
    assert done.status == 0, done.err
    found = trace(json_file)
    assert {"RUNNING->PRE_COPY", "suspend", "final"} <= names(found, 1)
    assert {"RUNNING->RESUMING", "validate", "LOAD_VHCA_STATE"} <= names(found, 2)
    assert found["otherData"]["clock"]["error_seconds"] > 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert {file.name for file in tmp_path.iterdir()} == {"t.json", "t.html"}
    again = tmp_path / "again.html"
    assert run("timeline", json_file, again).exit_code == 0
    ours, theirs = (each.read_text().count('class="bar ') for each in (page, again))
    assert ours == theirs


def test_receive_has_its_own(tmp_path: Path) -> None:
    socket, file, ours = tmp_path / "socket", tmp_path / "r.json", tmp_path / "m.json"
    arguments = ("--timeline", str(file), "--run-for", "0.1")
    with start_receiver(socket, *arguments) as receiver:
        listens(receiver)
        moved = precopy(
            "migrate", SMALL, f"unix:{socket}", "--progress", "none", "--timeline", str(ours)
        )
        assert moved.status == 0, moved.err
        assert Ended.of(receiver).status == 0
    found = trace(file)
    assert not names(found, 1)
    assert {"RESUMING->STOP", "validate"} <= names(found, 2)
    assert "runs here" in found["otherData"]["outcome"]
    # The source has been told the same.
    assert {"RESUMING->STOP", "validate"} <= names(trace(ours), 2)


def test_a_migration_that_is_refused(tmp_path: Path) -> None:
    socket, file = tmp_path / "socket", tmp_path / "t.json"
    theirs = tmp_path / "r.json"
    with start_receiver(socket, "--timeline", str(theirs)) as receiver:
        listens(receiver)
        large = "sim:mlx5?qps=8&log_max_qp=9"
        done = precopy(
            "migrate", large, f"unix:{socket}", "--progress", "none", "--timeline", str(file)
        )
        assert done.status == ExitStatus.REFUSED
        assert Ended.of(receiver).status == ExitStatus.REFUSED
    found = trace(file)
    assert found["otherData"]["outcome"] in done.err
    assert "heard refuse" in names(found, 1)
    assert "sent refuse" in names(trace(theirs), 2)
    assert trace(theirs)["otherData"]["outcome"].startswith("refused")


def test_one_that_can_not_be_written_at_the_end_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands in its place is a directory: the device has moved all the same."""
    (tmp_path / "t.json").mkdir()
    timeline = Timeline(Notes())
    files = [tmp_path / "t.json", tmp_path / "u.json"]
    with written(timeline, files):
        timeline.end("moved")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"precopy: the timeline can't be written: {files[0]}: ")
    assert trace(files[1])["otherData"]["outcome"] == "moved"
    assert {file.name for file in tmp_path.iterdir()} == {"t.json", "u.json"}


def test_an_error_is_the_outcome_and_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    with pytest.raises(Refused, match="no room"), written(Timeline(Notes()), [file]):
        raise Refused("no room")
    assert trace(file)["otherData"]["outcome"] == "no room"


@pytest.mark.parametrize(
    ("file", "why"),
    [("t.txt", "ends neither in .json nor in .html"), ("no/t.json", "its directory is not there")],
)
def test_files_that_can_not_be(tmp_path: Path, file: str, why: str) -> None:
    for command in (("migrate", SMALL, BLANK), ("receive", BLANK)):
        done = run(*command, "--timeline", tmp_path / file)
        assert done.exit_code == ExitStatus.USAGE
        assert why in " ".join(done.output.split())


def test_not_of_two_migrations(tmp_path: Path) -> None:
    done = run("migrate", SMALL, BLANK, "--compare", "--timeline", tmp_path / "t.json")
    assert done.exit_code == ExitStatus.USAGE
    assert "--timeline takes one migration" in done.output


def test_what_is_no_trace(tmp_path: Path) -> None:
    file, page = tmp_path / "t.json", tmp_path / "t.html"
    for text in (None, "", "{}"):
        if text is not None:
            file.write_text(text)
        done = run("timeline", file, page)
        assert done.exit_code == ExitStatus.FAILED
        [line] = done.output.splitlines()
        assert line.startswith(f"precopy: {file}: ")
    assert run("timeline", file, tmp_path / "t.txt").exit_code == ExitStatus.USAGE
    assert not page.exists()
