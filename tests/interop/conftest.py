"""The comparison is made once, in one lab, and shown at the end."""

import pytest

from tests.interop.figures import Comparison, tables
from tests.interop.inside_lab import inside

#: Migrations by each engine.
ROUNDS = 5

_SHOWN = pytest.StashKey[str]()


@pytest.fixture(scope="session")
def comparison(request: pytest.FixtureRequest) -> Comparison:
    """Measured here and now."""
    out = inside(request, "tests.interop.inside", str(ROUNDS), mtty=2, timeout=600.0)
    found = Comparison.load(out)
    request.config.stash[_SHOWN] = tables(found)
    return found


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """The tables, on stdout."""
    for line in config.stash.get(_SHOWN, "").splitlines():
        terminalreporter.write_line(line.rstrip())
