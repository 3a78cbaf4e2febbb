"""The receiving process that ``precopy migrate`` starts where its target is a device."""

import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from precopy.cli.common import fail
from precopy.engine import address as addresses
from precopy.engine.address import AddressError
from precopy.engine.channel import Channel
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.engine.progress import Progress, Snapshot, safely
from precopy.vfio.guest import GuestCounts

#: Seconds for the process to be connected to, so that it does not outlive who started it.
_WAIT = 60.0

#: Seconds to end, once told to, before it is killed.
_END = 10.0

#: Most of what it says on stderr that is kept, in signs.
_MOST = 4000


def receive_command(device: str, silence: float, run_for: float) -> list[str]:
    """The command line of a process that takes one device and tells of it in JSON."""
    command = [sys.executable, "-m", "precopy", "receive", device]
    command += ["--listen", "tcp://127.0.0.1:0", "--json", "--progress", "none"]
    return [
        *command,
        *("--run-for", str(run_for)),
        *("--silence", str(silence)),
        *("--wait", str(_WAIT)),
    ]


class Receiver:
    """A process of ``command`` (by default :func:`receive_command`)."""

    def __init__(
        self, device: str, silence: float, run_for: float, command: Sequence[str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            command or receive_command(device, silence, run_for),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            # Ctrl-C is for this process; it tells the other.
            start_new_session=True,
        )
        self._said = ""
        # Read all the time: a process whose stderr is full stands still.
        self._reader = threading.Thread(target=self._read_stderr, name="stderr", daemon=True)
        self._reader.start()

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with contextlib.suppress(ValueError):
            for line in self._process.stderr:
                self._said = (self._said + line)[-_MOST:]

    def address(self) -> str | None:
        """Where it listens; None where it ended before it did."""
        said = self._line() or {}
        found = said.get("listening")
        return str(found) if found else None

    def _line(self) -> dict[str, Any] | None:
        """The next line of JSON that it says; None at the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            found = json.loads(line)
        except ValueError:
            # The end, perhaps in the middle of a line.
            return None
        return found if isinstance(found, dict) else None

    def guest(self) -> GuestCounts | None:
        """What the guest has counted by the end of its time; None where it did not come to that."""
        found = None
        while line := self._line():
            if "guest" in line:
                found = GuestCounts(**line["guest"])
        return found

    def hurry(self) -> None:
        """End the time of its guest now. May be called by a signal handler."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    @property
    def status(self) -> ExitStatus:
        """How it ended, where that is one of our statuses, else FAILED."""
        try:
            return ExitStatus(self._process.returncode)
        except ValueError:
            return ExitStatus.FAILED

    @property
    def complaint(self) -> str:
        """The last line that it said on stderr; empty where it said none. After :meth:`end`."""
        lines = self._said.strip().splitlines()
        return lines[-1].removeprefix("precopy: ") if lines else ""

    def end(self) -> str:
        """End it if it has not ended; in a few words, how that came. A second call says the same."""
        if self._process.poll() is None:
            self.hurry()
        try:
            self._process.wait(_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(_END)
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
        code = self._process.returncode
        if self.complaint:
            return f"the receiving process said: {self.complaint}"
        if code < 0:
            return f"the receiving process was ended by {signal.Signals(-code).name}"
        return f"the receiving process ended with status {code}"


def address_of(receiver: Receiver) -> str:
    """Where it listens. Its own complaint and status, where it does not."""
    address = receiver.address()
    if address is None:
        fate = receiver.end()
        fail(receiver.complaint or f"{fate}; nothing has changed", receiver.status)
    return address


def connect(target: str, silence: float, wait: float, tell: Progress) -> Channel:
    """A channel to where a target listens; without one, the line that says why."""
    told = safely(tell)
    try:
        address = addresses.parse(target)
        waiting = Snapshot(f"waiting: nobody listens at {address} yet")
        return Channel(
            addresses.connect(address, silence, wait=wait, waiting=lambda: told(waiting))
        )
    except AddressError as error:
        fail(str(error), ExitStatus.USAGE)
    except OSError as error:
        fail(f"{reason_of(error)}; nothing has changed", ExitStatus.FAILED)
