"""``precopy conform``: what it exits with, and what it prints."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from precopy.cli.main import main
from precopy.conformance.check import CHECKS, Check, Severity
from precopy.conformance.requirements import REQUIREMENTS
from precopy.conformance.runner import load
from tests.conformance.made_up import failing, made, not_applicable


@pytest.fixture(autouse=True)
def checks() -> Iterator[dict[str, Check]]:
    """The real ones, and some that fail."""
    found = load()
    more = [
        made(failing, 33, name="made-up-failing", severity=Severity.CONTRACT),
        made(not_applicable, 34, name="made-up-silent"),
    ]
    found.update({each.name: each for each in more})
    yield found
    for each in more:
        del CHECKS[each.name]


def conform(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["conform", *arguments])


def test_all_is_well() -> None:
    found = conform("sim:mlx5", "--only", "R12,made-up-silent", "--only", "R13")
    assert found.exit_code == 0, found.output
    assert "running-at-first" in found.output
    assert "there is no such thing here" in found.output


def test_failure(tmp_path: Path) -> None:
    only = ("sim:mlx5", "--only", "made-up-failing")
    assert conform(*only).exit_code == 11
    known = tmp_path / "known.toml"
    known.write_text('[[known]]\nrequirement = "R33"\nreason = "made up"\n')
    assert conform(*only, "--known", str(known)).exit_code == 0
    gone = ("sim:mlx5", "--only", "arcs-from-stop", "--known", str(known))
    assert conform(*gone).exit_code == 14


def test_formats() -> None:
    only = ("sim:mlx5?qps=2", "--only", "made-up-failing")
    lines = conform(*only, "--format", "ktap").output.splitlines()
    assert lines[:3] == ["KTAP version 1", "1..1", "# made-up-failing: R33"]
    assert lines[-1].startswith("not ok 1 made-up-failing # state: expected ")
    told = json.loads(conform(*only, "--format", "json").output)
    assert told["status"] == 11
    assert told["device"] == "sim:mlx5?qps=2"
    assert ElementTree.fromstring(conform(*only, "--format", "junit").output).attrib["tests"] == "1"


def test_the_command_that_is_told_runs_that_check_again() -> None:
    found = conform("sim:mlx5?qps=2&chunks=1", "--only", "R33", "--format", "json")
    assert found.exit_code == 11, found.output
    (failed,) = [each for each in json.loads(found.output)["results"] if each["verdict"] == "fail"]
    program, *words = shlex.split(failed["again"])
    assert program == "precopy"
    again = CliRunner().invoke(main, [*words, "--format", "json"])
    assert again.exit_code == 11
    (same,) = json.loads(again.output)["results"]
    alike = ("check", "verdict", "what", "expected", "came", "steps", "again")
    assert [same[key] for key in alike] == [failed[key] for key in alike]


def test_list() -> None:
    text = conform("--list", "--only", "made-up-failing").output
    assert "made-up-failing" in text
    assert REQUIREMENTS[33].source.split(",")[0] in text
    assert "running-at-first" not in text
    assert "running-at-first" in conform("--list").output


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ((), 2, "Missing argument"),
        (("sim:nothing",), 2, "sim:nothing"),
        (("sim:mlx5", "--peer", "sim:nothing", "--only", "R12"), 2, "sim:nothing"),
        (("vfio-user:/nowhere/at/all",), 4, "/nowhere/at/all"),
        (("sim:mlx5", "--only", "nothing-such"), 2, "nothing-such"),
        (("sim:mlx5", "--only", "R95"), 2, "R95"),
        (("sim:mlx5", "--known", "/nowhere/at/all"), 2, "/nowhere/at/all"),
        (("vfio-user:/a", "--peer", "vfio-user:/a"), 2, "another device"),
    ],
)
def test_what_a_user_gets_wrong(arguments: tuple[str, ...], status: int, told: str) -> None:
    found = conform(*arguments)
    assert found.exit_code == status
    assert told in found.output
    assert "Traceback" not in found.output


def test_every_requirement_has_a_check_or_a_reason() -> None:
    about = {number for check in load().values() for number in check.requirements}
    assert about <= set(REQUIREMENTS)
    lacking = [each for each in REQUIREMENTS.values() if each.number not in about]
    assert [each.name for each in lacking if not each.unchecked] == []
