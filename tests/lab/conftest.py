"""Options of the tests against a real kernel."""

import os

import pytest

from precopy.lab.build import VARIANTS
from precopy.lab.coverage import ENVIRONMENT as COVERAGE
from precopy.lab.coverage import default_directory
from precopy.lab.machine import VARIANT


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sequences",
        default="500",
        help="Sequences of operations for the comparison of the kernel's driver with ours.",
    )
    parser.addoption(
        "--lab-variant",
        choices=tuple(VARIANTS),
        help="The kernel that all tests run on which name none.",
    )
    parser.addoption(
        "--lab-coverage",
        action="store_true",
        help="Count what is run of the kernel's driver, for precopy lab coverage.",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A guest that hangs is ended after two minutes by the lab, which says where it hung: that has to
    come before the test's own end."""
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(240))


def pytest_configure(config: pytest.Config) -> None:
    """By environment: tests start kernels in processes of their own, too."""
    variant = config.getoption("--lab-variant")
    if variant:
        os.environ[VARIANT] = variant
    if config.getoption("--lab-coverage"):
        os.environ[COVERAGE] = str(default_directory().absolute())
