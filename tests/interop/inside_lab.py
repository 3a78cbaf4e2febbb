"""Runs a module of the tests beside QEMU, in the lab's kernel, whose output is shown as it comes."""

import sys
from pathlib import Path

import pytest

from precopy.lab import Job, LabError, run
from precopy.lab.build import built
from precopy.lab.qemu import require


def inside(
    request: pytest.FixtureRequest, module: str, *arguments: str, mtty: int, timeout: float
) -> str:
    """What ``python -m module QEMU arguments`` prints. Without a kernel or QEMU, or where it fails, the
    tests end, with the line that says why."""
    try:
        if built() is None:
            raise LabError("no kernel has been built yet: run precopy lab build")
        job = Job(
            [sys.executable, "-m", module, str(require()), *arguments],
            mtty=mtty,
            memory="1500M",
            timeout=timeout,
            cwd=Path(__file__).parents[2],
        )
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print()
            result = run(job, None, sys.stderr.write)
    except LabError as error:
        pytest.exit(f"precopy: lab: {error}", returncode=1)
    if result.status or result.trouble:
        last = (result.err.strip().splitlines() or ["nothing was said"])[-1]
        pytest.exit(f"precopy: lab: {result.trouble or last}", returncode=1)
    return result.out
