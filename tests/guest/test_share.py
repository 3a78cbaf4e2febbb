"""The time that a guest gets."""

import threading
import time

import pytest

from precopy.guest.share import LEAST, GuestTime


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_its_time_runs_slower_and_never_back() -> None:
    clock = Clock()
    own = GuestTime(clock)
    assert own.now() == 0.0
    clock.now += 2.0
    assert own.now() == 2.0
    own.limit(0.25)
    assert own.now() == 2.0
    clock.now += 4.0
    assert own.now() == 3.0
    own.limit(1.0)
    assert own.now() == 3.0
    clock.now += 0.5
    assert own.now() == 3.5


@pytest.mark.parametrize("share", [0.0, -1.0, LEAST / 2, 1.01, float("nan"), float("inf")])
def test_shares_that_cannot_be_given(share: float) -> None:
    own = GuestTime()
    own.limit(0.5)
    with pytest.raises(ValueError, match=r"share of its time is 0\.001 to 1"):
        own.limit(share)
    assert own.share == 0.5


def test_with_all_its_time_it_does_not_rest() -> None:
    own = GuestTime()
    before = time.monotonic()
    own.rest(3600.0, lambda: True)
    assert time.monotonic() - before < 3600.0


def test_a_rest_is_as_long_as_the_share_says() -> None:
    own = GuestTime()
    own.limit(0.1)
    before = time.monotonic()
    own.rest(0.005, lambda: True)
    assert time.monotonic() - before >= 0.045


def resting(own: GuestTime, works: threading.Event) -> threading.Thread:
    """A thread that rests for an hour; back once it does."""
    asked = threading.Event()

    def still() -> bool:
        asked.set()
        return works.is_set()

    thread = threading.Thread(target=own.rest, args=(3600.0, still))
    thread.start()
    assert asked.wait(30.0)
    return thread


@pytest.mark.parametrize("share", [1.0, 0.75])
def test_a_new_limit_ends_a_rest(share: float) -> None:
    own, works = GuestTime(), threading.Event()
    works.set()
    own.limit(0.5)
    thread = resting(own, works)
    own.limit(share)
    thread.join(30.0)
    assert not thread.is_alive()


def test_who_works_no_longer_rests_no_longer() -> None:
    own, works = GuestTime(), threading.Event()
    works.set()
    own.limit(0.5)
    thread = resting(own, works)
    # To be woken is not enough.
    own.wake()
    works.clear()
    own.wake()
    thread.join(30.0)
    assert not thread.is_alive()
    own.rest(3600.0, works.is_set)
