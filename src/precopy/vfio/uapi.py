"""Constants and structures of include/uapi/linux/vfio.h that migration uses (Linux 7.3).

Structures cross ioctls in native byte order; each class here packs to and parses from exactly the
bytes that the kernel sees, without the ``argsz``/``flags`` header of VFIO_DEVICE_FEATURE, which
:func:`feature_header` writes.
"""

import enum
import struct
from typing import NamedTuple, Self

VFIO_TYPE = ord(";")
VFIO_BASE = 100


def _io(offset: int) -> int:
    """``_IO(VFIO_TYPE, VFIO_BASE + offset)``: VFIO's ioctl numbers carry no size."""
    return VFIO_TYPE << 8 | (VFIO_BASE + offset)


VFIO_DEVICE_RESET = _io(11)
VFIO_DEVICE_FEATURE = _io(17)
VFIO_MIG_GET_PRECOPY_INFO = _io(21)


class Feature(enum.IntEnum):
    """``VFIO_DEVICE_FEATURE_*`` indexes that concern migration."""

    MIGRATION = 1
    MIG_DEVICE_STATE = 2
    DMA_LOGGING_START = 6
    DMA_LOGGING_STOP = 7
    DMA_LOGGING_REPORT = 8
    MIG_DATA_SIZE = 9
    MIG_PRECOPY_INFO_V2 = 12


class FeatureFlags(enum.IntFlag):
    """The method bits in ``vfio_device_feature.flags``, above the 16 bits of the index."""

    GET = 1 << 16
    SET = 1 << 17
    PROBE = 1 << 18


FEATURE_INDEX_MASK = 0xFFFF

#: Which methods each feature has, and the size in bytes of its payload.
FEATURE_METHODS: dict[Feature, tuple[FeatureFlags, int]] = {
    Feature.MIGRATION: (FeatureFlags.GET, 8),
    Feature.MIG_DEVICE_STATE: (FeatureFlags.GET | FeatureFlags.SET, 8),
    Feature.DMA_LOGGING_START: (FeatureFlags.SET, 24),
    Feature.DMA_LOGGING_STOP: (FeatureFlags.SET, 0),
    Feature.DMA_LOGGING_REPORT: (FeatureFlags.GET, 32),
    Feature.MIG_DATA_SIZE: (FeatureFlags.GET, 8),
    Feature.MIG_PRECOPY_INFO_V2: (FeatureFlags.SET, 0),
}

#: The core accepts as many ranges as fit in a page (VFIO_DEVICE_FEATURE_DMA_LOGGING_START).
MAX_LOGGING_RANGES = 4096 // 16

_HEADER = struct.Struct("=II")


def feature_header(feature: Feature, methods: FeatureFlags, payload: int) -> bytes:
    """``struct vfio_device_feature`` before a payload of ``payload`` bytes."""
    return _HEADER.pack(_HEADER.size + payload, int(feature) | int(methods))


class MigrationFeature(NamedTuple):
    """``struct vfio_device_feature_migration`` (feature 1)."""

    flags: int

    def pack(self) -> bytes:
        return struct.pack("=Q", *self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(*struct.unpack_from("=Q", data))


class MigState(NamedTuple):
    """``struct vfio_device_feature_mig_state`` (feature 2); ``data_fd`` is -1 where there is none."""

    device_state: int
    data_fd: int

    def pack(self) -> bytes:
        return struct.pack("=Ii", *self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(*struct.unpack_from("=Ii", data))


class LoggingControl(NamedTuple):
    """``struct vfio_device_feature_dma_logging_control`` (feature 6); ``ranges`` is an address."""

    page_size: int
    num_ranges: int
    ranges: int

    def pack(self) -> bytes:
        return struct.pack("=QIIQ", self.page_size, self.num_ranges, 0, self.ranges)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        page_size, num_ranges, _, ranges = struct.unpack_from("=QIIQ", data)
        return cls(page_size, num_ranges, ranges)


class LoggingRange(NamedTuple):
    """``struct vfio_device_feature_dma_logging_range``: bytes from ``iova`` on."""

    iova: int
    length: int

    def pack(self) -> bytes:
        return struct.pack("=QQ", *self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(*struct.unpack_from("=QQ", data))


class LoggingReport(NamedTuple):
    """``struct vfio_device_feature_dma_logging_report`` (feature 8); ``bitmap`` is an address."""

    iova: int
    length: int
    page_size: int
    bitmap: int

    def pack(self) -> bytes:
        return struct.pack("=QQQQ", *self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(*struct.unpack_from("=QQQQ", data))


class DataSize(NamedTuple):
    """``struct vfio_device_feature_mig_data_size`` (feature 9), in bytes."""

    stop_copy_length: int

    def pack(self) -> bytes:
        return struct.pack("=Q", *self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(*struct.unpack_from("=Q", data))


class PrecopyInfoFlags(enum.IntFlag):
    """Flags of ``struct vfio_precopy_info``; defined once MIG_PRECOPY_INFO_V2 is set."""

    REINIT = 1


class PrecopyInfoStruct(NamedTuple):
    """``struct vfio_precopy_info`` of VFIO_MIG_GET_PRECOPY_INFO, ``argsz`` included."""

    argsz: int
    flags: int
    initial_bytes: int
    dirty_bytes: int

    def pack(self) -> bytes:
        return struct.pack("=IIQQ", *self)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        return cls(*struct.unpack_from("=IIQQ", data))


PRECOPY_INFO_SIZE = struct.calcsize("=IIQQ")
