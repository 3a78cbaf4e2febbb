"""A server of one fake function, and its socket."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.frontends.virtio_pcidev import Server
from tests.frontends.virtio_pcidev.fake_function import FakeFunction


@pytest.fixture
def function() -> FakeFunction:
    return FakeFunction()


@pytest.fixture
def server(function: FakeFunction, tmp_path: Path) -> Iterator[Server]:
    with Server([function], tmp_path) as server:
        yield server
