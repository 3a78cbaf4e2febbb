"""The time that a guest gets of what passes, so that it can be slowed down."""

import threading
import time
from collections.abc import Callable

#: The least share: what works for 2 ms stands still for 2 s after it.
LEAST = 0.001


class GuestTime:
    """A guest's own seconds: all that pass, or the share of them that :meth:`limit` leaves it.

    Work that is paced takes :meth:`now` for its clock. Work without a pace asks for a :meth:`rest`
    after each piece, so that neither gets more than the share. Any thread may call anything.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._share = 1.0
        self._began, self._own = clock(), 0.0
        self._changed = threading.Condition()

    @property
    def share(self) -> float:
        return self._share

    def limit(self, share: float) -> None:
        """Let it have ``share`` of the time from now on. ValueError outside :data:`LEAST` to 1."""
        if not LEAST <= share <= 1.0:
            raise ValueError(f"a guest's share of its time is {LEAST} to 1, not {share}")
        with self._changed:
            self._own, self._began = self._now(), self._clock()
            self._share = share
            self._changed.notify_all()

    def _now(self) -> float:
        return self._own + (self._clock() - self._began) * self._share

    def now(self) -> float:
        """The guest's own time in seconds; it began with 0 and never goes back."""
        with self._changed:
            return self._now()

    def rest(self, busy: float, works: Callable[[], bool]) -> None:
        """Stand still for what ``busy`` seconds of work cost.

        A new limit ends it, and so does a :meth:`wake` once who asks no longer ``works``.
        """
        with self._changed:
            share = self._share
            if share < 1.0:
                self._changed.wait_for(
                    lambda: self._share != share or not works(), busy * (1.0 / share - 1.0)
                )

    def wake(self) -> None:
        """Let those who rest look whether they still work."""
        with self._changed:
            self._changed.notify_all()
