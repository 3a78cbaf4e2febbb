"""A device of the kernel's VFIO as a :class:`VfioDevice`: each call is one ioctl."""

import errno
import threading
from collections.abc import Mapping, Sequence

from precopy.backends.kernel.file import KernelMigrationFile
from precopy.backends.kernel.ioctls import (
    REGION_INFO,
    VFIO_DEVICE_GET_REGION_INFO,
    Kernel,
    address_of,
    call,
)
from precopy.vfio.device import DeviceIdentity, DmaRange, MigrationFile, VfioDevice
from precopy.vfio.errors import refuse
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import (
    FEATURE_METHODS,
    VFIO_DEVICE_FEATURE,
    VFIO_DEVICE_RESET,
    DataSize,
    Feature,
    FeatureFlags,
    LoggingControl,
    LoggingReport,
    MigrationFeature,
    MigState,
    feature_header,
)

_HEADER_BYTES = 8


class KernelVfioDevice(VfioDevice):
    """Owns ``fds``: the device's own first, then those that keep it attached."""

    def __init__(
        self, kernel: Kernel, fds: Sequence[int], name: str, identity: DeviceIdentity
    ) -> None:
        self._kernel, self._fds = kernel, list(fds)
        self._name, self._identity = name, identity
        self._info_v2 = False
        self._lock = threading.Lock()
        self._features: dict[Feature, FeatureFlags] | None = None

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> DeviceIdentity:
        return self._identity

    def fileno(self) -> int:
        """The device's file descriptor. ENODEV once closed."""
        if not self._fds:
            raise refuse(errno.ENODEV, f"{self._name} is closed")
        return self._fds[0]

    # --- VFIO_DEVICE_FEATURE ------------------------------------------------------------------

    def _feature(self, feature: Feature, method: FeatureFlags, payload: bytes = b"") -> bytes:
        """One call; the payload as the kernel left it."""
        data = bytearray(feature_header(feature, method, len(payload)) + payload)
        verb = (method & ~FeatureFlags.PROBE).name
        what = f"VFIO_DEVICE_FEATURE {verb} {feature.name}"
        call(self._kernel, self.fileno(), VFIO_DEVICE_FEATURE, data, what, self._name)
        return bytes(data[_HEADER_BYTES:])

    @property
    def migration_flags(self) -> MigrationFlags:
        empty = MigrationFeature(0).pack()
        flags = MigrationFeature.parse(
            self._feature(Feature.MIGRATION, FeatureFlags.GET, empty)
        ).flags
        # Bits of a newer kernel mean nothing here.
        return MigrationFlags(flags & int(~MigrationFlags(0)))

    def features(self) -> Mapping[Feature, FeatureFlags]:
        if self._features is None:
            found = {}
            for feature, (methods, _) in FEATURE_METHODS.items():
                has = FeatureFlags(0)
                for method in methods:
                    try:
                        self._feature(feature, method | FeatureFlags.PROBE)
                        has |= method
                    except OSError as error:
                        if error.errno not in (errno.ENOTTY, errno.EINVAL):
                            raise
                if has:
                    found[feature] = has
            self._features = found
        return self._features

    @property
    def state(self) -> DeviceState:
        empty = MigState(0, -1).pack()
        found = self._feature(Feature.MIG_DEVICE_STATE, FeatureFlags.GET, empty)
        return DeviceState(MigState.parse(found).device_state)

    def set_state(self, new: int) -> MigrationFile | None:
        with self._lock:
            asked = MigState(int(new), -1).pack()
            try:
                answer = self._feature(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, asked)
            except OSError as error:
                target = (
                    DeviceState(new).name if new in DeviceState._value2member_map_ else str(new)
                )
                raise refuse(
                    error.errno or errno.EIO, f"{self._name}: the kernel's driver refused {target}"
                ) from error
            fd = MigState.parse(answer).data_fd
            if fd < 0:
                return None
            return KernelMigrationFile(self._kernel, fd, self._name, info_v2=self._info_v2)

    def data_size(self) -> int:
        found = self._feature(Feature.MIG_DATA_SIZE, FeatureFlags.GET, DataSize(0).pack())
        return DataSize.parse(found).stop_copy_length

    def enable_precopy_info_v2(self) -> None:
        self._feature(Feature.MIG_PRECOPY_INFO_V2, FeatureFlags.SET)
        self._info_v2 = True

    def reset(self) -> None:
        call(self._kernel, self.fileno(), VFIO_DEVICE_RESET, 0, "VFIO_DEVICE_RESET", self._name)

    # --- DMA logging --------------------------------------------------------------------------

    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        array = bytearray(b"".join(DmaRange(*each).pack() for each in ranges) or bytes(16))
        control = LoggingControl(page_size, len(ranges), address_of(array))
        answer = self._feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, control.pack())
        del array
        return LoggingControl.parse(answer).page_size

    def log_stop(self) -> None:
        self._feature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET)

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        # The kernel writes 64-bit words; the caller's buffer may be shorter.
        words = bytearray(-(-len(bitmap) // 8) * 8)
        words[: len(bitmap)] = bitmap
        report = LoggingReport(iova, length, page_size, address_of(words))
        self._feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, report.pack())
        bitmap[:] = words[: len(bitmap)]

    # --- Regions ------------------------------------------------------------------------------

    def _region(self, index: int) -> tuple[int, int]:
        data = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        what = f"VFIO_DEVICE_GET_REGION_INFO {index}"
        call(self._kernel, self.fileno(), VFIO_DEVICE_GET_REGION_INFO, data, what, self._name)
        *_, size, offset = REGION_INFO.unpack(data)
        return size, offset

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """Bytes of region ``index`` (a BAR, or config space: 7). EINVAL outside it."""
        size, base = self._region(index)
        if offset + length > size:
            raise refuse(errno.EINVAL, f"{self._name}: region {index} has {size} bytes")
        return self._kernel.pread(self.fileno(), length, base + offset)

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Write to region ``index``. EINVAL outside it."""
        size, base = self._region(index)
        if offset + len(data) > size:
            raise refuse(errno.EINVAL, f"{self._name}: region {index} has {size} bytes")
        self._kernel.pwrite(self.fileno(), data, base + offset)

    def close(self) -> None:
        fds, self._fds = self._fds, []
        for fd in fds:
            self._kernel.close(fd)
