"""The image of a function: what SAVE_VHCA_STATE writes and LOAD_VHCA_STATE reads.

    header | page ids, u64 each: table << 32 | page of that table | pages, 4096 bytes each

A full image opens a session, incremental ones follow it, the last carries FINAL. Everything is
little-endian. An image is checked whole, by :func:`parse`, before any of it is believed.
"""

import bisect
import enum
import itertools
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from precopy.connectx.context_memory import PAGE_SIZE, ContextMemory, Pages

MAGIC = b"CXVHCA\r\n"

#: magic, version, flags, sequence in the session, session, model, log_max_qp, log_max_cq, needs,
#: pages of the steering table, pages in the image, length of the image, checksum.
_HEADER = struct.Struct("<8sHHIQIBBHQQQQ")
_CHECKSUM = struct.Struct("<Q")
HEADER_BYTES = _HEADER.size
_CHECKSUM_AT = HEADER_BYTES - _CHECKSUM.size
ID_BYTES = 8

#: What kind of device an image is of: the device id of a ConnectX VF.
MODEL = 0x101E

#: Pages copied at a time: as long as the function's lock is held.
SLICE_PAGES = 1024


class ImageFlags(enum.IntFlag):
    FULL = 1
    FINAL = 2


class Needs(enum.IntFlag):
    """Capabilities without which an image can't be loaded."""

    MULTI_LOAD = 1
    TRACKING_STATE = 2


class ImageHeader(NamedTuple):
    magic: bytes
    version: int
    flags: int
    sequence: int
    session: int
    model: int
    log_max_qp: int
    log_max_cq: int
    needs: int
    state_pages: int
    page_count: int
    length: int
    checksum: int


class ImageFault(Exception):
    """Why an image is refused, with the syndrome that the firmware gives for it."""

    def __init__(self, syndrome: int, text: str) -> None:
        super().__init__(text)
        self.syndrome = syndrome


def image_bytes(pages: int) -> int:
    """Size of an image of ``pages`` pages."""
    return HEADER_BYTES + pages * (ID_BYTES + PAGE_SIZE)


def pages_in(size: int) -> int:
    """How many pages an image of at most ``size`` bytes can hold; negative if not even a header fits."""
    return (size - HEADER_BYTES) // (ID_BYTES + PAGE_SIZE)


def to_ids(memory: ContextMemory, pages: Pages) -> NDArray[np.uint64]:
    """Page numbers of this memory as ids that hold on a card with other table sizes, too."""
    starts = np.array([table.first_page for table in memory.tables.values()], dtype=np.int64)
    table = np.searchsorted(starts, pages, side="right") - 1
    # Tables without a page share their start with the next one; the last of them is meant.
    return (table.astype(np.uint64) << np.uint64(32)) | (pages - starts[table]).astype(np.uint64)


def from_ids(memory: ContextMemory, ids: NDArray[np.uint64]) -> Pages:
    """The pages of this memory that ``ids`` mean. ImageFault for one that is not here."""
    starts = np.array([table.first_page for table in memory.tables.values()], dtype=np.int64)
    counts = np.array([table.page_count for table in memory.tables.values()], dtype=np.int64)
    table = (ids >> np.uint64(32)).astype(np.int64)
    page = (ids & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    if np.any(table < 0) or np.any(table >= len(starts)):
        raise ImageFault(0x5A01, "a page of a table that this card does not have")
    if np.any(page >= counts[table]):
        raise ImageFault(0x5A02, "a page beyond the end of its table: this card has less room")
    if len(ids) > 1 and np.any(np.diff(ids.view(np.int64)) <= 0):
        raise ImageFault(0x5A03, "pages out of order")
    return starts[table] + page


def _pieces(parts: Iterable[memoryview], size: int) -> list[memoryview]:
    """The first ``size`` bytes of ``parts``."""
    found: list[memoryview] = []
    for part in parts:
        if not size:
            break
        found.append(part[:size])
        size -= len(found[-1])
    return found


class Scattered:
    """Memory in several pieces, seen as one. A range that lies in one piece is not copied."""

    def __init__(self, parts: list[memoryview], size: int) -> None:
        self._parts = _pieces(parts, size)
        self._starts = [0, *itertools.accumulate(map(len, self._parts))]
        self.size = self._starts.pop()

    def _ranges(self, offset: int, length: int) -> Iterator[memoryview]:
        """The pieces of ``length`` bytes at ``offset``, as far as there are so many."""
        index = bisect.bisect_right(self._starts, offset) - 1
        while length > 0 and 0 <= index < len(self._parts):
            into = offset - self._starts[index]
            piece = self._parts[index][into : into + length]
            yield piece
            offset, length, index = offset + len(piece), length - len(piece), index + 1

    def put(self, offset: int, data: memoryview | bytes) -> None:
        source = memoryview(data).cast("B")
        for piece in self._ranges(offset, len(source)):
            piece[:] = source[: len(piece)]
            source = source[len(piece) :]

    def view(self, offset: int, length: int) -> memoryview:
        """``length`` bytes at ``offset``: the memory itself if in one piece, else a copy of it."""
        pieces = list(self._ranges(offset, length))
        return pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))

    def in_place(self, offset: int, length: int) -> memoryview | None:
        """The memory itself, or None where it is in several pieces."""
        piece = next(self._ranges(offset, length), None)
        return piece if piece is not None and len(piece) == length else None


def finish(target: Scattered, header: ImageHeader) -> None:
    """Write ``header`` with the checksum of all that is in ``target``."""
    head = _HEADER.pack(*header._replace(checksum=0))
    target.put(0, head[:_CHECKSUM_AT] + _CHECKSUM.pack(checksum(target, header.length, head)))


def checksum(image: Scattered, length: int, head: bytes) -> int:
    """xxh3 over the header before its checksum and everything behind it."""
    digest = xxhash.xxh3_64(head[:_CHECKSUM_AT])
    step = 4 << 20
    for offset in range(HEADER_BYTES, length, step):
        digest.update(image.view(offset, min(step, length - offset)))
    return digest.intdigest()


def parse(image: Scattered) -> tuple[ImageHeader, NDArray[np.uint64]]:
    """Header and page ids of a whole and undamaged image. ImageFault says what is wrong."""
    if image.size < HEADER_BYTES:
        raise ImageFault(0x5A10, f"{image.size} bytes are less than a header")
    head = bytes(image.view(0, HEADER_BYTES))
    header = ImageHeader(*_HEADER.unpack(head))
    if header.magic != MAGIC:
        raise ImageFault(0x5A11, "not an image of a function")
    if header.length != image.size:
        raise ImageFault(0x5A12, f"cut: {image.size} of {header.length} bytes")
    if header.page_count > image.size or image_bytes(header.page_count) != header.length:
        raise ImageFault(0x5A13, "length and page count do not agree")
    if checksum(image, header.length, head) != header.checksum:
        raise ImageFault(0x5A14, "checksum: the image is damaged")
    ids = np.frombuffer(image.view(HEADER_BYTES, header.page_count * ID_BYTES), dtype="<u8")
    return header, ids.astype(np.uint64)
