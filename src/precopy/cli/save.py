"""``precopy save``."""

import json
from contextlib import ExitStack, closing
from pathlib import Path

import click

from precopy.cli.common import (
    MILLISECONDS,
    PROGRESS_KINDS,
    SECONDS,
    fail,
    memory_of,
    open_or_fail,
    progress_of,
)
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine.outcome import ExitStatus, MigrationError
from precopy.engine.policy import GiveUp, Policy
from precopy.engine.save import save as save_to
from precopy.engine.source import Options
from precopy.memory.tracker import KINDS as TRACKERS


@click.command()
@click.argument("device")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--stopped", is_flag=True, help="Read all of it while the device stands still.")
@click.option(
    "--downtime-limit",
    type=MILLISECONDS,
    default=300.0,
    show_default=True,
    help="Milliseconds that it may stand still, as far as PRE_COPY can do that.",
)
@click.option(
    "--max-rounds",
    type=click.IntRange(min=0),
    default=30,
    show_default=True,
    help="Passes over what has changed.",
)
@click.option("--min-rounds", type=click.IntRange(min=0), default=0, help="Middle images at least.")
@click.option(
    "--timeout", type=SECONDS, default=300.0, show_default=True, help="Seconds in PRE_COPY."
)
@click.option(
    "--give-up",
    type=click.Choice([each.value for each in GiveUp]),
    default=GiveUp.SWITCH_OVER.value,
    show_default=True,
    help="What to do when the limit can't be met, as for migrate.",
)
@click.option(
    "--tracking",
    type=click.Choice(["auto", *TRACKERS]),
    default="auto",
    show_default=True,
    help="What tells which pages the guest writes.",
)
@click.option(
    "--keep",
    type=click.Choice(["running", "stopped"]),
    default="running",
    show_default=True,
    help="What becomes of the device; stopped: where it outlives this process, it stands in STOP.",
)
@click.option("--force", is_flag=True, help="Replace FILE where there is one.")
@click.option("--progress", type=click.Choice(PROGRESS_KINDS), default="auto")
@click.option("--json", "as_json", is_flag=True, help="The report as JSON.")
def save(
    device: str,
    file: Path,
    stopped: bool,
    downtime_limit: float,
    max_rounds: int,
    min_rounds: int,
    timeout: float,
    give_up: str,
    tracking: str,
    keep: str,
    force: bool,
    progress: str,
    as_json: bool,
) -> None:
    """Save the state of DEVICE, and its guest, to FILE; the device runs on.

    By PRE_COPY where the device has it, so that it stands still only for the final image. Whatever
    fails, there is no FILE and the device runs on.
    """
    if file.exists() and not force:
        fail(f"{file} exists: --force replaces it", ExitStatus.USAGE)
    options = Options(
        precopy=not stopped,
        policy=Policy(downtime_limit / 1e3, max_rounds, timeout, GiveUp(give_up)),
        min_rounds=min_rounds,
        cancel=SignalEvent(),
        tracking=tracking,
    )
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        try:
            opened = stack.enter_context(closing(open_or_fail(device)))
            if opened.guest is not None:
                opened.guest.start()
            with progress_of(progress) as tell:
                signals.action = options.cancel.set
                stopped = keep == "stopped"
                report = save_to(opened, file, options, tell, keep_stopped=stopped)
            if opened.guest is not None and not stopped:
                report.guest = opened.guest.settle(5.0)
        except MigrationError as error:
            fail(str(error), error.status)
        except KeyboardInterrupt:
            fail("cancelled; nothing has changed", ExitStatus.CANCELLED)
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        # Imported when wanted: a good part of a command's time in a lab kernel.
        from precopy.cli import show

        show.reports([report])
    if report.guest is not None and report.guest.faults:
        counts = report.guest
        fail(f"the guest counted faults: {counts}{memory_of(counts)}", ExitStatus.GUEST_FAULTS)
