"""The commands as processes, and a relay between two of them."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.engine.relay import Point, Relay, Then

SMALL = "sim:mlx5?qps=8&log_max_qp=8"
LARGE = f"{SMALL}&state=5M"
BLANK = "sim:mlx5?log_max_qp=8"


class Process:
    """``precopy`` with ``arguments``, as a process of its own; used as ``subprocess.Popen`` is."""

    #: To the process that becomes all others, which saves each of them its imports.
    zygote: socket.socket
    #: Held from a question to its answer.
    _lock = threading.Lock()

    def __init__(self, *arguments: str) -> None:
        out, its_out = os.pipe()
        err, its_err = os.pipe()
        with open(os.devnull) as nothing:
            message = json.dumps(arguments).encode()
            with self._lock:
                socket.send_fds(self.zygote, [message], [nothing.fileno(), its_out, its_err])
                self.pid = int(self.zygote.recv(64))
        os.close(its_out)
        os.close(its_err)
        self._ended = os.pidfd_open(self.pid)
        self.stdout, self.stderr = os.fdopen(out), os.fdopen(err)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.wait(0.0) if self.returncode is None else self.returncode

    def wait(self, timeout: float = 60.0) -> int | None:
        """The status; None if it has not ended in time."""
        if self.returncode is None and select.select([self._ended], [], [], timeout)[0]:
            with self._lock:
                if self.returncode is None:
                    self.zygote.send(b"%d" % self.pid)
                    self.returncode = int(self.zygote.recv(64))
        return self.returncode

    def send_signal(self, sign: signal.Signals) -> None:
        signal.pidfd_send_signal(self._ended, sign)

    def communicate(self) -> tuple[str, str]:
        """The rest of what it says, to its end."""
        said = [pipe.read() if not pipe.closed else "" for pipe in (self.stdout, self.stderr)]
        assert self.wait() is not None, "it does not end"
        return said[0], said[1]

    def end(self) -> None:
        """No process outlives its test."""
        if self.poll() is None:
            self.send_signal(signal.SIGKILL)
            self.wait()
        self.stdout.close()
        self.stderr.close()
        os.close(self._ended)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.end()


@contextmanager
def zygote() -> Iterator[None]:
    """The process that becomes all others, for as long as this is entered."""
    Process.zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    script = str(Path(__file__).with_name("zygote.py"))
    command = [sys.executable, script, str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    with process, Process.zygote:
        yield
        Process.zygote.close()
        assert process.wait(60) == 0


def start(*arguments: str) -> Process:
    return Process(*arguments)


def precopy(*arguments: str) -> "Ended":
    """A command to its end."""
    with start(*arguments) as process:
        return Ended.of(process)


def start_receiver(path: Path, *arguments: str) -> Process:
    return start(
        *("receive", BLANK, "--listen", f"unix:{path}", "--json", "--progress", "none"), *arguments
    )


def listens(process: Process) -> Process:
    """``process``, once it listens."""
    line = process.stdout.readline()
    assert "listening" in line, process.communicate()
    return process


def until(process: Process, phase: str) -> None:
    """Read the lines of ``--progress json`` up to the first one whose phase begins so."""
    for line in process.stderr:
        if json.loads(line)["phase"].startswith(phase):
            return
    raise AssertionError(f"it never came to {phase}")


@dataclass
class Ended:
    """How a process ended: its status, and what it said."""

    status: int | None
    out: str
    err: str

    @classmethod
    def of(cls, process: Process) -> "Ended":
        out, err = process.communicate()
        return cls(process.returncode, out, err)

    @property
    def line(self) -> str:
        """Its one line on stderr."""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("precopy: "), self.err
        return self.err.strip()


class Pair:
    """``precopy migrate`` and ``precopy receive``, and the relay through which they talk."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._front = socket.socket(socket.AF_UNIX)
        self._front.bind(str(folder / "front"))
        self._front.listen()
        self._back = str(folder / "back")
        self.target = start_receiver(folder / "back", "--run-for", "0")
        command = ["migrate", "--progress", "none", "--json", *arguments, LARGE]
        self.source = start(*command, f"unix:{folder / 'front'}")

    def run(
        self, at: Point, act: Callable[["Pair"], object], then: Then = Then.FORWARD
    ) -> tuple[Ended, Ended]:
        """How source and target end where ``act`` is called at ``at``."""
        relay = self.relay(at, act, then)
        ended = [Ended.of(process) for process in (self.source, self.target)]
        relay.join()
        assert relay.acted, ended
        return ended[0], ended[1]

    def relay(self, at: Point, act: Callable[["Pair"], object], then: Then) -> Relay:
        """The two talk to each other, up to ``at``."""
        listens(self.target)
        to_target = socket.socket(socket.AF_UNIX)
        to_target.connect(self._back)
        to_source, _ = self._front.accept()
        return Relay(to_source, to_target, at, lambda: act(self), then)

    def close(self) -> None:
        self.source.end()
        self.target.end()
        self._front.close()


@contextmanager
def pair(folder: Path, *arguments: str) -> Iterator[Pair]:
    made = Pair(folder, *arguments)
    try:
        yield made
    finally:
        made.close()
