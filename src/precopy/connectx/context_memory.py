"""Context memory: where a function keeps its contexts, tracked by page.

All that a function knows lives here and nowhere else, so that a save is a copy of pages and a load
puts them back, whatever the number of contexts. One address space a function, divided into tables
of equal slots; pages that were never written take no memory.
"""

import contextlib
import mmap
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PAGE_SIZE = 4096

#: Linux; the mmap module has no name for it.
_MAP_NORESERVE = 0x4000
_MADV_POPULATE_WRITE = 23

#: Pages in a row from which on memory is asked for ahead.
_LONG_RUN = 64

Pages = NDArray[np.int64]


class TableSpec(NamedTuple):
    """A table: ``slots`` of ``slot_bytes`` bytes each (a divisor or a multiple of a page)."""

    slot_bytes: int
    slots: int


class Table:
    """Slots of one kind of context, numbered from 0. A slot starts as zeroes."""

    def __init__(self, memory: "ContextMemory", base: int, spec: TableSpec) -> None:
        self.base = base
        self.slot_bytes, self.slots = spec
        self._memory = memory
        self._first_page = base // PAGE_SIZE
        #: Every byte of the table as rows of slots: for work on all slots at once, reading only.
        self.rows: NDArray[np.uint8] = memory.bytes[base : base + self.slots * self.slot_bytes]
        self.rows = self.rows.reshape(self.slots, self.slot_bytes)
        self.rows.flags.writeable = False

    def slot(self, number: int) -> memoryview:
        """Slot ``number``, for reading. IndexError outside the table."""
        if not 0 <= number < self.slots:
            raise IndexError(f"no slot {number} among {self.slots}")
        start = self.base + number * self.slot_bytes
        return self._memory.view[start : start + self.slot_bytes]

    def edit(self, number: int) -> memoryview:
        """Slot ``number``, for writing: its pages count as written from now."""
        slot = self.slot(number)
        start = self.base + number * self.slot_bytes
        self._memory.touch(start, self.slot_bytes)
        return slot

    def present_slots(self) -> Pages:
        """Numbers of the slots on pages ever written, ascending; all others are zeroes."""
        pages = self._memory.present_pages()
        last = self._first_page + self.page_count
        low, high = np.searchsorted(pages, (self._first_page, last))
        pages = pages[low:high] - self._first_page
        if self.slot_bytes >= PAGE_SIZE:
            found: Pages = np.unique(pages * PAGE_SIZE // self.slot_bytes)
            return found
        per_page = PAGE_SIZE // self.slot_bytes
        slots: Pages = (pages[:, None] * per_page + np.arange(per_page)).ravel()
        kept: Pages = slots[slots < self.slots]
        return kept

    def flagged_slots(self, byte: int, flag: int) -> Pages:
        """Numbers of the slots whose byte ``byte`` has ``flag`` set, ascending."""
        slots = self.present_slots()
        kept: Pages = slots[(self.rows[slots, byte] & flag) != 0]
        return kept

    @property
    def first_page(self) -> int:
        """Its first page, among those of the whole memory."""
        return self._first_page

    @property
    def page_count(self) -> int:
        return -(-self.slots * self.slot_bytes // PAGE_SIZE)

    def edit_bytes(self, offset: int, length: int) -> memoryview:
        """``length`` bytes at byte ``offset`` of the table, for writing (long runs of slots)."""
        start = self.base + offset
        if offset < 0 or offset + length > self.slots * self.slot_bytes:
            raise IndexError(f"bytes {offset}+{length} are outside the table")
        self._memory.touch(start, length)
        return self._memory.view[start : start + length]


class ContextMemory:
    """The tables of one function, and which of their pages are in use and which have changed."""

    def __init__(self, tables: Mapping[str, TableSpec]) -> None:
        size = sum(self._span(spec) for spec in tables.values())
        # Reserved, not committed: a page costs memory once it is written.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        self._map = mmap.mmap(-1, max(size, PAGE_SIZE), flags=flags)
        with contextlib.suppress(OSError):  # User-Mode Linux has no huge pages
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self.view = memoryview(self._map)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, dtype=np.uint8)
        #: The same bytes as rows of pages.
        self.pages: NDArray[np.uint8] = self.bytes.reshape(-1, PAGE_SIZE)
        self._present = np.zeros(len(self.pages), dtype=np.bool_)
        self._dirty = np.zeros(len(self.pages), dtype=np.bool_)
        #: How often it has been cleared: what was known of its pages before is void.
        self.clearings = 0
        self.tables: dict[str, Table] = {}
        base = 0
        for name, spec in tables.items():
            self.tables[name] = Table(self, base, spec)
            base += self._span(spec)

    @staticmethod
    def _span(spec: TableSpec) -> int:
        return -(-spec.slot_bytes * spec.slots // PAGE_SIZE) * PAGE_SIZE

    def touch(self, start: int, length: int) -> None:
        """Note that ``length`` bytes at address ``start`` are about to be written."""
        first, last = start // PAGE_SIZE, (start + length - 1) // PAGE_SIZE
        if first == last:
            self._present[first] = self._dirty[first] = True
        else:
            self._present[first : last + 1] = True
            self._dirty[first : last + 1] = True

    def present_pages(self) -> Pages:
        """Numbers of the pages ever written, ascending."""
        return np.flatnonzero(self._present)

    def dirty_pages(self) -> Pages:
        """Numbers of the pages written since they were last taken, ascending."""
        return np.flatnonzero(self._dirty)

    def mark_all_dirty(self) -> None:
        """Every page ever written counts as dirty: a full save begins."""
        self._dirty[:] = self._present

    def dirty_count(self) -> int:
        return int(np.count_nonzero(self._dirty))

    def present_count(self) -> int:
        return int(np.count_nonzero(self._present))

    def take(self, pages: Pages) -> None:
        """Forget that ``pages`` are dirty: their present content has been saved."""
        self._dirty[pages] = False

    def restore(self, pages: Pages, content: NDArray[np.uint8]) -> None:
        """Put ``content`` (rows of pages) in the place of ``pages``; they count as written."""
        if len(pages) > _LONG_RUN and int(pages[-1] - pages[0]) == len(pages) - 1:
            self._populate(int(pages[0]), len(pages))
            self.pages[pages[0] : pages[-1] + 1] = content
        else:
            self.pages[pages] = content
        self._present[pages] = True
        self._dirty[pages] = True

    def _populate(self, first: int, count: int) -> None:
        """Ask for memory at once: a fault for each page costs far more than filling it."""
        if self._present[first]:
            return
        with contextlib.suppress(OSError):  # Linux before 5.14 does not know it
            self._map.madvise(_MADV_POPULATE_WRITE, first * PAGE_SIZE, count * PAGE_SIZE)

    def clear(self) -> None:
        """Back to zeroes, as after a reset; the memory is given back."""
        self._map.madvise(mmap.MADV_DONTNEED)
        self._present[:] = False
        self._dirty[:] = False
        self.clearings += 1
