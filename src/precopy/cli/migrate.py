"""``precopy migrate``."""

import json
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from types import FrameType
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from precopy.cli.common import PROGRESS_KINDS, fail, open_or_fail, progress_of
from precopy.engine import address as addresses
from precopy.engine.address import AddressError
from precopy.engine.channel import Channel
from precopy.engine.outcome import ExitStatus, Failed, MigrationError
from precopy.engine.policy import GiveUp, Policy
from precopy.engine.progress import Progress
from precopy.engine.report import Report, show
from precopy.engine.source import Options
from precopy.engine.source import migrate as move
from precopy.vfio.guest import Guest, GuestCounts, Opened

#: Seconds that the guest of a target started here works on, so that it can be checked.
_RUN_FOR = 1.0

#: Seconds for a target started here to listen.
_START = 30.0


class Receiver:
    """The receiving process, where this command starts it."""

    def __init__(self, device: str, silence: float) -> None:
        command = [sys.executable, "-m", "precopy", "receive", device]
        command += ["--listen", "tcp://127.0.0.1:0", "--json", "--progress", "none"]
        command += ["--run-for", str(_RUN_FOR), "--silence", str(silence)]
        # Ctrl-C is for this process; it tells the other.
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )

    def address(self) -> str:
        """Where it listens. Failed, or its own complaint and status, where it does not."""
        said = self._line()
        if "listening" not in said:
            complaint = self._process.communicate(timeout=_START)[1].strip()
            text = complaint.removeprefix("precopy: ") or "the receiving process did not start"
            fail(text, _status(self._process.returncode))
        return str(said["listening"])

    def _line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {}
        assert isinstance(found, dict)
        return found

    def guest(self) -> GuestCounts | None:
        """What the guest has counted by the end of its time."""
        found = None
        while line := self._line():
            if "guest" in line:
                found = GuestCounts(**line["guest"])
        self._process.wait()
        return found

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.communicate()


def _status(code: int) -> ExitStatus:
    try:
        return ExitStatus(code)
    except ValueError:
        return ExitStatus.FAILED


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--downtime-limit", default=300.0, show_default=True, help="Milliseconds.")
@click.option("--max-rounds", default=30, show_default=True, help="Passes over what has changed.")
@click.option("--min-rounds", default=0, help="Middle images at least.", show_default=True)
@click.option("--timeout", default=300.0, show_default=True, help="Seconds in PRE_COPY.")
@click.option(
    "--give-up",
    type=click.Choice([each.value for each in GiveUp]),
    default=GiveUp.SWITCH_OVER.value,
    show_default=True,
    help="What to do when the limit can't be met.",
)
@click.option("--no-precopy", is_flag=True, help="Move everything while the device stands still.")
@click.option("--compare", is_flag=True, help="Both ways, one after the other, side by side.")
@click.option(
    "--silence", default=30.0, show_default=True, help="Seconds a target may say nothing."
)
@click.option("--progress", type=click.Choice(PROGRESS_KINDS), default="auto")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def migrate(
    source: str,
    target: str,
    downtime_limit: float,
    max_rounds: int,
    min_rounds: int,
    timeout: float,
    give_up: str,
    no_precopy: bool,
    compare: bool,
    silence: float,
    progress: str,
    as_json: bool,
) -> None:
    """Move SOURCE to TARGET while it runs.

    SOURCE is a device: sim:mlx5?qps=1000, vfio:0000:06:00.2, an mdev's UUID or a /dev/vfio/devices
    node. TARGET is one, too (a process that receives is started for it), or where one listens:
    tcp://host:port, unix:/path.
    """
    policy = Policy(downtime_limit / 1e3, max_rounds, timeout, GiveUp(give_up))
    if compare and addresses.is_address(target):
        fail("--compare needs a device as its target: it moves twice", ExitStatus.USAGE)
    reports = []
    for precopy in (True, False) if compare else (not no_precopy,):
        options = Options(precopy=precopy, policy=policy, silence=silence, min_rounds=min_rounds)
        reports.append(_once(source, target, options, progress))
    if as_json:
        found = [report.to_dict() for report in reports]
        print(json.dumps(found if compare else found[0], indent=2))
    else:
        console = Console()
        for report in reports:
            show(report, console)
        if compare:
            console.print(_side_by_side(*reports))
    for report in reports:
        if report.guest is not None and report.guest.faults:
            fail(f"the guest counted faults: {report.guest}", ExitStatus.GUEST_FAULTS)


def _once(source: str, target: str, options: Options, progress: str) -> Report:
    opened = open_or_fail(source)
    with closing(opened):
        if opened.guest is not None:
            opened.guest.start()
        receiver = None
        try:
            if not addresses.is_address(target):
                receiver = Receiver(target, options.silence)
            connected = _connect(receiver.address() if receiver else target, options.silence)
            with progress_of(progress) as tell, closing(Channel(connected)) as channel:
                report = _move(opened, channel, options, tell)
            if receiver is not None:
                report.guest = receiver.guest()
                if report.guest is None and opened.guest is not None:
                    raise Failed("the receiving process ended without telling of its guest")
        except MigrationError as error:
            fail(f"{error}{_still_working(opened.guest, error)}", error.status)
        finally:
            if receiver is not None:
                receiver.end()
    return report


def _connect(target: str, silence: float) -> socket.socket:
    """A connection to where a target listens; without one, the line that says why."""
    try:
        return addresses.connect(addresses.parse(target), silence)
    except AddressError as error:
        fail(str(error), ExitStatus.USAGE)
    except OSError as error:
        fail(f"{error.strerror}; nothing has changed", ExitStatus.FAILED)


def _move(opened: Opened, channel: Channel, options: Options, progress: Progress) -> Report:
    """The migration, with Ctrl-C as its cancel."""

    def cancel(_signal: int, _frame: FrameType | None) -> None:
        options.cancel.set()

    if threading.current_thread() is not threading.main_thread():
        return move(opened, channel, options, progress)
    before = signal.signal(signal.SIGINT, cancel)
    try:
        return move(opened, channel, options, progress)
    finally:
        signal.signal(signal.SIGINT, before)


def _still_working(guest: Guest | None, error: MigrationError) -> str:
    """What the guest says after a migration that has left the device here."""
    if guest is None or error.status in (ExitStatus.IN_DOUBT, ExitStatus.STOPPED):
        return ""
    counts = guest.settle(5.0)
    return f"; its guest has sent {counts.sent} messages, {counts.faults} faults"


def _side_by_side(with_precopy: Report, without: Report) -> Table:
    table = Table(title="PRE_COPY and without", title_justify="left")
    for name in ("stage of the downtime", "with PRE_COPY", "without", "ratio"):
        table.add_column(name, justify="left" if name.startswith("stage") else "right")
    rows = {
        name: (with_precopy.stages.get(name, 0.0), without.stages.get(name, 0.0))
        for name in without.stages
    }
    for name, (one, other) in rows.items():
        table.add_row(name, f"{one * 1e3:.1f} ms", f"{other * 1e3:.1f} ms", "")
    one, other = with_precopy.downtime, without.downtime
    table.add_section()
    table.add_row(
        "in all",
        f"{one * 1e3:.1f} ms",
        f"{other * 1e3:.1f} ms",
        f"{one / other:.2f}" if other else "",
    )
    return table
