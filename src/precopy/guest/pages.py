"""The memory that a guest works on: what each of its pages holds follows from the memory itself.

    header page | version table | data page 0 | data page 1 | ...

The table has a word of 32 bits for each data page: how often it was written (31 bits), and whether
it holds data (bit 0) or zeroes. The header has the number of all writes so far, which is also the
state of the generator that draws them: write n goes to a page, and clears it or not, as the seed and
n say. So the whole region can be checked, and written on, by whoever has a copy of it; that number is
in the guest's control page too, so that a copy which is older as a whole is found. Page n of the
data, at word w of the table, holds 512 words: a key made of the seed, n and w, plus a constant for
each place.

Nothing here reads a page that was never written: that would give it a page of the host's memory.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from precopy.guest.layout import PAGE, WRITES, WRITES_AT, WorkloadConfig
from precopy.pci.memory import GuestMemory

Words = npt.NDArray[np.uint64]

#: Pages that are made at a time: what fits a CPU's cache.
BATCH = 64

MAGIC = 0x7363726962653031
_ALL_ONES = (1 << 64) - 1
#: magic, writes so far, their complement
HEADER = struct.Struct("<QQQ")

_ENTRY = np.dtype("<u4")
#: Entries of one page of the table.
_ENTRIES = PAGE // _ENTRY.itemsize
_WORD = np.dtype("<u8")
_WORDS = PAGE // _WORD.itemsize
_DATA = np.uint32(1)
#: Writes after which a page's count begins anew.
_COUNTS = 1 << 31

# splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)

_HALF = np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)


def _mix(values: Words) -> Words:
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


def _stream(seed: int, kind: int, count: int) -> Words:
    start = np.array([seed << 8 | kind], dtype=np.uint64)
    return _mix(_mix(start) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


class MemoryCheck(NamedTuple):
    """``pages`` that were checked, how many are wrong, and the first of those, counted from the
    beginning of the region (None where all are right)."""

    pages: int
    wrong_pages: int
    first_wrong: int | None


class Pages:
    """The region ``index`` of ``memory``, used as ``config`` says; region 0 has the control page.

    One thread at a time. :meth:`release` it before the memory is closed.
    """

    def __init__(self, memory: GuestMemory, index: int, config: WorkloadConfig) -> None:
        self._memory, self._index = memory, index
        view = memory.regions[index].view
        self.pages = config.memory // PAGE
        #: Pages of the table, and of data.
        self.table_pages = -(-(self.pages - 1) // (_ENTRIES + 1))
        self.data_pages = self.pages - 1 - self.table_pages
        #: The first of them hold data at power-on; the first of those are written.
        self.filled = -(-self.data_pages * config.fill // 100)
        self.working = -(-self.filled * config.working // 100)
        self._zeros = np.uint64(config.zeros)
        data_at = (1 + self.table_pages) * PAGE
        self._control, self._header = memory.regions[0].view[:PAGE], view[:PAGE]
        self._table = np.frombuffer(view[PAGE:data_at], _ENTRY)
        self._data = np.frombuffer(view[data_at : self.pages * PAGE], _WORD).reshape(-1, _WORDS)
        self._draws, self._keys = _stream(config.seed, 0, 1), _stream(config.seed, 1, 1)
        self._places = _stream(config.seed, 2, _WORDS)
        self._block = np.empty((BATCH, _WORDS), _WORD)

    def release(self) -> None:
        """Let go of the memory; nothing else may be called after it."""
        self._control.release()
        self._header.release()
        del self._table, self._data

    # --- The model ----------------------------------------------------------------------------

    def _key(self, pages: Words, entries: npt.NDArray[np.uint32]) -> Words:
        """The keys of data pages ``pages`` at these words of the table."""
        return _mix(_mix(self._keys + pages * _GOLDEN) + entries.astype(np.uint64) * _GOLDEN)

    def _draw(self, first: int, count: int) -> tuple[Words, npt.NDArray[np.bool_]]:
        """Where writes ``first`` to ``first + count`` go, and whether each clears its page."""
        numbers = np.arange(count, dtype=np.uint64) + np.uint64(first)
        drawn = _mix(self._draws + numbers * _GOLDEN)
        pages = ((drawn >> _HALF) * np.uint64(self.working)) >> _HALF
        cleared = ((drawn & _LOW) * np.uint64(100)) >> _HALF < self._zeros
        return pages, cleared

    @property
    def writes(self) -> int | None:
        """How many writes there have been; None where the header is none."""
        magic, writes, complement = HEADER.unpack_from(self._header, 0)
        return int(writes) if (magic, writes ^ complement) == (MAGIC, _ALL_ONES) else None

    def _put_writes(self, writes: int) -> None:
        writes &= _ALL_ONES
        HEADER.pack_into(self._header, 0, MAGIC, writes, writes ^ _ALL_ONES)
        WRITES.pack_into(self._control, WRITES_AT, writes)

    # --- Writing ------------------------------------------------------------------------------

    def power_on(self) -> None:
        """Put in what is there from the beginning."""
        self._put_writes(0)
        entry = np.uint32(1 << 1) | _DATA
        for first in range(0, self.filled, BATCH):
            end = min(first + BATCH, self.filled)
            pages = np.arange(first, end, dtype=np.uint64)
            self._table[first:end] = entry
            keys = self._key(pages, self._table[first:end])
            np.add(keys[:, None], self._places, out=self._data[first:end])

    def write(self, count: int) -> None:
        """The next ``count`` writes, up to :data:`BATCH`; of two to one page the second is made.

        RuntimeError where the memory does not say which are the next.
        """
        before = self.writes
        if before is None:
            raise RuntimeError("the memory that the guest works on has no header")
        drawn, clears = self._draw(before, count)
        # The last write to a page is the first in the reversed order, which is the one np.unique tells.
        pages, last, times = np.unique(drawn[::-1], return_index=True, return_counts=True)
        cleared = clears[::-1][last]
        counts = (self._table[pages] >> _DATA) + times.astype(np.uint32)
        entries = (counts << _DATA) | (~cleared).astype(np.uint32)
        self._table[pages] = entries
        block = self._block[: len(pages)]
        np.add(self._key(pages, entries)[:, None], self._places, out=block)
        block[cleared] = 0
        self._data[pages] = block
        self._put_writes(before + count)

    # --- Checking -----------------------------------------------------------------------------

    def _present(self) -> npt.NDArray[np.bool_]:
        """Which pages of the region were ever written."""
        present = np.zeros(self.pages, np.bool_)
        for extent in self._memory.extents():
            if extent.region == self._index:
                first = extent.offset // PAGE
                present[first : -(-(extent.offset + extent.length) // PAGE)] = True
        return present

    def check(self) -> MemoryCheck:
        """Compare every page of the region with what it has to hold."""
        present = self._present()
        wrong = np.zeros(self.pages, np.bool_)
        base = 1 + self.table_pages
        counted = 0
        for first in range(0, self.data_pages, _ENTRIES):
            end = min(first + _ENTRIES, self.data_pages)
            table_page = 1 + first // _ENTRIES
            there = present[base + first : base + end]
            if present[table_page]:
                entries = self._table[first:end]
                counted += int((entries >> _DATA).sum(dtype=np.uint64))
                # Beyond the last page's entry there is nothing.
                wrong[table_page] = self._table[end : table_page * _ENTRIES].any()
            else:
                entries = np.zeros(end - first, _ENTRY)
            told = wrong[base + first : base + end]
            holds = (entries & _DATA).astype(np.bool_)
            told[holds & ~there] = True
            for a, b in _runs(there):
                told[a:b] = self._differ(first + a, entries[a:b], holds[a:b])
        writes = self.writes
        (also,) = WRITES.unpack_from(self._control, WRITES_AT)
        wrong[0] = writes != also or any(self._header[HEADER.size :])
        # The counts of pages that are right can be wrong all the same, where the pages are cleared.
        if writes is not None and not wrong.any():
            wrong[0] = (writes + self.filled - counted) % _COUNTS != 0
        count = int(np.count_nonzero(wrong))
        return MemoryCheck(self.pages, count, int(wrong.argmax()) if count else None)

    def _differ(
        self, first: int, entries: npt.NDArray[np.uint32], holds: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        """Which of the data pages from ``first`` on are not what ``entries`` say; one batch at most."""
        end = first + len(entries)
        block = self._block[: len(entries)]
        keys = self._key(np.arange(first, end, dtype=np.uint64), entries)
        np.add(keys[:, None], self._places, out=block)
        if not holds.all():
            block[~holds] = 0
        differs = block != self._data[first:end]
        if not differs.any():
            return np.zeros(len(entries), np.bool_)
        found: npt.NDArray[np.bool_] = differs.any(axis=1)
        return found


def _runs(flags: npt.NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where ``flags`` are set: beginnings and ends of runs, of one batch at most each."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)).tolist()
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        for at in range(begin, end, BATCH):
            yield at, min(at + BATCH, end)
