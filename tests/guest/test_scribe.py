"""The thread that writes: it stops and goes on, at its pace, in its share of the time."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from precopy.guest.layout import PAGE, WorkloadConfig
from precopy.guest.pages import Pages
from precopy.guest.scribe import Scribe
from precopy.guest.share import GuestTime
from tests.guest.memories import Worked
from tests.guest.rig import PATIENCE

#: More than any machine writes.
FASTEST = 1 << 60


class Watched(Pages):
    """Pages that let a test wait for so many writes."""

    def __init__(self, made: Worked) -> None:
        super().__init__(made.memory, 1, made.config)
        self._waiting: tuple[int, threading.Event] | None = None

    def write(self, count: int) -> None:
        super().write(count)
        waiting, writes = self._waiting, self.writes
        assert writes is not None
        if waiting is not None and writes >= waiting[0]:
            waiting[1].set()

    def once(self, more: int) -> threading.Event:
        """An event that is set once ``more`` writes have been made."""
        event, before = threading.Event(), self.writes
        assert before is not None
        self._waiting = before + more, event
        return event

    def wait_for(self, more: int) -> None:
        assert self.once(more).wait(PATIENCE)


class Rested(GuestTime):
    """Time that lets nobody rest, but remembers who should have."""

    def __init__(self) -> None:
        super().__init__()
        self.rests: list[float] = []

    def rest(self, busy: float, works: Callable[[], bool]) -> None:
        self.rests.append(busy)


class Rig:
    """One memory, and as many scribes as a test makes of it."""

    def __init__(self) -> None:
        self.worked = Worked(WorkloadConfig(memory=300 * PAGE, zeros=10))
        self.worked.pages.power_on()
        self.made: list[Scribe] = []

    def scribe(self, rate: int, own_time: GuestTime | None = None) -> tuple[Scribe, Watched]:
        pages = Watched(self.worked)
        self.made.append(Scribe(pages, rate, own_time or GuestTime()))
        return self.made[-1], pages

    def close(self) -> None:
        for scribe in self.made:
            scribe.close()
        self.worked.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def scribes() -> int:
    return [thread.name for thread in threading.enumerate()].count("scribe")


@pytest.mark.parametrize("rate", [FASTEST, 20_000])
def test_it_stops_between_two_writes_and_goes_on(rig: Rig, rate: int) -> None:
    scribe, pages = rig.scribe(rate)
    for _ in range(5):
        scribe.start()
        scribe.start()
        assert scribes() == 1
        pages.wait_for(200)
        scribe.pause()
        assert scribes() == 0
        still = rig.worked.all()
        assert not scribe.check().wrong_pages
        assert rig.worked.all() == still


def test_another_one_goes_on_where_it_was(rig: Rig) -> None:
    first, pages = rig.scribe(FASTEST)
    first.start()
    pages.wait_for(100)
    first.pause()
    writes = pages.writes
    assert writes is not None
    second, its_pages = rig.scribe(FASTEST)
    second.write(1000)
    # As if the first had never stopped.
    alone = Worked(rig.worked.config)
    alone.pages.power_on()
    alone.write(writes + 1000)
    assert its_pages.writes == writes + 1000
    assert rig.worked.all() == alone.all()
    alone.close()


def test_it_is_checked_while_it_writes(rig: Rig) -> None:
    scribe, pages = rig.scribe(FASTEST)
    scribe.start()
    for _ in range(10):
        pages.wait_for(1)
        assert not scribe.check().wrong_pages
    scribe.pause()
    rig.worked.view[200 * PAGE] ^= 1
    assert scribe.check().first_wrong == 200


def test_without_a_rate_it_does_not_write(rig: Rig) -> None:
    scribe, pages = rig.scribe(0)
    scribe.start()
    assert scribes() == 0
    scribe.write(130)
    assert pages.writes == 130


def test_no_faster_than_its_pace_in_its_own_time(rig: Rig) -> None:
    own = GuestTime()
    own.limit(0.01)
    scribe, pages = rig.scribe(20_000, own)
    before = time.monotonic()
    scribe.start()
    pages.wait_for(20)
    # 200 a second are left.
    assert time.monotonic() - before >= 19 / 200
    own.limit(1.0)
    pages.wait_for(1000)


def test_it_rests_after_each_piece_of_work(rig: Rig) -> None:
    own = Rested()
    scribe, pages = rig.scribe(FASTEST, own)
    scribe.start()
    pages.wait_for(5000)
    scribe.pause()
    assert len(own.rests) >= 2
    assert min(own.rests) > 0


def test_a_pause_ends_its_rest(rig: Rig) -> None:
    """A fast one with a thousandth of its time rests for seconds after each burst."""
    own = GuestTime()
    own.limit(0.001)
    scribe, pages = rig.scribe(FASTEST, own)
    before = time.monotonic()
    for _ in range(3):
        written = pages.once(1)
        scribe.start()
        assert written.wait(PATIENCE)
        scribe.pause()
    assert time.monotonic() - before < 2.0


def test_where_the_header_is_lost_it_writes_nothing(rig: Rig) -> None:
    scribe, _ = rig.scribe(FASTEST)
    rig.worked.put_page(0, bytes(PAGE))
    scribe.start()
    assert scribes() == 0
    assert scribe.check().first_wrong == 0


class Losing(Watched):
    """Pages that lose their header with the first write."""

    def write(self, count: int) -> None:
        super().write(count)
        self._header[0] ^= 0xFF


def test_where_the_header_is_lost_while_it_writes_it_ends(rig: Rig) -> None:
    pages = Losing(rig.worked)
    scribe = Scribe(pages, 2000, GuestTime())
    rig.made.append(scribe)
    scribe.start()
    for thread in threading.enumerate():
        if thread.name == "scribe":
            thread.join(PATIENCE)
    assert scribes() == 0
    found = scribe.check()
    assert found.wrong_pages == 1
    assert found.first_wrong == 0
