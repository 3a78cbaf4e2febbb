"""``precopy load``."""

import json
from contextlib import ExitStack, closing
from pathlib import Path

import click

from precopy.cli.common import fail, open_or_fail, progress_of
from precopy.cli.options import (
    json_option,
    max_memory_option,
    progress_option,
    run_for_option,
    settle_option,
)
from precopy.cli.receive import run_here
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine.outcome import ExitStatus, MigrationError
from precopy.engine.replay import examine
from precopy.engine.replay import load as load_into
from precopy.engine.target import TargetOptions


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("device")
@max_memory_option
@run_for_option
@click.option(
    "--stop",
    "keep_stopped",
    is_flag=True,
    help="Leave DEVICE in STOP, its guest not started, and end: for a device that outlives this process.",
)
@settle_option
@progress_option
@json_option("What happened, as JSON lines on stdout.")
def load(
    file: Path,
    device: str,
    max_memory: int,
    run_for: float | None,
    keep_stopped: bool,
    settle: float,
    progress: str,
    as_json: bool,
) -> None:
    """Load what FILE holds into DEVICE, which then runs in this process.

    FILE is what precopy save or migrate --record has written. It is read to its end before the device
    is opened: a file that is cut or altered, or that holds no whole state, changes nothing.
    """
    stop = SignalEvent()
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        try:
            recorded = examine(file)
            if not recorded.closing.complete:
                fail(
                    f"{file} does not hold all of a device's state: {recorded.closing.outcome}",
                    ExitStatus.FAILED,
                )
            opened = stack.enter_context(closing(open_or_fail(device, target=True)))
            options = TargetOptions(max_memory=max_memory, cancel=stop, keep_stopped=keep_stopped)
            with progress_of(progress) as tell:
                signals.action = stop.set
                received = load_into(file, recorded, opened, options, tell)
        except MigrationError as error:
            fail(str(error), error.status)
        except KeyboardInterrupt:
            fail("cancelled; nothing has changed", ExitStatus.CANCELLED)
        if keep_stopped:
            told = f"{received.source} is loaded, in STOP ({received.device_bytes} bytes of state)"
            fields = {"stopped": received.source, "device_bytes": received.device_bytes}
            print(json.dumps(fields) if as_json else told)
            return
        run_here(received, stop, run_for, settle, as_json)
