"""The process that migrate starts for a device: whatever becomes of it, migrate hears of it and ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from precopy.cli import receiver as module
from precopy.cli.receiver import Receiver
from precopy.engine.outcome import ExitStatus
from precopy.vfio.guest import GuestCounts

LISTENING = 'print(json.dumps({"listening": "tcp://127.0.0.1:1"}), flush=True)\n'
COUNTED = 'print(json.dumps({"guest": {"sent": 5, "received": 5}}), flush=True)\n'


@contextmanager
def process(script: str) -> Iterator[Receiver]:
    """A receiving process that does what ``script`` says."""
    head = "import json, os, signal, sys\n"
    made = Receiver("unused", 1.0, 1.0, [sys.executable, "-S", "-c", head + script])
    try:
        yield made
    finally:
        made.end()


@pytest.mark.parametrize(
    ("script", "fate", "status"),
    [
        ("sys.exit(3)", "the receiving process ended with status 3", ExitStatus.REFUSED),
        ("sys.exit(99)", "the receiving process ended with status 99", ExitStatus.FAILED),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            "the receiving process was ended by SIGKILL",
            ExitStatus.FAILED,
        ),
        (
            "sys.exit('first\\nprecopy: no such device')",
            "the receiving process said: no such device",
            ExitStatus.FAILED,
        ),
        (
            "sys.stdout.write('{\"listen'); sys.stdout.flush(); os._exit(2)",
            "the receiving process ended with status 2",
            ExitStatus.USAGE,
        ),
        # What it says instead makes no sense: it is ended.
        ("print('[1]', flush=True); signal.pause()", "ended by SIGTERM", ExitStatus.FAILED),
        ("print('{}', flush=True); signal.pause()", "ended by SIGTERM", ExitStatus.FAILED),
        ("os.write(1, b'\\xff\\n'); signal.pause()", "ended by SIGTERM", ExitStatus.FAILED),
    ],
)
def test_it_ends_before_it_listens(script: str, fate: str, status: ExitStatus) -> None:
    with process(script) as started:
        assert started.address() is None
        assert fate in started.end()
        assert started.status is status
        # However often it is asked.
        assert fate in started.end()


@pytest.mark.parametrize(
    "rest",
    ["", "print('{\"guest\": {\"se', end='')", "os.kill(os.getpid(), signal.SIGKILL)"],
)
def test_it_ends_before_its_guest_is_counted(rest: str) -> None:
    with process(LISTENING + rest) as started:
        assert started.address() == "tcp://127.0.0.1:1"
        assert started.guest() is None


def test_it_says_much_on_stderr() -> None:
    """More than a pipe holds, while nobody waits for it."""
    flood = "print('x\\n' * 100000, 'y' * 1000000, file=sys.stderr)\n"
    with process(LISTENING + flood + COUNTED + "sys.exit(6)") as started:
        assert started.address()
        assert started.guest() == GuestCounts(sent=5, received=5)
        assert len(started.end()) < 5000
        assert started.status is ExitStatus.GUEST_FAULTS


def test_its_time_is_cut_short() -> None:
    wait = "signal.sigwait({signal.SIGTERM})\n"
    block = "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
    with process(block + LISTENING + wait + COUNTED) as started:
        assert started.address()
        started.hurry()
        assert started.guest() == GuestCounts(sent=5, received=5)
        started.end()
        started.hurry()  # it is gone: nothing happens


def test_it_does_not_end_when_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_END", 0.05)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    with process(deaf + LISTENING + "signal.pause()") as started:
        assert started.address()
        assert started.end() == "the receiving process was ended by SIGKILL"


def test_ctrl_c_is_not_for_it() -> None:
    """It is no member of the terminal's process group: who started it tells it what to do."""
    where = "print(json.dumps({'listening': os.getsid(0) == os.getpid()}), flush=True)"
    with process(where) as started:
        assert started.address() == "True"


def test_the_command_line() -> None:
    command = module.receive_command("sim:mlx5", 2.5, 0.5)
    assert command[:5] == [sys.executable, "-m", "precopy", "receive", "sim:mlx5"]
    told = dict(pairwise(command))
    assert told["--listen"] == "tcp://127.0.0.1:0"
    assert (told["--silence"], told["--run-for"]) == ("2.5", "0.5")
    # It must not outlive a migrate that was killed before it could connect.
    assert 0 < float(told["--wait"]) <= 60
