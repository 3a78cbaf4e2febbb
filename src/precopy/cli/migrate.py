"""``precopy migrate``."""

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import click

from precopy.cli.common import (
    fail,
    memory_of,
    open_or_fail,
    progress_of,
    size,
)
from precopy.cli.hold import hold
from precopy.cli.options import (
    connect_wait_option,
    json_option,
    policy_of,
    policy_options,
    progress_option,
    silence_option,
    started_run_for_option,
)
from precopy.cli.receiver import Receiver, address_of, connect
from precopy.cli.record import recorded
from precopy.cli.signals import SignalEvent, Signals
from precopy.cli.timeline import option as timeline_option
from precopy.cli.timeline import written
from precopy.engine import address as addresses
from precopy.engine.outcome import ExitStatus, InDoubt, MigrationError
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.engine.source import migrate as move
from precopy.engine.timeline import Timeline
from precopy.vfio.guest import Guest


@click.command()
@click.argument("source")
@click.argument("target")
@policy_options
@click.option(
    "--max-bandwidth",
    type=size,
    default="0",
    help="Bytes a second to send at most, such as 100M.  [default: as fast as it goes]",
)
@click.option("--no-precopy", is_flag=True, help="Move everything while the device stands still.")
@click.option("--compare", is_flag=True, help="Both ways, one after the other, side by side.")
@connect_wait_option
@silence_option("target")
@started_run_for_option
@click.option(
    "--hold",
    "keep",
    is_flag=True,
    help="In doubt whether it runs at the target, keep the device here, stopped, until a signal says"
    " what becomes of it.",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write what goes over the channel, with its times, to FILE: for inspect, replay and load.",
)
@timeline_option
@progress_option
@json_option("The report as JSON.")
def migrate(
    source: str,
    target: str,
    downtime_limit: float,
    max_rounds: int,
    min_rounds: int,
    timeout: float,
    give_up: str,
    max_bandwidth: int,
    tracking: str,
    no_precopy: bool,
    compare: bool,
    wait: float,
    silence: float,
    run_for: float,
    keep: bool,
    record: Path | None,
    timelines: Sequence[Path],
    progress: str,
    as_json: bool,
) -> None:
    """Move SOURCE to TARGET while it runs.

    SOURCE is a device: sim:mlx5?qps=1000, vfio:0000:06:00.2, an mdev's UUID or a /dev/vfio/devices
    node. TARGET is one, too (a process that receives is started for it), or where one listens:
    tcp://host:port, unix:/path.

    SIGINT or SIGTERM cancels it, as long as the target does not have the right to run the device.
    """
    policy = policy_of(downtime_limit, max_rounds, timeout, give_up)
    if compare and addresses.is_address(target):
        fail("--compare needs a device as its target: it moves twice", ExitStatus.USAGE)
    if compare and record is not None:
        fail("--record takes one migration, --compare makes two", ExitStatus.USAGE)
    if compare and timelines:
        fail("--timeline takes one migration, --compare makes two", ExitStatus.USAGE)
    reports = []
    for precopy in (True, False) if compare else (not no_precopy,):
        options = Options(
            precopy=precopy,
            policy=policy,
            silence=silence,
            min_rounds=min_rounds,
            cancel=SignalEvent(),
            max_bandwidth=float(max_bandwidth),
            tracking=tracking,
            timeline=Timeline() if timelines else None,
        )
        reports.append(
            _once(source, target, options, wait, run_for, keep, record, timelines, progress)
        )
    if as_json:
        found = [report.to_dict() for report in reports]
        print(json.dumps(found if compare else found[0], indent=2))
    else:
        # Imported when wanted: a good part of a command's time in a lab kernel.
        from precopy.cli import show

        show.reports(reports)
    for report in reports:
        if report.guest is not None and report.guest.faults:
            fail(f"the guest counted faults: {report.guest}", ExitStatus.GUEST_FAULTS)


def _once(
    source: str,
    target: str,
    options: Options,
    wait: float,
    run_for: float,
    keep: bool,
    record: Path | None,
    timelines: Sequence[Path],
    progress: str,
) -> Report:
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        try:
            opened = stack.enter_context(closing(open_or_fail(source)))
            guest = opened.guest
            if guest is not None:
                guest.start()
            receiver = None
            if not addresses.is_address(target):
                receiver = Receiver(target, options.silence, run_for)
                stack.callback(receiver.end)
                target = address_of(receiver)
            with (
                progress_of(progress) as tell,
                closing(connect(target, options.silence, wait, tell)) as channel,
            ):
                # From here on the engine decides what a signal means: it is too late for a cancel
                # once the right to run has been given away.
                signals.action = options.cancel.set
                with written(options.timeline, timelines), recorded(channel, record):
                    report = move(opened, channel, options, tell)
        except InDoubt as error:
            where = receiver.end() if receiver else f"it listened at {target}"
            if keep:
                hold(opened, signals, f"{error}; {where}", error.status)
            fail(f"{error}; {where}", error.status)
        except MigrationError as error:
            fail(f"{error}{_still_working(guest, error)}", error.status)
        except KeyboardInterrupt:
            fail("cancelled; nothing has changed", ExitStatus.CANCELLED)
        if receiver is not None:
            # The device has moved. Whoever is in a hurry, also since before it had, gets its guest
            # counted sooner.
            signals.action = receiver.hurry
            if options.cancel.is_set() or guest is None:
                # Without a guest there is nothing to wait for.
                receiver.hurry()
            report.guest = receiver.guest()
            if report.guest is None and guest is not None:
                fail(
                    "moved, but the receiving process ended before its guest could be counted:"
                    f" {receiver.end()}",
                    ExitStatus.GUEST_FAULTS,
                )
    return report


def _still_working(guest: Guest | None, error: MigrationError) -> str:
    """What the guest says after a migration that has left the device here."""
    if guest is None or error.status is ExitStatus.STOPPED:
        return ""
    counts = guest.settle(5.0)
    return f"; its guest has sent {counts.sent} messages, {counts.faults} faults{memory_of(counts)}"
