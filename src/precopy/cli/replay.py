"""``precopy replay``."""

import json
import time
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path

import click

from precopy.cli.common import (
    fail,
    number,
    progress_of,
)
from precopy.cli.options import (
    connect_wait_option,
    json_option,
    progress_option,
    silence_option,
    started_run_for_option,
)
from precopy.cli.receiver import Receiver, address_of, connect
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine import address as addresses
from precopy.engine.outcome import ExitStatus, MigrationError
from precopy.engine.replay import ReplayOptions, examine
from precopy.engine.replay import replay as play


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("target")
@click.option(
    "--speed",
    type=number("times"),
    default=1.0,
    show_default=True,
    help="Times the recording's own pace; 0: as fast as it goes.",
)
@connect_wait_option
@silence_option("target")
@started_run_for_option
@progress_option
@json_option("What happened, as JSON.")
def replay(
    file: Path,
    target: str,
    speed: float,
    wait: float,
    silence: float,
    run_for: float,
    progress: str,
    as_json: bool,
) -> None:
    """Play the migration that FILE holds once more, to TARGET: a device, or where one listens.

    What the target answers is compared with what was answered then: a target that failed is to fail
    again, without its source. The exit status is that of a migration that ends so.
    """
    options = ReplayOptions(speed, silence, SignalEvent())
    with ExitStack() as stack:
        signals = stack.enter_context(Signals())
        receiver = None
        try:
            recorded = examine(file)
            if not addresses.is_address(target):
                receiver = Receiver(target, silence, run_for)
                stack.callback(receiver.end)
                target = address_of(receiver)
            with (
                progress_of(progress) as tell,
                closing(connect(target, silence, wait, tell)) as channel,
            ):
                signals.action = options.cancel.set
                began = time.monotonic()
                differences = play(file, recorded, channel, options, tell)
                took = time.monotonic() - began
        except MigrationError as error:
            fail(str(error), error.status)
        except KeyboardInterrupt:
            fail("cancelled", ExitStatus.CANCELLED)
        guest = None
        if receiver is not None:
            signals.action = receiver.hurry
            if not recorded.manifest["guest"]:
                receiver.hurry()
            guest = receiver.guest()
    if as_json:
        found = {
            "seconds": took,
            "recorded_seconds": recorded.closing.seconds,
            "differences": [each._asdict() for each in differences],
            "guest": None if guest is None else {**asdict(guest), "faults": guest.faults},
        }
        print(json.dumps(found, indent=2))
    else:
        then = recorded.closing.seconds
        print(f"the target runs the device, after {took:.2f} s (recorded: {then:.2f} s)")
        for each in differences:
            print(
                f"{each.answer}: {each.field} {_told(each.now)} (recorded: {_told(each.recorded)})"
            )
        if guest is not None:
            print(f"guest: {guest.sent} sent, {guest.received} received, {guest.faults} faults")
    if guest is not None and guest.faults:
        fail(f"the guest counted faults: {guest}", ExitStatus.GUEST_FAULTS)


def _told(value: object) -> str:
    """A field of an answer; one with a fraction is a time."""
    return f"{value * 1e3:.1f} ms" if isinstance(value, float) else str(value)
