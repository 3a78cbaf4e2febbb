"""The records of an mlx5 migration stream (drivers/vfio/pci/mlx5/cmd.h, Linux 6.2 and later).

A stream is records only: a header of 16 bytes, little-endian, then ``size`` bytes.
"""

import enum
import struct
from typing import NamedTuple, Self

_HEADER = struct.Struct("<QII")

HEADER_SIZE = _HEADER.size

#: LOAD_VHCA_STATE takes a 32-bit size, so no image can be larger.
MAX_IMAGE_SIZE = (1 << 32) - 1

#: SAVE_VHCA_STATE likewise, in whole pages.
MAX_SAVE_SIZE = (1 << 32) - 4096


class Tag(enum.IntEnum):
    """What a record holds."""

    #: An image of the firmware's, to be loaded.
    FW_DATA = 0
    #: One le64: how large the final image is expected to be, so that a target can allocate ahead.
    STOP_COPY_SIZE = 1


class RecordFlags(enum.IntFlag):
    """Flags of a record; a target skips one that is OPTIONAL and that it does not know."""

    OPTIONAL = 1


class RecordHeader(NamedTuple):
    """``struct mlx5_vf_migration_header``: ``size`` counts the bytes behind the header."""

    size: int
    flags: int
    tag: int

    def pack(self) -> bytes:
        return _HEADER.pack(*self)

    @classmethod
    def parse(cls, data: bytes | bytearray | memoryview) -> Self:
        return cls(*_HEADER.unpack_from(data))


STOP_COPY_SIZE_DATA = struct.Struct("<Q")

#: Header and payload of the size record, which opens every stream.
SIZE_RECORD_BYTES = HEADER_SIZE + STOP_COPY_SIZE_DATA.size


def size_record(stop_copy_size: int) -> bytes:
    """The record that announces the final image's expected size in bytes."""
    header = RecordHeader(STOP_COPY_SIZE_DATA.size, RecordFlags.OPTIONAL, Tag.STOP_COPY_SIZE)
    return header.pack() + STOP_COPY_SIZE_DATA.pack(stop_copy_size)


class RecordCounter:
    """Counts the records that begin in a stream, fed in pieces of any size."""

    def __init__(self) -> None:
        self._header = b""
        self._skip = 0
        self._count = 0

    def __call__(self, piece: bytes | bytearray | memoryview) -> int:
        """Records begun so far, ``piece`` included."""
        at, view = 0, memoryview(piece)
        while at < len(view):
            if self._skip:
                step = min(self._skip, len(view) - at)
                self._skip -= step
            else:
                step = min(HEADER_SIZE - len(self._header), len(view) - at)
                self._count += not self._header
                self._header += bytes(view[at : at + step])
                if len(self._header) == HEADER_SIZE:
                    self._skip = RecordHeader.parse(self._header).size
                    self._header = b""
            at += step
        return self._count
