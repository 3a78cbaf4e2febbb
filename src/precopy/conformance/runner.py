"""Runs checks, each on a device that has just been opened, and each with a watchdog.

A call that hangs can't be ended from outside: its thread is left behind, and the device with it. Where
the device can be opened again the next check goes on there; where not, what is left is not run, and
that is said of each.
"""

import contextlib
import errno
import importlib
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from precopy.conformance.check import CHECKS, Check, Context, Failed, NotApplicable
from precopy.conformance.outcome import Result, Verdict
from precopy.conformance.raw import ends_when_closed, face_of, raw_of, workload_of
from precopy.conformance.requirements import REQUIREMENTS, number_of
from precopy.vfio.device import VfioDevice
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import Feature

#: Opens a device; OSError, ValueError (a name that is wrong).
Opener = Callable[[], Opened]

T = TypeVar("T")

#: Seconds that whoever had a device before may take to let go of it, and between two looks.
LETTING_GO, LOOK = 5.0, 0.02

#: Seconds that opening or closing a device may take.
OPENING = 30.0


def about(device: VfioDevice) -> str:
    """Who a device is: its driver, its ids and what it supports. OSError where it can't be migrated."""
    who = device.identity
    flags = " ".join(flag.name or "" for flag in device.migration_flags)
    return f"{who.driver} {who.vendor_id:04x}:{who.device_id:04x}, {flags}"


class SelectionError(ValueError):
    """One line: what of ``--only`` nobody understands."""


class Hang(Exception):
    """A call did not come back in its time; ``where`` its thread is."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


def load() -> dict[str, Check]:
    """All checks that there are, by name."""
    importlib.import_module("precopy.conformance.checks")
    return CHECKS


def select(only: Sequence[str], checks: dict[str, Check]) -> list[Check]:
    """The checks that ``only`` names, by name or requirement, in their own order; all where it is
    empty. SelectionError."""
    wanted: set[str] = set()
    for each in only:
        number = number_of(each)
        if each in checks:
            wanted.add(each)
        elif number in REQUIREMENTS:
            found = [name for name, check in checks.items() if number in check.requirements]
            if not found:
                why = REQUIREMENTS[number].unchecked
                raise SelectionError(f"no check is about R{number}" + (f": {why}" if why else ""))
            wanted.update(found)
        else:
            raise SelectionError(
                f"there is no check or requirement {each!r}; precopy conform --list has them"
            )
    return [check for name, check in checks.items() if not only or name in wanted]


def guarded(call: Callable[[], T], seconds: float) -> T:
    """``call`` in a thread of its own; what it returns or raises. :class:`Hang` after ``seconds``."""
    found: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="conformance", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    if not found:
        raise Hang(_where(thread))
    return found[0]


def _where(thread: threading.Thread) -> str:
    """Where ``thread`` is: the line of Python, and the kernel's function where it waits in one."""
    frame = sys._current_frames().get(thread.ident or 0)
    place = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}" if frame else "nowhere"
    with contextlib.suppress(OSError):
        function = Path(f"/proc/self/task/{thread.native_id}/wchan").read_text(encoding="utf-8")
        if function.strip("0\n"):
            return f"in {place}, in the kernel in {function}"
    return f"in {place}"


