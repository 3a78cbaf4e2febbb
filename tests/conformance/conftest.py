"""How many deviations the checks have found, at the end of a run."""

import pytest

#: Names of the deviations that were tried, and of those that a check found.
tried: set[str] = set()
found: set[str] = set()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if tried:
        terminalreporter.write_line(f"conformance: {len(found)} of {len(tried)} deviations found")
