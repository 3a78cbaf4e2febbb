"""A real kernel. ``make lab-test`` builds it first."""

import json
import sys
from pathlib import Path

import pytest

from precopy.lab import MTTY_UUIDS, Job, run, run_linked

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


def test_devices_are_found() -> None:
    result = run(Job([*PRECOPY, "devices", "--json"], mtty=2))
    names = [each["name"] for each in json.loads(result.out)["devices"]]
    assert names[1:] == list(MTTY_UUIDS[:2])


@pytest.mark.parametrize("precopy", [True, False])
def test_mtty_moves(precopy: bool) -> None:
    command = [*PRECOPY, "migrate", "--json", "--progress", "none", *MTTY_UUIDS[:2]]
    result = run(Job(command if precopy else [*command, "--no-precopy"], mtty=2))
    assert result.status == 0, result.err
    report = json.loads(result.out)
    assert report["precopy"] is precopy
    assert report["device_bytes"] > 0
    assert report["downtime"] == pytest.approx(sum(report["stages"].values()))


def test_mtty_moves_between_two_kernels() -> None:
    address, device = "tcp://10.77.0.1:7475", MTTY_UUIDS[0]
    receiving = [*PRECOPY, "receive", device, "--listen", address, "--plain-from-network"]
    moving = [*PRECOPY, "migrate", "--json", "--progress", "none", device, address]
    # The two boot at their own speed: the source tries again until the target listens.
    script = f"for n in 1 2 3 4 5 6 7 8 9; do {' '.join(moving)} && exit 0; sleep 1; done; exit 1"
    target, source = run_linked(
        Job([*receiving, "--run-for", "0"], mtty=1, timeout=60),
        Job(["sh", "-c", script], mtty=1, timeout=60),
    )
    assert (source.status, target.status) == (0, 0), source.err + target.err
    assert "runs here" in target.out
    assert json.loads(source.out)["outcome"].startswith("moved")
