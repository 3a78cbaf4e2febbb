"""``precopy receive``."""

import json
import signal
import sys
import threading
from contextlib import closing, suppress
from dataclasses import asdict

import click

from precopy.cli.common import PROGRESS_KINDS, fail, open_or_fail, progress_of
from precopy.engine import address as addresses
from precopy.engine.address import AddressError, Listening
from precopy.engine.channel import Channel
from precopy.engine.outcome import ExitStatus, MigrationError
from precopy.engine.target import Received, TargetOptions
from precopy.engine.target import receive as take
from precopy.vfio.guest import Guest


@click.command()
@click.argument("device")
@click.option(
    "--listen",
    default=f"tcp://127.0.0.1:{addresses.DEFAULT_PORT}",
    show_default=True,
    metavar="ADDRESS",
    help="tcp://host:port (port 0: any) or unix:/path.",
)
@click.option(
    "--plain-from-network",
    is_flag=True,
    help="Take connections from a network, unencrypted and from anybody.",
)
@click.option(
    "--silence", default=30.0, show_default=True, help="Seconds a source may say nothing."
)
@click.option(
    "--run-for", type=float, help="End the device so many seconds after it was taken over."
)
@click.option("--settle", default=5.0, show_default=True, help="Seconds the guest has to settle.")
@click.option("--progress", type=click.Choice(PROGRESS_KINDS), default="auto")
@click.option("--json", "as_json", is_flag=True, help="What happened, as JSON lines on stdout.")
def receive(
    device: str,
    listen: str,
    plain_from_network: bool,
    silence: float,
    run_for: float | None,
    settle: float,
    progress: str,
    as_json: bool,
) -> None:
    """Wait for a migration into DEVICE; the device then runs in this process."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    opened = open_or_fail(device, target=True)
    with closing(opened):
        try:
            listening = Listening(addresses.parse(listen), plain_from_network=plain_from_network)
        except AddressError as error:
            fail(str(error), ExitStatus.USAGE)
        except OSError as error:
            fail(error.strerror or str(error), ExitStatus.USAGE)
        _say(as_json, f"listening on {listening.address}", listening=str(listening.address))
        if not listening.address.is_local:
            print(
                "precopy: warning: connections are neither encrypted nor authenticated",
                file=sys.stderr,
            )
        try:
            with closing(listening), progress_of(progress) as tell:
                channel = Channel(listening.accept(silence))
                with closing(channel):
                    received = take(opened, channel, TargetOptions(silence=silence), tell)
        except MigrationError as error:
            fail(str(error), error.status)
        except KeyboardInterrupt:
            fail("cancelled; nothing runs here", ExitStatus.CANCELLED)
        _run(received, stop, run_for, settle, as_json)


def _say(as_json: bool, text: str, **fields: object) -> None:
    print(json.dumps(fields) if as_json else text, flush=True)


def _run(
    received: Received, stop: threading.Event, run_for: float | None, settle: float, as_json: bool
) -> None:
    """The device works here until its time is over, or somebody ends it."""
    for note in received.notes:
        print(f"precopy: {note}", file=sys.stderr)
    _say(
        as_json,
        f"{received.source} runs here ({received.device_bytes} bytes of state)",
        running=received.source,
        device_bytes=received.device_bytes,
    )
    with suppress(KeyboardInterrupt):
        stop.wait(run_for)
    if received.guest is not None:
        _end_guest(received.guest, settle, as_json)


def _end_guest(guest: Guest, settle: float, as_json: bool) -> None:
    counts = guest.settle(settle)
    _say(
        as_json,
        f"guest: {counts.sent} sent, {counts.received} received, {counts.faults} faults",
        guest=asdict(counts),
    )
    if counts.faults:
        fail(f"the guest counted faults: {counts}", ExitStatus.GUEST_FAULTS)
