"""A device of our own and small checks, for the tests of what runs and tells them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from precopy.backends import open_device
from precopy.conformance.check import Check, Context, NotApplicable, Severity
from precopy.conformance.outcome import Known, Result, Verdict
from precopy.conformance.report import Report
from precopy.conformance.runner import Runner
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState


def passing(context: Context) -> None:
    """It is as it should be."""
    context.expect("state", context.state(), DeviceState.RUNNING)


def failing(context: Context) -> None:
    """It is not as it should be."""
    context.set_state(DeviceState.STOP)
    context.expect("state", context.state(), DeviceState.RUNNING)


def refused(context: Context) -> None:
    """A call fails that nobody expected to fail."""
    context.set_state(DeviceState.ERROR)


def broken(context: Context) -> None:
    """The check itself is wrong."""
    raise KeyError("nothing")


def not_applicable(context: Context) -> None:
    """It says nothing."""
    raise NotApplicable("there is no such thing here")


def made(
    run: Callable[[Context], None] = passing,
    *requirements: int,
    name: str = "",
    severity: Severity = Severity.NORMATIVE,
    dangerous: bool = False,
    timeout: float = 30.0,
) -> Check:
    name = name or run.__name__.replace("_", "-")
    return Check(name, requirements or (19,), severity, run, dangerous, timeout)


@dataclass
class Hanging:
    """A check that hangs until :meth:`release`."""

    released: threading.Event = field(default_factory=threading.Event)

    def check(self) -> Check:
        return made(self.run, name="hanging", timeout=0.05)

    def run(self, context: Context) -> None:
        """It never comes back."""
        context.step("the call that hangs")
        self.released.wait()

    def release(self) -> None:
        self.released.set()


def opener() -> Opened:
    return open_device("sim:mlx5", target=True)


def run(*checks: Check, **settings: object) -> list[Result]:
    runner = Runner(opener)
    for name, value in settings.items():
        setattr(runner, name, value)
    return list(runner.run(checks))


def report(results: Sequence[Result], gone: Sequence[Known] = ()) -> Report:
    command = ["precopy", "conform", "sim:mlx5?qps=1&x=2"]
    return Report("sim:mlx5", "mlx5 15b3:101e", command, list(results), list(gone))


def result(
    verdict: Verdict = Verdict.PASS,
    *requirements: int,
    name: str = "passing",
    severity: Severity = Severity.NORMATIVE,
    came: str = "",
) -> Result:
    return Result(made(passing, *requirements, name=name, severity=severity), verdict, came=came)
