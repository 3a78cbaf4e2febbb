"""The command line, as processes: what they print and exit with, and what becomes of them."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.processes import (
    BLANK,
    LARGE,
    SMALL,
    Process,
    listens,
    precopy,
    start,
    start_receiver,
    until,
)


def children(process: Process) -> list[int]:
    """Processes that ``process`` has started."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(each) for each in found]


def test_a_migration_and_its_report() -> None:
    """As a user starts it."""
    command = [sys.executable, "-m", "precopy", "migrate", "--json", "--progress", "none"]
    done = subprocess.run(
        [*command, "--run-for", "0.2", SMALL, BLANK], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["guest"]["faults"] == 0
    assert report["guest"]["received"] == report["guest"]["sent"] > 0
    assert report["downtime"] == pytest.approx(sum(report["stages"].values()))
    assert not done.stderr


# --- The process that migrate starts --------------------------------------------------------------

#: A migration that stays in PRE_COPY as long as nobody ends it.
FOR_EVER = ("--min-rounds", "1000000000", "--max-rounds", "1000000000", "--timeout", "1000000")


def test_the_receiving_process_is_killed_during_the_migration() -> None:
    with start("migrate", "--progress", "json", *FOR_EVER, SMALL, BLANK) as source:
        until(source, "middle images")
        (child,) = children(source)
        os.kill(child, signal.SIGKILL)
        _, rest = source.communicate()
        assert source.returncode == 4
        last = rest.splitlines()[-1]
        assert "; the device runs at the source; its guest has sent" in last
        assert last.endswith("messages, 0 faults")


def test_the_receiving_process_is_killed_after_the_migration() -> None:
    with start("migrate", "--progress", "json", "--run-for", "1000", SMALL, BLANK) as source:
        until(source, "done")
        (child,) = children(source)
        os.kill(child, signal.SIGKILL)
        out, rest = source.communicate()
        assert source.returncode == 6
        assert not out
        assert rest == (
            "precopy: moved, but the receiving process ended before its guest could be counted:"
            " the receiving process was ended by SIGKILL\n"
        )


def test_a_cancel_after_the_migration_only_makes_it_shorter() -> None:
    long = ("--progress", "json", "--json", "--run-for", "1000")
    with start("migrate", *long, SMALL, BLANK) as source:
        until(source, "done")
        source.send_signal(signal.SIGINT)
        out, rest = source.communicate()
        assert source.returncode == 0, rest
        assert json.loads(out)["guest"]["faults"] == 0


# --- Waiting for a target -------------------------------------------------------------------------


def test_migrate_waits_for_a_target(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    with start("migrate", "--wait", "60", "--progress", "json", "--json", SMALL, address) as source:
        until(source, f"waiting: nobody listens at {address} yet")
        with start_receiver(tmp_path / "socket", "--run-for", "0") as target:
            out, err = source.communicate()
            assert source.returncode == 0, err
            assert json.loads(out)["outcome"].startswith("moved")
            assert target.wait() == 0


def test_a_wait_is_cancelled(tmp_path: Path) -> None:
    address = f"unix:{tmp_path / 'socket'}"
    with start("migrate", "--wait", "1000", "--progress", "json", SMALL, address) as source:
        until(source, "waiting")
        source.send_signal(signal.SIGTERM)
        _, err = source.communicate()
        assert source.returncode == 130
        assert err.splitlines()[-1] == "precopy: cancelled; nothing has changed"


# --- receive --------------------------------------------------------------------------------------


def test_the_socket_is_the_user_s_alone(tmp_path: Path) -> None:
    with start_receiver(tmp_path / "socket") as target:
        listens(target)
        assert (tmp_path / "socket").stat().st_mode & 0o777 == 0o600
        target.send_signal(signal.SIGTERM)
        _, err = target.communicate()
        assert target.returncode == 130
        assert err == "precopy: cancelled; nothing runs here\n"
        assert not (tmp_path / "socket").exists()


def test_where_one_was_killed_another_can_listen(tmp_path: Path) -> None:
    with start_receiver(tmp_path / "socket") as target:
        listens(target)
    assert target.returncode == -signal.SIGKILL
    assert (tmp_path / "socket").exists()
    with start_receiver(tmp_path / "socket", "--wait", "0.01") as target:
        _, err = listens(target).communicate()
        assert target.returncode == 4
        assert err == "precopy: no source came within 0.01 s; nothing runs here\n"


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n" + bytes(100)])
def test_a_peer_that_says_nothing_useful(tmp_path: Path, said: bytes) -> None:
    with start_receiver(tmp_path / "socket") as target, socket.socket(socket.AF_UNIX) as peer:
        listens(target)
        peer.connect(str(tmp_path / "socket"))
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        _, err = target.communicate()
        assert target.returncode == 4
        assert err.startswith("precopy: ")
        assert err.endswith("nothing runs here\n")
        assert err.count("\n") == 1


def test_a_peer_that_says_nothing_at_all(tmp_path: Path) -> None:
    with (
        start_receiver(tmp_path / "socket", "--silence", "0.1") as target,
        socket.socket(socket.AF_UNIX) as peer,
    ):
        listens(target)
        peer.connect(str(tmp_path / "socket"))
        _, err = target.communicate()
        assert target.returncode == 4
        assert err == ("precopy: the peer said nothing for too long (byte 0); nothing runs here\n")


def test_a_device_runs_on_though_nobody_reads_what_is_said(tmp_path: Path) -> None:
    """Neither stdout nor stderr: both are closed at the other end."""
    address = f"unix:{tmp_path / 'socket'}"
    with start("receive", BLANK, "--listen", address, "--json") as target:
        listens(target)
        target.stdout.close()
        target.stderr.close()
        done = precopy("migrate", "--json", "--progress", "none", LARGE, address)
        assert done.status == 0, done.err
        # It takes no other source, and ends when it is told to.
        again = precopy("migrate", "--progress", "none", SMALL, address)
        assert again.status == 4
        assert again.line == f"precopy: {address}: No such file or directory; nothing has changed"
        assert target.poll() is None
        target.send_signal(signal.SIGTERM)
        assert target.wait() == 0
