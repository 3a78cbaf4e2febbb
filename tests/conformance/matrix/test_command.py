"""``precopy lab conform``: what it prints, writes and ends with."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from precopy.cli.main import main


def conform(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["lab", "conform", *arguments])


def test_list() -> None:
    names = conform("--list").output.splitlines()
    assert {"mtty", "mlx5", "mlx5 no-chunks no-log", "sim", "vfio-user bulk"} <= set(names)
    assert conform("--list", "--target", "sim no-log").output == "sim no-log\n"


def test_a_target_that_passes() -> None:
    found = conform("--target", "sim no-log", "--only", "R94,running-at-first")
    assert (found.exit_code, found.output) == (0, "sim no-log: 1 pass, 2 not applicable\n")


def test_the_file_of_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precopy.conformance.runner.select", _two)
    file = tmp_path / "results.json"
    for target in ("sim no-log", "sim no-reinit no-log"):
        assert conform("--target", target, "--write", str(file)).exit_code == 0
    told = json.loads(file.read_text())
    assert [each["target"] for each in told["rows"]] == ["sim no-log", "sim no-reinit no-log"]
    assert told["rows"][0]["counts"] == {"pass": 1, "not applicable": 1}


def _two(only: object, checks: dict[str, object]) -> list[object]:
    return [checks["running-at-first"], checks["a-driver-that-is-unbound"]]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--target", "nothing"), "no such target"),
        (("--target", "sim", "--only", "R95"), "R95"),
        (("--target", "sim", "--only", "R12", "--write", "results.json"), "not with --only"),
        (("--target", "sim", "--write", __file__), "no file of results"),
        (("--kernel", "2.4"), "2.4"),
    ],
)
def test_what_a_user_gets_wrong(arguments: tuple[str, ...], told: str) -> None:
    found = conform(*arguments)
    assert found.exit_code == 2
    assert told in found.output
    assert "Traceback" not in found.output


def test_a_kernel_that_is_there_is_not_built_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PRECOPY_CACHE", str(tmp_path))
    monkeypatch.setattr("precopy.lab.source.KEYRING", tmp_path / "none")
    for name in ("kernel", "kernel-6.12"):
        # Of the user's own source. It does nothing.
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    found = conform("--target", "mtty", "--only", "running-at-first")
    assert found.exit_code == 13
    assert [line[:24] for line in found.output.splitlines()] == [
        "mtty on newest: 1 not ru",
        "  1 not run: the kernel ",
        "mtty on 6.12: 1 not run",
        "  1 not run: the kernel ",
    ]


def test_a_kernel_that_can_not_be_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PRECOPY_CACHE", str(tmp_path))
    monkeypatch.setattr("precopy.lab.source.KEYRING", tmp_path / "none")
    found = conform("--target", "mtty", "--only", "running-at-first")
    assert found.exit_code == 4
    assert "not a Debian with its keyring" in found.output
