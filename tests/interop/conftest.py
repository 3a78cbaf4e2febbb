"""The comparison is made once, in one lab, and shown at the end."""

import sys
from pathlib import Path

import pytest

from precopy.lab import Job, LabError, run
from precopy.lab.build import built
from precopy.lab.qemu import require
from tests.interop.figures import Comparison, tables

#: Migrations by each engine.
ROUNDS = 5

_SHOWN = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def comparison(request: pytest.FixtureRequest) -> Comparison:
    """Measured here and now. Without a kernel or QEMU the tests end, with the line that says so."""
    try:
        if built() is None:
            raise LabError("no kernel has been built yet: run precopy lab build")
        job = Job(
            [sys.executable, "-m", "tests.interop.inside", str(require()), str(ROUNDS)],
            mtty=2,
            memory="1500M",
            timeout=600.0,
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
    found = Comparison.load(result.out)
    request.config.stash[_SHOWN] = tables(found)
    return found


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The tables, on stdout."""
    for line in config.stash.get(_SHOWN, "").splitlines():
        terminalreporter.write_line(line.rstrip())
