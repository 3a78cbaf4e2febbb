"""How fast a guest sends."""

#: What is due where there is no limit.
UNLIMITED = 1 << 30


class Pace:
    """``rate`` messages a second from ``now`` (in seconds) on, 0 for no limit; ``sent`` so far."""

    def __init__(self, rate: int, now: float, sent: int) -> None:
        self._rate = rate
        self._began, self._from = now, sent

    def due(self, now: float, sent: int) -> int:
        """How many messages to send now, none where it is 0 or less."""
        if not self._rate:
            return UNLIMITED
        due = int((now - self._began) * self._rate) - (sent - self._from)
        if due > max(1, self._rate // 10):
            # It was held up; what was missed is not made up for in one burst.
            self._began, self._from, due = now, sent + 1, 1
        return due
