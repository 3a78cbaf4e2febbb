"""Where the program of ``inside`` runs: in a lab kernel, or in a process of its own."""

import contextlib
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from precopy import lab
from precopy.conformance.matrix.targets import Kernel, Target
from precopy.lab.machine import TIMED_OUT

#: Seconds without a sign of life after which whoever runs the checks counts as stuck. A kernel that is
#: at work all the time gives none: its time stands still.
SILENCE = 60.0

#: Seconds for all checks of a target; a full run needs a small part of that.
ALL = 1800.0

#: Runs checks by name, where ``kernel`` says, and tells each line of output.
Place = Callable[[Target, Kernel | None, Sequence[str], Callable[[str], object]], lab.Result]


def _program(devices: Sequence[str], checks: Sequence[str], log: str) -> list[str]:
    device, peer = devices
    job = {"device": device, "peer": peer, "checks": list(checks), "log": log}
    return [sys.executable, "-m", "precopy.conformance.matrix.inside", json.dumps(job)]


def somewhere(
    target: Target, kernel: Kernel | None, checks: Sequence[str], hear: Callable[[str], object]
) -> lab.Result:
    """The place where a target's checks run. LabError where there is no such kernel."""
    if kernel is None:
        return _beside(target, checks, hear)
    job = lab.Job(
        _program(target.devices, checks, "/dev/kmsg"),
        mtty=target.mtty,
        adapter=target.adapter,
        # The debug kernel needs more for itself.
        memory="1G",
        timeout=ALL,
        silence=SILENCE,
        variant=kernel.variant,
        version=kernel.version,
        # A driver that a check has made hang would keep the kernel from its end.
        shutdown=False,
        # Where all of it sleeps, its time leaps: most of a run is waiting after resets.
        arguments=("time-travel=inf-cpu",),
    )
    return lab.run(job, out=hear)


def _beside(target: Target, checks: Sequence[str], hear: Callable[[str], object]) -> lab.Result:
    directory = Path(tempfile.mkdtemp(prefix="precopy-conform-"))
    try:
        devices = [each.format(directory=directory) for each in target.devices]
        with _served(target, devices):
            return _process(_program(devices, checks, ""), hear)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _served(target: Target, devices: Sequence[str]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name in devices if target.served else ():
            path = name.partition(":")[2]
            command = [sys.executable, "-m", "precopy", "serve", target.served, "--socket", path]
            server = stack.enter_context(
                # It tells of every request that it refuses, of which checks make many.
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
                )
            )
            stack.callback(server.kill)
            assert server.stdout is not None
            # It says so when it listens.
            server.stdout.readline()
        yield


def _process(command: Sequence[str], hear: Callable[[str], object]) -> lab.Result:
    """``command`` run to its end, or until it is silent for too long."""
    found: list[str] = []
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    silent = False
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):

        def listen() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put(line)
            lines.put("")

        threading.Thread(target=listen, daemon=True).start()
        try:
            while line := lines.get(timeout=SILENCE):
                found.append(line)
                hear(line)
        except queue.Empty:
            silent = True
            process.kill()
        status = process.wait()
        errors.seek(0)
        said = errors.read()
    trouble = f"the process ended with status {status}" if status else ""
    if silent:
        status, trouble = TIMED_OUT, f"silent for {SILENCE:g} s"
    return lab.Result(status, "".join(found), said, "", trouble)
