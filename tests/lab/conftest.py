"""Options of the tests against a real kernel."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sequences",
        default="500",
        help="Sequences of operations for the comparison of the kernel's driver with ours.",
    )
