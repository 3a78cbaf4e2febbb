"""The faulty device below the contract: its feature call, its config space, and what makes it work."""

import ctypes
import errno
import struct
from collections.abc import Sequence
from pathlib import Path

from precopy.vfio.errors import refuse
from precopy.vfio.face import NUM_REGIONS, RegionFlags, RegionIndex, RegionInfo
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import (
    FEATURE_METHODS,
    Feature,
    FeatureFlags,
    LoggingControl,
    LoggingRange,
    MigState,
)
from tests.conformance.faulty import FaultyDevice

E, S, R, SC, RES, RP, PC, PCP = DeviceState
GET, SET, PROBE = FeatureFlags
_HEADER = 8
_KNOWN = 0x7FFFF
LOGGING_RANGE = 16


def _may(address: int, access: str) -> bool:
    """Whether this process may read ("r") or write ("w") at ``address``."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        bounds, permissions, *_ = line.split()
        first, end = (int(each, 16) for each in bounds.split("-"))
        if first <= address < end:
            return access in permissions
    return False


class FaultyRaw:
    """VFIO_DEVICE_FEATURE as the kernel's core has it."""

    def __init__(self, device: FaultyDevice) -> None:
        self._device, self._has = device, device.has

    def feature(self, argsz: int, flags: int, data: bytes) -> bytes:
        has, device = self._has, self._device
        if argsz < _HEADER:
            if has("a short header is taken"):
                return data
            raise refuse(errno.EINVAL, "argsz")
        if flags & ~_KNOWN and not has("undefined flag bits are taken"):
            raise refuse(errno.EINVAL, "flags")
        index, methods = flags & 0xFFFF, FeatureFlags(flags & 0x70000)
        if methods == GET | SET:
            if not has("GET and SET at once is a SET"):
                raise refuse(errno.EINVAL, "two methods")
            methods = SET
        if index not in FEATURE_METHODS or index not in device.features():
            wrong = has("an unknown feature is EINVAL")
            raise refuse(errno.EINVAL if wrong else errno.ENOTTY, "no such feature")
        feature = Feature(index)
        known, size = FEATURE_METHODS[feature]
        if has("MIGRATION can be set") and feature is Feature.MIGRATION:
            known |= SET
        if has("DMA_LOGGING_REPORT can't be got") and feature is Feature.DMA_LOGGING_REPORT:
            known = FeatureFlags(0)
        if methods & (GET | SET) & ~known and not (
            methods & PROBE and has("PROBE is true for methods that are not there")
        ):
            raise refuse(errno.EINVAL, "no such method")
        if methods & PROBE:
            if has("PROBE wants a payload") and argsz < _HEADER + size:
                raise refuse(errno.EINVAL, "argsz")
            return b""
        if not methods:
            if has("no method is a PROBE"):
                return b""
            raise refuse(errno.EINVAL, "no method")
        if (argsz < _HEADER + size and not has("a short payload is taken")) or (
            argsz > _HEADER + size and has("room to spare is refused")
        ):
            raise refuse(errno.EINVAL, "argsz")
        return self._call(feature, methods, data.ljust(size, b"\0"))

    def _call(self, feature: Feature, method: FeatureFlags, data: bytes) -> bytes:
        device = self._device
        if feature is Feature.MIGRATION:
            return struct.pack("=Q", int(device.migration_flags)) + data[8:]
        if feature is Feature.MIG_DATA_SIZE:
            return struct.pack("=Q", device.data_size())
        if feature is Feature.MIG_PRECOPY_INFO_V2:
            if self._has("INFOv2 reads its payload") and any(data):
                raise refuse(errno.EINVAL, "a payload")
            device.enable_precopy_info_v2()
        elif feature is Feature.MIG_DEVICE_STATE and method is GET:
            session = self._has("GET tells a data_fd") and device.session is not None
            return MigState(device.state, 5 if session else -1).pack()
        elif feature is Feature.MIG_DEVICE_STATE:
            device.set_state(MigState.parse(data).device_state)
        return data

    def feature_at(self, address: int) -> None:
        """The same with the structure, and what it points to, at an address of this process."""
        argsz, flags = struct.unpack("=II", self._read(address, _HEADER))
        data = self._read(address + _HEADER, max(argsz - _HEADER, 0))
        if flags & 0xFFFF != Feature.DMA_LOGGING_START:
            self.feature(argsz, flags, data)
            return
        page_size, count, ranges = LoggingControl.parse(data)
        found = [
            LoggingRange.parse(self._read(ranges + at, LOGGING_RANGE))
            for at in range(0, count * LOGGING_RANGE, LOGGING_RANGE)
        ]
        self._device.log_start(found, page_size)
        if not _may(address, "w") and not self._has("an answer that is not written is no error"):
            if not self._has("a log without an answer is kept"):
                self._device.log_stop()
            raise refuse(errno.EFAULT, "the answer")

    def _read(self, address: int, size: int) -> bytes:
        if _may(address, "r") and _may(address + size - 1, "r"):
            return ctypes.string_at(address, size)
        if self._has("what is nowhere is 0"):
            return bytes(size)
        wrong = self._has("what is nowhere is EINVAL")
        raise refuse(errno.EINVAL if wrong else errno.EFAULT, f"address {address:#x}")

    def feature_unbound(self, argsz: int, flags: int, data: bytes) -> None:
        if not self._has("a device that is not bound answers"):
            raise refuse(errno.EINVAL, "not bound")
        self.feature(argsz, flags, data)

    def feature_in_place(self, argument: bytearray) -> None:
        """The same, ``argument`` as it is left, also after a failure."""
        argsz, flags = struct.unpack_from("=II", argument)
        try:
            argument[_HEADER:] = self.feature(argsz, flags, bytes(argument[_HEADER:]))
        except OSError:
            if not self._has("a failed SET has a data_fd"):
                struct.pack_into("=i", argument, _HEADER + 4, -1)
            raise


