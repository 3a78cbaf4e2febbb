"""The command line, as processes: what they print and exit with, also when one of them is killed."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SMALL = "sim:mlx5?qps=8&log_max_qp=8"
BLANK = "sim:mlx5?log_max_qp=8"


def precopy(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "precopy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def receiver(path: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A receiving process that listens already."""
    command = [sys.executable, "-m", "precopy", "receive", BLANK, "--listen", f"unix:{path}"]
    process = subprocess.Popen(
        [*command, "--json", "--progress", "none", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert "listening" in process.stdout.readline()
    return process


def test_a_migration_and_its_report() -> None:
    done = precopy("migrate", "--json", "--progress", "none", SMALL, BLANK)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["guest"]["faults"] == 0
    assert report["guest"]["received"] == report["guest"]["sent"] > 0
    assert report["downtime"] == pytest.approx(sum(report["stages"].values()))


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((SMALL + "&nonsense=1", BLANK), 2, "unknown parameter 'nonsense'"),
        ((SMALL, "nowhere"), 2, "no such device"),
        ((SMALL, "sim:mlx5?log_max_qp=4"), 3, "lacks log_max_qp>=8"),
        ((SMALL, "unix:/nonexistent/socket"), 4, "nothing has changed"),
        ((SMALL + "&fault=SAVE_VHCA_STATE:1:0x1", BLANK), 4, "the device runs at the source"),
        ((SMALL, BLANK + "&fault=RESUME_VHCA:1:0x1"), 5, "in doubt"),
    ],
)
def test_one_line_and_the_exit_status(arguments: tuple[str, str], status: int, text: str) -> None:
    done = precopy("migrate", "--progress", "none", *arguments)
    assert done.returncode == status
    assert done.stderr.count("\n") == 1
    assert text in done.stderr


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n" + bytes(100)])
def test_a_peer_that_says_nothing_useful(tmp_path: Path, said: bytes) -> None:
    process = receiver(tmp_path / "socket", "--silence", "5")
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect(str(tmp_path / "socket"))
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 4
    assert err.startswith("precopy: ")
    assert "nothing runs here" in err


def test_the_socket_is_the_user_s_alone(tmp_path: Path) -> None:
    process = receiver(tmp_path / "socket")
    assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
    process.kill()
    process.communicate()


def test_a_network_address_needs_to_be_asked_for() -> None:
    done = precopy("receive", BLANK, "--listen", "tcp://0.0.0.0:0")
    assert done.returncode == 2
    assert "--plain-from-network" in done.stderr


@pytest.mark.parametrize("phase", ["PRE_COPY", "initial image", "STOP_COPY"])
def test_a_target_that_is_killed(tmp_path: Path, phase: str) -> None:
    """Whichever phase the source is in when it dies: the device runs on at the source, or at none."""
    target = receiver(tmp_path / "socket")
    command = [sys.executable, "-m", "precopy", "migrate", "--progress", "json"]
    source = subprocess.Popen(
        [*command, SMALL + "&state=600M", f"unix:{tmp_path / 'socket'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert source.stderr is not None
    for line in source.stderr:
        if json.loads(line)["phase"] == phase:
            break
    target.kill()
    target.communicate()
    _, rest = source.communicate(timeout=60)
    assert source.returncode in ((4,) if phase != "STOP_COPY" else (0, 4, 5))
    if source.returncode == 4:
        assert "the device runs at the source" in rest
        assert "0 faults" in rest
