"""What a user may get wrong, and what the commands share: without processes, where none is needed."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from precopy.cli.common import fail, number, size
from precopy.cli.main import main
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine.outcome import ExitStatus
from tests.cli.processes import BLANK, SMALL


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ((SMALL + "&nonsense=1", BLANK), 2, "unknown parameter 'nonsense'"),
        (("nowhere", BLANK), 2, "no such device"),
        ((SMALL, "nowhere"), 2, "no such device"),
        ((SMALL, "tcp://host/path"), 2, "write tcp://host:port or unix:/path"),
        ((SMALL, "tcp://127.0.0.1:1", "--compare"), 2, "--compare needs a device"),
        ((SMALL, "sim:mlx5?log_max_qp=4"), 3, "lacks log_max_qp>=8"),
        ((SMALL, "unix:/nonexistent/socket"), 4, "No such file or directory; nothing has changed"),
        ((SMALL, "unix:/nonexistent/socket", "--wait", "0.01"), 4, "; nothing has changed"),
        ((SMALL, BLANK + "&fault=RESUME_VHCA:1:0x1"), 4, "the device runs at the source"),
        ((SMALL + "&fault=SUSPEND_VHCA:2:0x1,RESUME_VHCA:1:0x1", BLANK), 7, "It stands in"),
        (
            (SMALL, BLANK, "--downtime-limit", "0", "--max-rounds", "0", "--give-up", "cancel"),
            130,
            "over the limit",
        ),
    ],
)
def test_migrate_says_one_line(arguments: tuple[str, ...], status: int, text: str) -> None:
    done = run("migrate", "--progress", "none", *arguments)
    assert done.exit_code == status, done.output
    assert done.output.count("\n") == 1
    assert done.output.startswith("precopy: ")
    assert text in done.output


def test_in_doubt_the_receiving_process_is_asked() -> None:
    """It was started here, so what it said last is known here, too."""
    done = run("migrate", "--progress", "none", SMALL, BLANK + "&fault=RESUME_VHCA:2:0x1")
    assert done.exit_code == 5
    assert done.output.startswith("precopy: in doubt: ")
    assert "the receiving process said: the device was handed over and it can't run" in done.output
    assert done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (("nowhere",), 2, "no such device"),
        ((BLANK, "--listen", "tcp://0.0.0.0:0"), 2, "--plain-from-network"),
        ((BLANK, "--listen", "/run/x"), 2, "write tcp://host:port or unix:/path"),
        ((BLANK, "--listen", "unix:/nonexistent/x"), 2, "No such file or directory"),
    ],
)
def test_receive_says_one_line(arguments: tuple[str, ...], status: int, text: str) -> None:
    done = run("receive", *arguments)
    assert done.exit_code == status, done.output
    assert done.output.count("\n") == 1
    assert text in done.output


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "-inf", "x", ""])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(
            ("migrate", f"--{name}")
            for name in ("downtime-limit", "timeout", "wait", "silence", "run-for")
        ),
        *(("receive", f"--{name}") for name in ("wait", "silence", "run-for", "settle")),
    ],
)
def test_numbers_that_are_none(command: str, option: str, value: str) -> None:
    devices = (SMALL, BLANK) if command == "migrate" else (BLANK,)
    done = run(command, option, value, *devices)
    assert done.exit_code == 2
    assert f"Invalid value for '{option}'" in done.output
    assert "is no number of" in done.output


@pytest.mark.parametrize("option", ["--max-rounds", "--min-rounds"])
def test_rounds_that_are_none(option: str) -> None:
    assert run("migrate", option, "-1", SMALL, BLANK).exit_code == 2


@pytest.mark.parametrize("value", ["0", "0.0", "-0.0"])
def test_no_silence_at_all(value: str) -> None:
    done = run("receive", "--silence", value, BLANK)
    assert done.exit_code == 2
    assert "above 0" in done.output


def test_numbers() -> None:
    assert number("seconds")("2.5") == 2.5
    assert number("seconds")("0") == 0.0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4K", 4096),
        ("512m", 512 << 20),
        ("4GiB", 4 << 30),
        ("1TB", 1 << 40),
    ],
)
def test_sizes(text: str, count: int) -> None:
    assert size(text) == count


@pytest.mark.parametrize("text", ["", "-1", "1.5G", "lots", "1P", "9" * 13])
def test_sizes_that_are_none(text: str) -> None:
    done = run("receive", "--max-memory", text, BLANK)
    assert done.exit_code == 2
    assert "is no size; write 512M or 4G" in done.output


def test_what_a_peer_says_does_not_reach_the_terminal_as_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        fail("a\nb\x1b[2Jc\ud800", ExitStatus.FAILED)
    assert capfd.readouterr().err == "precopy: a b?[2Jc?\n"


# --- Signals ----------------------------------------------------------------------------------------


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("sign", SIGNALS, ids=lambda sign: sign.name)
def test_signals_are_taken_alike(sign: signal.Signals) -> None:
    taken: list[str] = []

    def raised(call: Callable[[], None]) -> bool:
        try:
            call()
        except KeyboardInterrupt:
            return True
        return False

    # Whatever the tests were started under.
    before = [signal.signal(each, signal.SIG_DFL) for each in SIGNALS]
    try:
        with Signals() as signals:
            assert raised(lambda: os.kill(os.getpid(), sign))
            signals.action = lambda: taken.append("taken")
            assert not raised(lambda: os.kill(os.getpid(), sign))
        assert taken == ["taken"]
        assert all(signal.getsignal(each) is signal.SIG_DFL for each in SIGNALS)
    finally:
        for each, handler in zip(SIGNALS, before, strict=True):
            signal.signal(each, handler)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_may_come_while_its_event_is_waited_for() -> None:
    """Whatever the waiting thread is doing just then: here, after each line that it runs."""
    for line in range(1, 30):
        event = SignalEvent()
        left = line

        def trace(frame: FrameType, what: str, _: object, event: SignalEvent = event) -> Any:
            nonlocal left
            left -= 1
            if not left:
                # To this thread: in another one it would come a little later.
                signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
            return trace

        with Signals() as signals:
            signals.action = event.set
            sys.settrace(trace)
            try:
                event.wait(0.01)
            finally:
                sys.settrace(None)
        assert event.is_set() or left > 0


def test_an_event_that_was_set_before() -> None:
    event = SignalEvent()
    assert not event.wait(0)
    assert not event.is_set()
    event.set()
    event.set()
    assert event.wait()
    event.clear()
    assert not event.wait(0)
