"""What every test of the engine has to leave behind: nothing. And a migration as it went over the wire."""

import gc
import threading
from collections.abc import Iterator

import pytest

from precopy.engine.source import Options
from tests.engine.relay import SOURCE, Frame
from tests.engine.rig import LARGE, both, files


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No thread and no open file more than before."""
    before, open_before = set(threading.enumerate()), files()
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), f"thread {thread.name} lives on"
    if left := files() - open_before:
        gc.collect()  # an error's traceback and its frames, with what they have mapped, are a cycle
        left &= files()
    assert not {each for each in left if "pytest" not in each}


@pytest.fixture(scope="session")
def conversation() -> list[Frame]:
    """Everything that a source sends in a migration that goes well: initial, middle and final images."""
    with both(LARGE) as pair:
        relay = pair.move(Options(min_rounds=1))
        return relay.said[SOURCE]
