"""``precopy inspect`` of QEMU's main stream with multifd's channels beside it."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precopy.cli.main import main
from tests.stream.formats import qemu_parts as q


def run(*arguments: str | int | Path) -> Result:
    return CliRunner().invoke(main, ["inspect", *(str(each) for each in arguments)])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """A main stream, and two channels with a device's last part."""
    rest = q.MTTY[24:]
    streams = [
        q.main_of_multifd(q.MTTY),
        q.channel(0, q.piece(1, rest[50:]), q.piece(2, q.config(), 1)),
        q.channel(1, q.piece(0, rest[:50])),
    ]
    paths = [tmp_path / f"capture-{number}" for number in range(3)]
    for path, stream in zip(paths, streams, strict=True):
        path.write_bytes(stream)
    return paths


def test_a_state_is_put_together_from_several_files(files: list[Path], tmp_path: Path) -> None:
    done = run(*files, "--brief", "--extract", tmp_path / "states")
    assert done.exit_code == 0
    (state,) = (tmp_path / "states").iterdir()
    assert state.read_bytes() == q.MTTY
    assert f"{q.DEVICE}: mtty, 96 B" in done.output


def test_what_lies_in_a_channel_is_told_by_that_file(files: list[Path]) -> None:
    at = q.piece(1, q.MTTY[24:][50:]).index(q.DEVICE.encode())
    done = run("--at", 64 + at, files[1])
    assert done.exit_code == 0
    assert "field idstr" in done.output


def test_a_channel_that_was_left_out(files: list[Path]) -> None:
    done = run("--brief", *files[:2])
    assert done.exit_code == 1
    assert f"expected piece 0 of {q.DEVICE} in a channel, found none" in done.output


def test_a_file_that_is_not_there_is_one_line(files: list[Path], tmp_path: Path) -> None:
    done = run(files[0], tmp_path / "none")
    assert done.exit_code not in (0, 1)
    assert "No such file" in done.output
