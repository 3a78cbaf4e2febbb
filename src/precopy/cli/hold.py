"""In doubt: the device is kept here, stopped, until somebody who knows says what becomes of it."""

import os
import signal
from typing import NoReturn

from precopy.cli.common import fail, memory_of, warn
from precopy.cli.signals import SignalEvent, Signals
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState


def hold(opened: Opened, signals: Signals, text: str, status: ExitStatus) -> NoReturn:
    """Tell ``text`` and wait: SIGUSR1 runs the device here, SIGINT, SIGTERM or SIGHUP gives it up.

    Exits with ``status`` where it is given up, with FAILED once it has run here, with STOPPED where
    it can't. Called in the main thread.
    """
    decided, run_here = SignalEvent(), SignalEvent()

    def run(*_: object) -> None:
        run_here.set()
        decided.set()

    signals.action = decided.set
    before = signal.signal(signal.SIGUSR1, run)
    try:
        me = os.getpid()
        warn(
            f"{text}; it is kept here, stopped: kill -USR1 {me} where it does not run at the target,"
            f" to run it here; kill {me} where it does"
        )
        decided.wait()
        if not run_here.is_set():
            fail("given up here; what it was at the source is gone", status)
        _run(opened, signals)
    finally:
        signal.signal(signal.SIGUSR1, before)


def _run(opened: Opened, signals: Signals) -> NoReturn:
    ended = SignalEvent()
    signals.action = ended.set
    try:
        opened.device.set_state(DeviceState.RUNNING)
        if opened.guest is not None:
            opened.guest.start()
    except (OSError, RuntimeError) as error:
        fail(f"the device can't run here: {reason_of(error)}", ExitStatus.STOPPED)
    warn("the device runs at the source, until this process ends")
    ended.wait()
    told = "the device ran at the source"
    if opened.guest is not None:
        counts = opened.guest.settle(5.0)
        told += f"; its guest has sent {counts.sent} messages, {counts.faults} faults"
        told += memory_of(counts)
    fail(told, ExitStatus.FAILED)
