"""``precopy save``."""

import json
from contextlib import ExitStack, closing
from pathlib import Path

import click

from precopy.cli.common import (
    fail,
    memory_of,
    open_or_fail,
    progress_of,
)
from precopy.cli.options import json_option, policy_of, policy_options, progress_option
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine.outcome import ExitStatus, MigrationError
from precopy.engine.save import save as save_to
from precopy.engine.source import Options


@click.command()
@click.argument("device")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--stopped", is_flag=True, help="Read all of it while the device stands still.")
@policy_options
@click.option(
    "--keep",
    type=click.Choice(["running", "stopped"]),
    default="running",
    show_default=True,
    help="What becomes of the device; stopped: where it outlives this process, it stands in STOP.",
)
@click.option("--force", is_flag=True, help="Replace FILE where there is one.")
@progress_option
@json_option("The report as JSON.")
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
        policy=policy_of(downtime_limit, max_rounds, timeout, give_up),
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
