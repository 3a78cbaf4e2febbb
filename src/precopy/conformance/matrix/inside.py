"""The program beside the device: runs checks, and writes a line of JSON for each step of that.

``python -m precopy.conformance.matrix.inside JOB``, with JOB as JSON: device, peer, checks (their
names), and ``log``, a file to which each check is announced as well; a kernel's log takes
/dev/kmsg. What is written:

``{"about": ..., "release": ...}``
    who the device is, and the release of the kernel
``{"refused": ...}``
    the driver does not offer migration, and nothing else comes
``{"begun": NAME}``, ``{"result": {...}}``
    around each check
``{"alive": true}``
    every few seconds: a kernel that is stuck is known by the lack of it

It ends with the first hang: what comes after it is better off in another kernel.
"""

import json
import os
import sys
import threading
from typing import Any

from precopy.backends import DeviceNameError, open_device
from precopy.conformance.check import Check
from precopy.conformance.outcome import Result, Verdict
from precopy.conformance.runner import Runner, about, load
from precopy.vfio.guest import Opened

#: Seconds between two signs of life.
ALIVE = 5.0

#: How a check is announced in a kernel's log: a warning, which the lab's console shows.
MARK = "precopy: check "

_written = threading.Lock()


def say(**told: Any) -> None:
    """One line, whole, whoever else writes."""
    with _written:
        print(json.dumps(told), flush=True)


def dump(result: Result) -> dict[str, Any]:
    """A result as JSON."""
    return {
        "check": result.check.name,
        "verdict": result.verdict.value,
        "what": result.what,
        "expected": result.expected,
        "came": result.came,
        "steps": list(result.steps),
        "seconds": round(result.seconds, 3),
    }


def parse(told: dict[str, Any], checks: dict[str, Check]) -> Result:
    """What :func:`dump` has made. KeyError, ValueError where it is something else."""
    return Result(
        checks[told["check"]],
        Verdict(told["verdict"]),
        told["what"],
        told["expected"],
        told["came"],
        told["steps"],
        told["seconds"],
    )


def _open(name: str, *, target: bool) -> Opened:
    try:
        return open_device(name, target=target)
    except DeviceNameError as error:
        raise OSError(str(error)) from error


def _about(names: list[str]) -> str:
    """Who the device is. OSError where it, or its peer, can't be opened or not migrated."""
    found = []
    for name in names:
        opened = _open(name, target=True)
        try:
            found.append(about(opened.device))
        finally:
            opened.close()
    return found[0]


def _live() -> None:
    while True:
        say(alive=True)
        threading.Event().wait(ALIVE)


def main(text: str) -> None:
    job = json.loads(text)
    device, peer, checks = job["device"], job["peer"], load()

    def announce(check: Check) -> None:
        if job["log"]:
            with open(job["log"], "w") as log:
                log.write(f"<4>{MARK}{check.name}\n")
        say(begun=check.name)

    threading.Thread(target=_live, daemon=True).start()
    try:
        say(about=_about([device, peer]), release=os.uname().release)
    except OSError as error:
        say(refused=error.strerror or str(error))
        return
    runner = Runner(
        lambda: _open(device, target=False),
        lambda: _open(peer, target=True),
        dangerous=True,
        announce=announce,
    )
    for result in runner.run([checks[name] for name in job["checks"]]):
        say(result=dump(result))
        if result.verdict in (Verdict.HANG, Verdict.NOT_RUN):
            break


if __name__ == "__main__":
    main(sys.argv[1])
    # A thread that hangs must not keep the process.
    sys.stdout.flush()
    os._exit(0)
