"""The process that becomes those of the tests, for as long as there are tests of commands."""

from collections.abc import Iterator

import pytest

from tests.cli import processes


@pytest.fixture(scope="session", autouse=True)
def zygote() -> Iterator[None]:
    with processes.zygote():
        yield