@dataclass(slots=True)
class Runner:
    """``opener``, ``peer``: open the device, and one to load into where there is one."""

    opener: Opener
    peer: Opener | None = None
    dangerous: bool = False
    #: Told of each check before it is run.
    announce: Callable[[Check], None] = lambda check: None
    opening: float = OPENING

    def run(self, selected: Sequence[Check]) -> Iterator[Result]:
        """The verdict of each, as it comes."""
        stuck = ""
        for check in selected:
            if check.dangerous and not self.dangerous:
                yield Result(
                    check,
                    Verdict.NOT_APPLICABLE,
                    came="can bring a kernel down: --dangerous runs it",
                )
            elif stuck:
                yield Result(check, Verdict.NOT_RUN, came=stuck)
            else:
                self.announce(check)
                result = self._one(check)
                if result.verdict is Verdict.NOT_RUN:
                    stuck = result.came
                yield result

    def _one(self, check: Check) -> Result:
        began = time.monotonic()
        result = self._checked(check)
        result.seconds = time.monotonic() - began
        return result

    def _checked(self, check: Check) -> Result:
        opened: list[Opened] = []
        try:
            context = guarded(lambda: self._prepare(opened), self.opening)
        except (OSError, ValueError) as error:
            result = Result(check, Verdict.NOT_RUN, came=_reason(error))
        except Hang as hang:
            came = f"the device hangs: it was not open and reset after {self.opening:g} s; it is {hang.where}"
            result = Result(check, Verdict.NOT_RUN, came=came)
        else:
            result = _judge(check, context)
        return self._close(opened, result)

    def _prepare(self, opened: list[Opened]) -> Context:
        """A device, and its peer, that are RUNNING and log nothing; all that is open is in ``opened``."""
        opened.append(_open(self.opener))
        if self.peer is not None:
            opened.append(_open(self.peer))
        for each in opened:
            device = each.device
            if Feature.DMA_LOGGING_STOP in device.features():
                device.log_stop()
            # A guest has just brought its device up, from power-on.
            if each.guest is None:
                device.reset()
            if device.state is not DeviceState.RUNNING:
                what = f"{device.name} is {device.state.name} after a reset, not RUNNING"
                raise OSError(errno.EIO, what)
        first = opened[0]

        def reopen() -> VfioDevice:
            opened[0].close()
            opened[0] = _open(self.opener)
            return opened[0].device

        return Context(
            first.device,
            peer=opened[1].device if len(opened) > 1 else None,
            raw=raw_of(first.device),
            workload=workload_of(first),
            face=face_of(first.device),
            reopen=reopen if ends_when_closed(first.device) else None,
        )

    def _close(self, opened: Sequence[Opened], result: Result) -> Result:
        def close() -> bool:
            for each in opened:
                if result.verdict is not Verdict.HANG:
                    _leave_running(each.device)
                each.close()
            return True

        try:
            guarded(close, self.opening)
        except Hang as hang:
            if result.verdict not in (Verdict.HANG, Verdict.NOT_RUN):
                result.verdict, result.what = Verdict.HANG, "closing the device after the check"
                result.expected = f"its end within {self.opening:g} s"
                result.came = f"none; it is {hang.where}"
        except (OSError, ValueError, RuntimeError) as error:
            # A device that has failed may fail here, too; the check's own verdict says more.
            if result.verdict is Verdict.PASS:
                result.verdict, result.what = Verdict.FAIL, "closing the device after the check"
                result.expected, result.came = "success", _reason(error)
        return result


def _leave_running(device: VfioDevice) -> None:
    """Not all devices are RUNNING again by being closed; who opens it next may need that."""
    with contextlib.suppress(OSError):
        if device.state is not DeviceState.RUNNING:
            device.reset()


def _open(opener: Opener) -> Opened:
    """Open a device, which the check before may not have left yet: a server sees that a client has
    gone only some time after it went."""
    deadline = time.monotonic() + LETTING_GO
    while True:
        try:
            return opener()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() >= deadline:
                raise
        time.sleep(LOOK)


def _judge(check: Check, context: Context) -> Result:
    """What ``check`` says of the device."""

    def run() -> Result:
        try:
            check.run(context)
        except Failed as failed:
            return Result(check, Verdict.FAIL, failed.what, failed.expected, failed.came)
        except NotApplicable as error:
            return Result(check, Verdict.NOT_APPLICABLE, came=str(error))
        except OSError as error:
            last = context.steps[-1] if context.steps else check.name
            return Result(check, Verdict.FAIL, last, "success", _reason(error))
        except Exception as error:
            # The check's own mistake, or what a device in this process raises and must not.
            came = f"{type(error).__name__}: {error} ({_place(error)})"
            return Result(check, Verdict.FAIL, "the check itself", "an end", came)
        finally:
            context.close()
        return Result(check, Verdict.PASS)

    try:
        result = guarded(run, check.timeout)
    except Hang as hang:
        last = context.steps[-1] if context.steps else "the check's first step"
        came = f"none; it is {hang.where}"
        result = Result(check, Verdict.HANG, last, f"its end within {check.timeout:g} s", came)
    result.steps = list(context.steps)
    return result


def _place(error: BaseException) -> str:
    trace = traceback.extract_tb(error.__traceback__)
    return f"{Path(trace[-1].filename).name}:{trace[-1].lineno}" if trace else "nowhere"


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError):
        name = errno.errorcode.get(error.errno or 0, "")
        return f"{name} ({error.strerror or error})" if name else str(error)
    return str(error) or type(error).__name__
