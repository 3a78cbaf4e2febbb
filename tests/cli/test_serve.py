"""``precopy serve`` as a process: what it says, how it ends, one clear line for each wrong use."""

import contextlib
import json
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.backends.vfio_user.client import Client
from precopy.vfio.face import IrqIndex
from precopy.vfio_user.messages import SetIrqsFlags
from tests.cli.processes import Ended, Process, precopy, start

DEVICE = "sim:mlx5?log_max_qp=8"


@contextlib.contextmanager
def serving(path: Path, *arguments: str) -> Iterator[Process]:
    """The process, once it serves."""
    with start("serve", DEVICE, "--socket", str(path), *arguments) as process:
        line = process.stdout.readline()
        assert line == f"serving {DEVICE} on {path}\n", process.communicate()
        yield process


def end(process: Process, sign: signal.Signals = signal.SIGTERM) -> Ended:
    process.send_signal(sign)
    return Ended.of(process)


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_it_is_told_to_end(tmp_path: Path, sign: signal.Signals) -> None:
    path = tmp_path / "socket"
    with serving(path) as process:
        client = Client(str(path))
        assert client.device_info().num_regions == 9
        client.close()
        ended = end(process, sign)
    assert (ended.status, ended.out) == (0, "")
    assert ended.err.splitlines() == [
        "precopy: client 1: has the device",
        "precopy: client 1: gone",
    ]
    assert not path.exists()


def test_a_client_is_asked_to_let_go(tmp_path: Path) -> None:
    """SIGTERM with a client attached: the REQ eventfd is signalled, and it has time."""
    path = tmp_path / "socket"
    event = os.eventfd(0, os.EFD_NONBLOCK)
    with serving(path, "--grace", "20", "--quiet") as process:
        client = Client(str(path))
        flags = SetIrqsFlags.DATA_EVENTFD | SetIrqsFlags.ACTION_TRIGGER
        client.set_irqs(flags, IrqIndex.REQ, 0, 1, fds=[event])
        process.send_signal(signal.SIGTERM)
        assert select.select([event], [], [], 20)[0]
        assert process.poll() is None
        # Nobody else gets in meanwhile.
        with pytest.raises(OSError, match="does anybody serve there"):
            Client(str(path))
        client.close()
        ended = Ended.of(process)
    assert (ended.status, ended.err) == (0, "")
    os.close(event)


def test_a_client_that_does_not_let_go(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path, "--grace", "0", "--quiet") as process:
        client = Client(str(path))
        ended = end(process)
        with pytest.raises(OSError, match="ENOTCONN"):
            client.device_info()
        client.close()
    assert (ended.status, ended.err) == (0, "")


def test_as_json(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with start("serve", DEVICE, "--socket", str(path), "--json") as process:
        told = json.loads(process.stdout.readline())
        assert told == {"serving": DEVICE, "socket": str(path)}
        assert end(process).status == 0


def test_what_is_left_of_one_that_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path) as process:
        assert end(process, signal.SIGKILL).status == -signal.SIGKILL
    assert path.is_socket()
    with serving(path) as process:
        Client(str(path)).close()
        assert end(process).status == 0


def test_one_that_serves_there_already(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path) as process:
        ended = precopy("serve", DEVICE, "--socket", str(path))
        assert ended.status == 2
        assert ended.line.startswith(f"precopy: {path}: ")
        assert "in use" in ended.line
        Client(str(path)).close()
        assert end(process).status == 0


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["sim:mlx4"], 2, "precopy: sim:mlx4: there is no simulated 'mlx4'"),
        (["sim:mlx5?qps=x"], 2, "precopy: sim:mlx5?qps=x: qps: "),
        (["nonsense"], 2, "precopy: nonsense: no such device"),
        (["vfio-user:"], 2, "precopy: vfio-user:: write vfio-user:/path"),
        (["vfio-user:/no/such/socket"], 4, "precopy: vfio-user:/no/such/socket: "),
        ([DEVICE, "--socket", "/no/such/directory/socket"], 2, "precopy: /no/such/directory/"),
        ([DEVICE, "--socket", "/dev/null"], 2, "precopy: /dev/null: "),
        ([DEVICE, "--socket", "/tmp/" + "x" * 200], 2, "has at most 107 bytes"),
        ([DEVICE, "--allow-user", "no-such-user"], 2, "there is no such user"),
    ],
)
def test_one_clear_line_for_each_wrong_use(arguments: list[str], status: int, text: str) -> None:
    ended = precopy("serve", *arguments)
    assert ended.status == status, ended
    assert text in ended.line
    assert ended.out == ""


def test_a_directory_in_which_others_can_write(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    ended = precopy("serve", DEVICE, "--socket", str(tmp_path / "socket"))
    assert ended.status == 2
    assert "use a directory of your own" in ended.line


@pytest.mark.parametrize("option", ["--allow-all-users", "--allow-user=root"])
def test_others_are_let_in_by_the_sockets_mode_too(tmp_path: Path, option: str) -> None:
    path = tmp_path / "socket"
    with serving(path, option) as process:
        assert path.stat().st_mode & 0o777 == 0o666
        assert end(process).status == 0


def test_a_quirk_that_there_is_not(tmp_path: Path) -> None:
    ended = precopy("serve", DEVICE, "--quirk", "xen")
    assert ended.status == 2
    assert "qemu-10" in ended.err
    assert "Traceback" not in ended.err
