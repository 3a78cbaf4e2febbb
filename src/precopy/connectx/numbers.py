"""Which numbers of a table, and which runs of translation entries, are free.

Nothing here migrates: it is derived from the slots, anew after a load.
"""

import bisect
import heapq
from collections.abc import Iterable


class Numbers:
    """Free numbers from ``first`` up to, not including, ``limit``; the lowest is given first."""

    def __init__(self, first: int, limit: int, used: Iterable[int] = ()) -> None:
        self._limit = limit
        self._next = first
        self._freed: list[int] = []
        for number in sorted(used):
            self._freed.extend(range(self._next, number))
            self._next = max(self._next, number + 1)

    def get(self) -> int | None:
        """A free number, or None when all are taken."""
        if self._freed:
            return heapq.heappop(self._freed)
        if self._next >= self._limit:
            return None
        self._next += 1
        return self._next - 1

    def put(self, number: int) -> None:
        heapq.heappush(self._freed, number)


class Runs:
    """Free runs of entries 0 to ``limit`` - 1, first fit."""

    def __init__(self, limit: int, used: Iterable[tuple[int, int]] = ()) -> None:
        self._free: list[tuple[int, int]] = []
        start = 0
        for first, count in sorted(used):
            if first > start:
                self._free.append((start, first - start))
            start = max(start, first + count)
        if start < limit:
            self._free.append((start, limit - start))

    def get(self, count: int) -> int | None:
        """First entry of a run of ``count``, or None where there is no such run."""
        for index, (start, length) in enumerate(self._free):
            if length >= count:
                if length == count:
                    del self._free[index]
                else:
                    self._free[index] = start + count, length - count
                return start
        return None

    def put(self, start: int, count: int) -> None:
        if not count:
            return
        index = bisect.bisect(self._free, (start, 0))
        self._free.insert(index, (start, count))
        # Neighbours become one run again.
        for left in (index, index - 1):
            if 0 <= left < len(self._free) - 1:
                (first, length), (second, more) = self._free[left], self._free[left + 1]
                if first + length == second:
                    self._free[left : left + 2] = [(first, length + more)]
