"""A device whose state is bytes in memory, read and written at memory's speed: it leaves only the engine."""

import errno
import select
from collections.abc import Mapping, Sequence

from precopy.vfio.device import (
    Buffer,
    DeviceIdentity,
    DmaRange,
    MigrationFile,
    PrecopyInfo,
    VfioDevice,
)
from precopy.vfio.errors import refuse
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import FEATURE_METHODS, Feature, FeatureFlags

_BLOCK = memoryview(bytes(range(256)) * 4096)


class StandInFile(MigrationFile):
    def __init__(self, size: int) -> None:
        self._left = size
        self._kept = memoryview(bytearray(len(_BLOCK)))

    def readinto(self, buffer: bytearray | memoryview) -> int:
        count = min(len(buffer), self._left, len(_BLOCK))
        memoryview(buffer)[:count] = _BLOCK[:count]
        self._left -= count
        return count

    def peek(self, limit: int) -> list[memoryview]:
        return [_BLOCK[: min(limit, self._left)]]

    def advance(self, count: int) -> None:
        self._left -= count

    def write(self, data: Buffer) -> int:
        self._kept[: len(data)] = data
        return len(data)

    def precopy_info(self) -> PrecopyInfo:
        raise refuse(errno.ENOTTY, "no PRE_COPY")

    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        return events

    def set_nonblocking(self, nonblocking: bool) -> None: ...

    def close(self) -> None: ...


class StandInDevice(VfioDevice):
    """``size`` bytes of state, STOP_COPY only."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._state = DeviceState.RUNNING

    @property
    def name(self) -> str:
        return "stand-in"

    @property
    def identity(self) -> DeviceIdentity:
        return DeviceIdentity(1, 1, "stand-in", "", "", "stand-in")

    @property
    def migration_flags(self) -> MigrationFlags:
        return MigrationFlags.STOP_COPY

    def features(self) -> Mapping[Feature, FeatureFlags]:
        some = (Feature.MIGRATION, Feature.MIG_DEVICE_STATE, Feature.MIG_DATA_SIZE)
        return {feature: FEATURE_METHODS[feature][0] for feature in some}

    @property
    def state(self) -> DeviceState:
        return self._state

    def set_state(self, new: int) -> MigrationFile | None:
        self._state = DeviceState(new)
        if self._state in (DeviceState.STOP_COPY, DeviceState.RESUMING):
            return StandInFile(self._size)
        return None

    def data_size(self) -> int:
        return self._size

    def enable_precopy_info_v2(self) -> None: ...

    def reset(self) -> None: ...

    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        raise refuse(errno.ENOTTY, "no logging")

    def log_stop(self) -> None: ...

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None: ...

    def close(self) -> None: ...
