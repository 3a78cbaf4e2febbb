"""``precopy inspect`` and ``precopy diff``."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precopy.cli.main import main
from tests.fuzz.stream_seeds import channel, mtty


def run(*arguments: str | Path, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main, [str(each) for each in arguments], input=input)


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    """A capture of a channel that carries an mtty's state."""
    path = tmp_path / "capture"
    path.write_bytes(channel(mtty()))
    return path


def test_a_tree(capture: Path) -> None:
    done = run("inspect", capture)
    assert done.exit_code == 0
    assert "message hello" in done.output
    assert "ports" in done.output
    assert done.output.splitlines()[-1].startswith("device: mtty, 96 B")


def test_standard_input(capture: Path) -> None:
    assert run("inspect", "-", input=capture.read_bytes()).output == run("inspect", capture).output


def test_json_is_an_object_a_line(capture: Path) -> None:
    done = run("inspect", "--json", capture)
    found = [json.loads(line) for line in done.output.splitlines()]
    assert {each["what"] for each in found} == {"item", "stream"}


def test_brief(capture: Path) -> None:
    done = run("inspect", "--brief", capture)
    assert len(done.output.splitlines()) == 2


def test_what_lies_at_an_offset(capture: Path) -> None:
    at = capture.read_bytes().index(mtty()[:8])
    done = run("inspect", "--at", hex(at + 8), capture)
    assert done.exit_code == 0
    assert "frame 2" in done.output
    assert "field major_ver = 1, 4 bytes" in done.output
    assert "byte 0x8 of device" in done.output


def test_an_offset_beyond_the_end(capture: Path) -> None:
    done = run("inspect", "--at", "1000000", capture)
    assert "0xf4240 is not in the file" in done.output


def test_extraction(capture: Path, tmp_path: Path) -> None:
    done = run("inspect", "--brief", "--extract", tmp_path / "states", capture)
    assert done.exit_code == 0
    assert "device written to" in done.output
    assert (tmp_path / "states" / "device").read_bytes() == mtty()
    again = run("inspect", "--brief", "--extract", tmp_path / "states", capture)
    assert again.exit_code == 4
    assert again.output.count("\n") == 1
    assert "File exists" in again.output


def test_damage_is_named_and_the_status_tells(capture: Path) -> None:
    whole = capture.read_bytes()
    capture.write_bytes(whole[:-5])
    done = run("inspect", "--brief", capture)
    assert done.exit_code == 1
    assert f"byte {len(whole) - 5:#x}: expected 5 more bytes of a frame" in done.output


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("inspect", "/nonexistent"), 4, "/nonexistent: No such file or directory"),
        (("inspect", "/"), 4, "Is a directory"),
        (("inspect", "--format", "nonsense", "/dev/null"), 2, "no format 'nonsense'; there are"),
        (("diff", "/dev/null", "/nonexistent"), 4, "/nonexistent: No such file or directory"),
        (("diff", "--format", "nonsense", "/dev/null", "/dev/null"), 2, "no format 'nonsense'"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(
    arguments: tuple[str, ...], status: int, text: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == status
    assert done.output.count("\n") == 1
    assert done.output.startswith("precopy: ")
    assert text in done.output


def test_an_offset_that_is_none() -> None:
    done = run("inspect", "--at", "-4", "/dev/null")
    assert done.exit_code == 2
    assert "write 4096 or 0x1000" in done.output


def test_formats_are_listed() -> None:
    done = run("inspect", "--formats")
    assert done.exit_code == 0
    assert {"channel", "mtty"} <= {line.split()[0] for line in done.output.splitlines()}


def test_diff(capture: Path, tmp_path: Path) -> None:
    assert run("diff", capture, capture).exit_code == 0
    other = tmp_path / "other"
    state = bytearray(mtty())
    # The divisor of the first port.
    state[54:56] = (9).to_bytes(2, "little")
    other.write_bytes(channel(bytes(state)))
    done = run("diff", capture, other)
    assert done.exit_code == 1
    assert "divisor 12 -> 9" in done.output
    found = [json.loads(line) for line in run("diff", "--json", capture, other).output.splitlines()]
    assert ["stream 1", "port 0"] in [each["path"] for each in found]
