"""``precopy receive``."""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import click

from precopy.cli.common import (
    SOME_SECONDS,
    fail,
    memory_of,
    open_or_fail,
    progress_of,
    warn,
)
from precopy.cli.options import (
    json_option,
    max_memory_option,
    progress_option,
    run_for_option,
    settle_option,
    silence_option,
)
from precopy.cli.signals import SignalEvent, Signals
from precopy.cli.timeline import option as timeline_option
from precopy.cli.timeline import written
from precopy.engine import address as addresses
from precopy.engine.address import AddressError, Listening
from precopy.engine.channel import Channel
from precopy.engine.outcome import ExitStatus, MigrationError, reason_of
from precopy.engine.progress import Snapshot, safely
from precopy.engine.target import Received, TargetOptions
from precopy.engine.target import receive as take
from precopy.engine.timeline import Notes, Timeline
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
    "--wait", type=SOME_SECONDS, help="Seconds to wait for a source.  [default: for ever]"
)
@silence_option("source")
@max_memory_option
@run_for_option
@settle_option
@timeline_option
@progress_option
@json_option("What happened, as JSON lines on stdout.")
def receive(
    device: str,
    listen: str,
    plain_from_network: bool,
    wait: float | None,
    silence: float,
    max_memory: int,
    run_for: float | None,
    settle: float,
    timelines: Sequence[Path],
    progress: str,
    as_json: bool,
) -> None:
    """Wait for a migration into DEVICE; the device then runs in this process.

    SIGINT or SIGTERM ends it: before the device runs here the migration is cancelled, after that
    the device is ended.
    """
    stop = SignalEvent()
    timeline = Timeline(target=Notes()) if timelines else None
    options = TargetOptions(silence, max_memory, stop)
    options.notes = timeline.target if timeline is not None else None
    with contextlib.ExitStack() as stack:
        signals = stack.enter_context(Signals())
        try:
            opened = stack.enter_context(closing(open_or_fail(device, target=True)))
            listening = stack.enter_context(closing(_listen(listen, plain_from_network)))
            _say(as_json, f"listening on {listening.address}", listening=str(listening.address))
            with progress_of(progress) as tell:
                safely(tell)(Snapshot("waiting for a source"))
                channel = Channel(listening.accept(wait))
                # From here on the engine decides what a signal means: it is too late for a cancel
                # once the right to run has come.
                signals.action = stop.set
                # Another source need not wait for an answer that will not come.
                listening.close()
                with closing(channel), written(timeline, timelines):
                    received = take(opened, channel, options, tell)
                    if timeline is not None:
                        timeline.end(f"{received.source} runs here")
        except MigrationError as error:
            fail(str(error), error.status)
        except TimeoutError:
            fail(f"no source came within {wait:g} s; nothing runs here", ExitStatus.FAILED)
        except OSError as error:
            fail(f"{listen}: {reason_of(error)}; nothing runs here", ExitStatus.FAILED)
        except KeyboardInterrupt:
            fail("cancelled; nothing runs here", ExitStatus.CANCELLED)
        run_here(received, stop, run_for, settle, as_json)


def _listen(text: str, plain_from_network: bool) -> Listening:
    try:
        address = addresses.parse(text)
        listening = Listening(address, plain_from_network=plain_from_network)
    except AddressError as error:
        fail(str(error), ExitStatus.USAGE)
    except OSError as error:
        fail(reason_of(error), ExitStatus.USAGE)
    if not address.is_local:
        warn("warning: connections are neither encrypted nor authenticated")
    return listening


def _say(as_json: bool, text: str, **fields: object) -> None:
    """Tell on stdout; a device is not given up because nobody reads that any more."""
    try:
        print(json.dumps(fields) if as_json else text, flush=True)
    except OSError:
        # What is left in its buffer must not be tried again at the end of the process.
        with open(os.devnull, "wb") as nobody:
            os.dup2(nobody.fileno(), sys.stdout.fileno())


def run_here(
    received: Received, stop: threading.Event, run_for: float | None, settle: float, as_json: bool
) -> None:
    """The device works here until its time is over, or somebody ends it."""
    for note in received.notes:
        warn(note)
    _say(
        as_json,
        f"{received.source} runs here ({received.device_bytes} bytes of state)",
        running=received.source,
        device_bytes=received.device_bytes,
    )
    stop.wait(run_for)
    if received.guest is not None:
        _end_guest(received.guest, settle, as_json)


def _end_guest(guest: Guest, settle: float, as_json: bool) -> None:
    counts = guest.settle(settle)
    _say(
        as_json,
        f"guest: {counts.sent} sent, {counts.received} received, {counts.faults} faults"
        + memory_of(counts),
        guest=asdict(counts),
    )
    if counts.faults:
        fail(f"the guest counted faults: {counts}", ExitStatus.GUEST_FAULTS)