_PAGE, _AT = 4096, 0x4000_0000
#: Where it writes: inside a page, over an edge, a last byte, and far behind.
_WRITES = ((3 * _PAGE + 100, 50), (6 * _PAGE - 1, 2), (70 * _PAGE, 1), (200 * _PAGE + 4000, 96))


class FaultyWorkload:
    """Works in every state that may, and counts it in the device's state."""

    def __init__(self, device: FaultyDevice) -> None:
        self._device = device
        self.interrupts = 0

    def _may(self) -> bool:
        device, has = self._device, self._device.has
        state = device.state
        if (state is PC and has("no DMA in PRE_COPY")) or (
            device.stops and has("no DMA after STOP")
        ):
            return False
        if (state is S and has("DMA in STOP")) or (state is SC and has("DMA in STOP_COPY")):
            return True
        return state in (R, RP, PC, PCP)

    def work(self) -> list[tuple[int, int]]:
        device, has = self._device, self._device.has
        if (
            self._may()
            or (device.state is S and has("an interrupt in STOP"))
            or (device.state is SC and has("an interrupt in STOP_COPY"))
        ):
            self.interrupts += 1
        if not self._may():
            return []
        device.memory[0] = (device.memory[0] + 1) & 0xFF
        found = [(_AT + at, length) for at, length in _WRITES]
        for iova, length in found:
            device.log.wrote(iova, length, precopy=device.state is PC)
        return found

    def work_on_peer(self) -> list[tuple[int, int]]:
        p2p = self._device.state in (R, PC) or self._device.has("DMA to others in RUNNING_P2P")
        return [(_AT, 8)] if p2p else []


class FaultyFace:
    """A config space with FLR, and one BAR."""

    def __init__(self, device: FaultyDevice) -> None:
        self._device = device
        self._config = bytearray(256)
        self._config[:4] = b"\x36\x1b\x11\0"
        self._config[0x34] = 0x40
        self._config[0x40:0x42] = b"\x10\x60"
        # The table is in BAR 0, at 0x800.
        self._config[0x60:0x6C] = b"\x11\0\x07\0" + (0x800).to_bytes(4, "little") + bytes(4)
        self._config[0x44:0x48] = (1 << 28).to_bytes(4, "little")
        both = RegionFlags.READ | RegionFlags.WRITE
        regions = [RegionInfo()] * NUM_REGIONS
        regions[0], regions[RegionIndex.CONFIG] = RegionInfo(4096, both), RegionInfo(256, both)
        self.regions: Sequence[RegionInfo] = regions

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        if region != RegionIndex.CONFIG:
            gone = self._device.state is SC and self._device.has("MSI-X is gone in STOP_COPY")
            return (b"\xff" if gone else b"\0") * size
        if self._device.state is S and self._device.has("config space is gone in STOP"):
            return b"\xff" * size
        return bytes(self._config[offset : offset + size])

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        if region == RegionIndex.CONFIG and offset == 0x48 and data[1] & 0x80:
            self._device.reset(flr=True)
