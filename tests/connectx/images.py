"""Images as a test reads and writes them: from the description of the format, not by its code."""

import struct
from dataclasses import dataclass
from typing import Any, Self

import xxhash

from precopy.connectx.config import AdapterConfig
from precopy.connectx.context_memory import TableSpec
from precopy.connectx.migration import Migration
from precopy.connectx.vhca import Vhca

PAGE = 4096
HEADER = struct.Struct("<8sHHIQIBBHQQQQ")
NAMES = [
    "magic",
    "version",
    "flags",
    "sequence",
    "session",
    "model",
    "log_max_qp",
    "log_max_cq",
    "needs",
    "state_pages",
    "page_count",
    "length",
    "checksum",
]

FULL, FINAL = 1, 2

#: Tables of a small function: 4, 5 and 0 pages.
TABLES = {
    "small": TableSpec(64, 250),
    "page": TableSpec(4096, 5),
    "steering": TableSpec(4096, 0),
}


@dataclass
class Image:
    """The parts of an image."""

    fields: dict[str, Any]
    ids: list[int]
    pages: list[bytes]

    @classmethod
    def parse(cls, data: bytes) -> Self:
        fields = dict(zip(NAMES, HEADER.unpack_from(data), strict=True))
        count, at = fields["page_count"], HEADER.size
        ids = list(struct.unpack_from(f"<{count}Q", data, at))
        at += 8 * count
        pages = [data[at + n * PAGE : at + (n + 1) * PAGE] for n in range(count)]
        assert at + count * PAGE == len(data) == fields["length"]
        return cls(fields, ids, pages)

    def pack(self, **changes: Any) -> bytes:
        """The image with ``changes`` to its header; length, count and checksum as they have to be,
        unless they are among the changes."""
        body = struct.pack(f"<{len(self.ids)}Q", *self.ids) + b"".join(self.pages)
        fields = {
            **self.fields,
            "page_count": len(self.ids),
            "length": HEADER.size + len(body),
            **changes,
        }
        head = HEADER.pack(*(fields[name] for name in NAMES))[:-8]
        checksum = changes.get("checksum", xxhash.xxh3_64_intdigest(head + body))
        return head + struct.pack("<Q", checksum) + body


class Card:
    """One small function and its migration, without commands: buffers are plain bytes."""

    def __init__(self, tables: dict[str, TableSpec] | None = None, **config: Any) -> None:
        self.vhca = Vhca(7, AdapterConfig(**config), tables or TABLES)
        self.migration = Migration(self.vhca)

    def write(self, table: str, number: int, value: int) -> None:
        slot = self.vhca.table(table).edit(number)
        slot[:] = bytes([value]) * len(slot)

    def stop(self) -> None:
        self.migration.suspend(initiator=True)
        self.migration.suspend(initiator=False)

    def save(
        self,
        *,
        incremental: bool = True,
        track: bool = True,
        size: int | None = None,
        pieces: list[int] | None = None,
    ) -> tuple[bytes, int]:
        """The image and what the next save needs; into a buffer of ``size`` (as much as it takes),
        in ``pieces``."""
        if size is None:
            size = self.migration.query(incremental, False)[0]
        buffer = bytearray(size)
        parts, at = [], 0
        for length in pieces or [size]:
            parts.append(memoryview(buffer)[at : at + length])
            at += length
        count, following = self.migration.save(parts, size, incremental, track)
        assert count <= size
        return bytes(buffer[:count]), following

    def load(self, data: bytes, pieces: list[int] | None = None) -> None:
        view = memoryview(data)
        parts, at = [], 0
        for length in pieces or [len(data)]:
            parts.append(view[at : at + length])
            at += length
        self.migration.load(parts, len(data))

    def memory(self) -> dict[str, bytes]:
        """All that it holds, table by table."""
        return {name: table.rows.tobytes() for name, table in self.vhca.memory.tables.items()}

    def pages(self) -> list[int]:
        found: list[int] = self.vhca.memory.present_pages().tolist()
        return found
