"""The thread of a guest that writes to its memory."""

import threading
import time

from precopy.guest.pace import Pace
from precopy.guest.pages import BATCH, MemoryCheck, Pages
from precopy.guest.share import GuestTime

#: How long it works at a time, in seconds, before it looks whether it is to stop or to rest.
_BURST = 0.002

#: How long it waits where nothing is due, in seconds.
_TICK = 0.002


class Scribe:
    """Writes ``rate`` pages a second of the guest's time (0: none) while it runs.

    It goes on from what the memory says. It stops between two writes only, with all that it has
    done in the memory. Takes ``pages`` over: :meth:`close` releases them.
    """

    def __init__(self, pages: Pages, rate: int, own_time: GuestTime) -> None:
        self._pages, self._rate, self._time = pages, rate, own_time
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def writes(self) -> int:
        """Pages written since power-on."""
        return self._pages.writes or 0

    def power_on(self) -> None:
        """Put into the memory what is there from the beginning."""
        self._pages.power_on()

    def start(self) -> None:
        """Write on, unless it does. Where the memory has lost its header, which a check tells, it
        does not know how to, and writes nothing."""
        writes = self._pages.writes
        if self._thread is not None or not self._rate or writes is None:
            return
        pace = Pace(self._rate, self._time.now(), writes)
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(pace,), name="scribe", daemon=True)
        self._thread.start()

    def pause(self) -> None:
        """On return nothing is written any more, except by :meth:`write`."""
        self._stop.set()
        self._time.wake()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _works(self) -> bool:
        return not self._stop.is_set()

    def _run(self, pace: Pace) -> None:
        while self._works():
            with self._lock:
                began = time.monotonic()
                writes = self._pages.writes
                if writes is None:
                    return
                due = pace.due(self._time.now(), writes)
                while due > 0 and time.monotonic() - began < _BURST:
                    count = min(due, BATCH)
                    self._pages.write(count)
                    due -= count
                busy = time.monotonic() - began
            self._time.rest(busy, self._works)
            if due <= 0:
                self._stop.wait(_TICK)

    def write(self, count: int) -> None:
        """The next ``count`` writes, in the calling thread, running or not."""
        while count > 0:
            with self._lock:
                self._pages.write(min(count, BATCH))
            count -= BATCH

    def check(self) -> MemoryCheck:
        """Compare all pages with what they have to hold; writes wait for it."""
        with self._lock:
            return self._pages.check()

    def close(self) -> None:
        """Stop, and let go of the memory."""
        self.pause()
        self._pages.release()
