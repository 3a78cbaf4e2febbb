"""Pages of guest memory on the wire: which they are goes in a message, what they hold in frames.

A window is up to :data:`WINDOW` pages of a region. Its message has two masks of one bit a page, lowest
bit first: pages whose content follows, and pages that are all zeroes, for which nothing follows.
"""

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from precopy.engine.channel import MAX_DATA, ChannelError
from precopy.engine.messages import Message
from precopy.pci.memory import PAGE_SIZE, GuestMemory

#: Pages of a window: 8 MiB.
WINDOW = 2048

#: Pages that a frame carries at most.
FRAME_PAGES = MAX_DATA // PAGE_SIZE

Pages = NDArray[np.uint8]
Indexes = NDArray[np.int64]


def rows(view: memoryview) -> Pages:
    """Memory as rows of one page each."""
    return np.frombuffer(view[:], dtype=np.uint8).reshape(-1, PAGE_SIZE)


def describe(region: int, first: int, sent: Indexes, zero: Indexes) -> dict[str, Any]:
    """Fields of the message ``pages``; indexes count from page ``first`` of the region."""
    return {"region": region, "first": first, "sent": _mask(sent), "zero": _mask(zero)}


def _mask(indexes: Indexes) -> str:
    bits = np.zeros(WINDOW, dtype=np.uint8)
    bits[indexes] = 1
    packed = np.packbits(bits, bitorder="little")
    return base64.b64encode(packed.tobytes().rstrip(b"\0")).decode()


def _indexes(mask: str) -> Indexes:
    try:
        packed = base64.b64decode(mask.encode(), validate=True)
    except (binascii.Error, ValueError):
        raise ChannelError("a mask of pages is no base64") from None
    if len(packed) > WINDOW // 8:
        raise ChannelError(f"a mask of pages has {len(packed)} bytes, at most {WINDOW // 8}")
    bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), bitorder="little")
    return np.flatnonzero(bits)


def is_zero(pages: Pages) -> NDArray[np.bool_]:
    """Which rows are all zeroes."""
    words = pages.view(np.uint64)
    found: NDArray[np.bool_] = words[:, 0] == 0
    maybe = np.flatnonzero(found)
    if len(maybe):
        # Most pages that begin with zeroes hold nothing else.
        found[maybe] = ~words[maybe].any(axis=1)
    return found


class PageTarget:
    """Takes pages into ``memory``. ChannelError for what can't be."""

    def __init__(self, memory: GuestMemory) -> None:
        self._rows = [rows(region.view) for region in memory.regions]
        #: Which pages have ever been given content: any other reads as zeroes.
        self._touched = [np.zeros(len(each), dtype=np.bool_) for each in self._rows]
        self._region = 0
        #: Whether the next frame's pages are in their place already.
        self._placed = False
        self._pages: Indexes = np.empty(0, dtype=np.int64)

    @property
    def missing(self) -> int:
        """Pages whose content has been announced and has not come."""
        return len(self._pages)

    def announce(self, fields: Message) -> None:
        """A message ``pages``."""
        region, first = fields["region"], fields["first"]
        if region >= len(self._rows):
            raise ChannelError(f"pages of region {region}; there are {len(self._rows)}")
        if first >= len(self._rows[region]):
            raise ChannelError(f"page {first} of region {region} is beyond its end")
        sent, zero = (_indexes(fields[name]) + first for name in ("sent", "zero"))
        last = (
            max(int(each[-1]) for each in (sent, zero) if len(each)) if len(sent) + len(zero) else 0
        )
        if last >= len(self._rows[region]):
            raise ChannelError(
                f"page {last} of region {region}, which has {len(self._rows[region])}"
            )
        self._region, self._pages = region, sent
        # A page that was never touched costs no memory for being zero.
        touched = zero[self._touched[region][zero]]
        self._rows[region][touched] = 0
        self._touched[region][sent] = True

    def place(self, length: int) -> memoryview | None:
        """The memory itself for the next frame, of ``length`` bytes, where that is one run of pages."""
        pages = self._next(length)
        first, last = int(pages[0]), int(pages[-1])
        if last - first + 1 != len(pages):
            return None
        self._placed = True
        return memoryview(self._rows[self._region][first : last + 1].data).cast("B")

    def _next(self, length: int) -> Indexes:
        count = length // PAGE_SIZE
        if length % PAGE_SIZE or not 0 < count <= len(self._pages):
            text = f"{length} bytes of guest memory, {len(self._pages)} pages are expected"
            raise ChannelError(text)
        return self._pages[:count]

    def take(self, payload: memoryview) -> None:
        """A frame of pages has come."""
        pages = self._next(len(payload))
        count = len(pages)
        self._pages = self._pages[count:]
        if self._placed:
            self._placed = False
            return
        content, memory = rows(payload), self._rows[self._region]
        first, last = int(pages[0]), int(pages[-1])
        if last - first + 1 == count:
            memory[first : last + 1] = content
        else:
            memory[pages] = content
