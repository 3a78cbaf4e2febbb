"""A served device: with a face of the test's, or the VF of the software ConnectX with its own."""

import logging
from collections.abc import Iterator

import pytest

from tests.frontends.vfio_user.fakes import FakeFace
from tests.frontends.vfio_user.rig import RawClient, Served, opened_sim, served


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "precopy.vfio_user")


@pytest.fixture
def face() -> Iterator[FakeFace]:
    made = FakeFace()
    yield made
    made.close()


@pytest.fixture
def faked(face: FakeFace) -> Iterator[Served]:
    """With the fake face."""
    with opened_sim(face=False).device as device, served(device, face) as made:
        yield made


@pytest.fixture
def client(faked: Served) -> RawClient:
    """Has the device with the fake face."""
    return faked.client()


@pytest.fixture
def sim() -> Iterator[Served]:
    """The VF as ``precopy serve`` has it."""
    opened = opened_sim()
    with opened.device as device, served(device, opened.face) as made:
        yield made
