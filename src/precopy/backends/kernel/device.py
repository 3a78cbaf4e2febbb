"""A device of the kernel's VFIO as a :class:`VfioDevice`: each call is one ioctl."""

import contextlib
import errno
import struct
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace

from precopy.backends.kernel.file import KernelMigrationFile
from precopy.backends.kernel.ioctls import (
    REGION_INFO,
    VFIO_DEVICE_GET_REGION_INFO,
    Kernel,
    address_of,
    call,
    close_all,
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

#: The region of PCI configuration space (VFIO_PCI_CONFIG_REGION_INDEX).
_CONFIG_REGION = 7

_ADDRESSES = 1 << 64

#: Smallest page of a report (vfio_ioctl_device_feature_logging_report).
_LEAST_PAGE = 4096


class KernelVfioDevice(VfioDevice):
    """Owns ``fds``: the device's own first, then those that keep it attached.

    ``identity`` is completed from configuration space where it has no ids.
    """

    def __init__(
        self, kernel: Kernel, fds: Sequence[int], name: str, identity: DeviceIdentity
    ) -> None:
        self._kernel, self._fds = kernel, list(fds)
        self._name, self._identity = name, identity
        self._info_v2 = False
        self._lock = threading.Lock()
        self._features: dict[Feature, FeatureFlags] | None = None
        self._regions: dict[int, tuple[int, int]] = {}
        if not identity.vendor_id:
            with contextlib.suppress(OSError):
                ids = struct.unpack("<HH", self.region_read(_CONFIG_REGION, 0, 4))
                self._identity = replace(identity, vendor_id=ids[0], device_id=ids[1])

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
        number = MigState.parse(found).device_state
        if number not in DeviceState._value2member_map_:
            raise refuse(errno.EPROTO, f"{self._name}: the kernel tells of device state {number}")
        return DeviceState(number)

    def set_state(self, new: int) -> MigrationFile | None:
        with self._lock:
            # What does not fit the field is a state that no kernel has.
            asked = MigState(int(new) if 0 <= new < 1 << 32 else 0xFFFFFFFF, -1).pack()
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
            return KernelMigrationFile(self._kernel, fd, self._name, lambda: self._info_v2)

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
        self._require_addresses(*(number for each in ranges for number in each), page_size)
        array = bytearray(b"".join(DmaRange(*each).pack() for each in ranges) or bytes(16))
        control = LoggingControl(page_size, len(ranges), address_of(array))
        answer = self._feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, control.pack())
        del array
        return LoggingControl.parse(answer).page_size

    def log_stop(self) -> None:
        self._feature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET)

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        """As the contract says; EFAULT for a bitmap that is read-only or too short for ``length``."""
        self._require_addresses(iova, length, page_size)
        # The kernel trusts the length; what is wrong with the rest it says before it writes.
        sound = page_size >= _LEAST_PAGE and not page_size & (page_size - 1)
        pages = -(-length // page_size) if sound and iova + length < _ADDRESSES else 0
        if bitmap.readonly or pages > len(bitmap) * 8:
            what = "may not be written" if bitmap.readonly else f"has {len(bitmap)} bytes"
            raise refuse(errno.EFAULT, f"{self._name}: {pages} pages, but the bitmap {what}")
        # The kernel writes 64-bit words; the caller's buffer may end within one.
        words = bytearray(-(-len(bitmap) // 8) * 8 or 8)
        words[: len(bitmap)] = bitmap
        report = LoggingReport(iova, length, page_size, address_of(words))
        self._feature(Feature.DMA_LOGGING_REPORT, FeatureFlags.GET, report.pack())
        bitmap[:] = words[: len(bitmap)]

    def _require_addresses(self, *numbers: int) -> None:
        if not all(0 <= number < _ADDRESSES for number in numbers):
            raise refuse(errno.EOVERFLOW, f"{self._name}: an address has 64 bits")

    # --- Regions ------------------------------------------------------------------------------

    @property
    def kernel(self) -> Kernel:
        """The system calls behind it."""
        return self._kernel

    def _region(self, index: int) -> tuple[int, int]:
        found = self._regions.get(index)
        if found is not None:
            return found
        data = bytearray(REGION_INFO.pack(REGION_INFO.size, 0, index, 0, 0, 0))
        what = f"VFIO_DEVICE_GET_REGION_INFO {index}"
        call(self._kernel, self.fileno(), VFIO_DEVICE_GET_REGION_INFO, data, what, self._name)
        *_, size, offset = REGION_INFO.unpack(data)
        self._regions[index] = size, offset
        return size, offset

    def _place(self, index: int, offset: int, length: int) -> int:
        """Where in the device's file ``length`` bytes at ``offset`` of region ``index`` are."""
        size, base = self._region(index)
        if not 0 <= offset <= offset + length <= size:
            raise refuse(errno.EINVAL, f"{self._name}: region {index} has {size} bytes")
        return base + offset

    def region_size(self, index: int) -> int:
        """Bytes of region ``index``; 0 where there is none."""
        try:
            return self._region(index)[0]
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return 0

    def region_read(self, index: int, offset: int, length: int) -> bytes:
        """Bytes of region ``index`` (a BAR, or config space: 7). OSError EINVAL outside it."""
        place = self._place(index, offset, length)
        try:
            data = self._kernel.pread(self.fileno(), length, place)
        except OSError as error:
            raise self._failed(error, f"reading region {index}") from error
        if len(data) != length:
            raise refuse(
                errno.EIO, f"{self._name}: region {index} gave {len(data)} of {length} bytes"
            )
        return data

    def region_write(self, index: int, offset: int, data: bytes) -> None:
        """Write to region ``index``. OSError EINVAL outside it."""
        place = self._place(index, offset, len(data))
        try:
            written = self._kernel.pwrite(self.fileno(), data, place)
        except OSError as error:
            raise self._failed(error, f"writing region {index}") from error
        if written != len(data):
            raise refuse(
                errno.EIO, f"{self._name}: region {index} took {written} of {len(data)} bytes"
            )

    def _failed(self, error: OSError, what: str) -> OSError:
        return refuse(error.errno or errno.EIO, f"{self._name}: {what} failed in the kernel")

    def close(self) -> None:
        fds, self._fds = self._fds, []
        close_all(self._kernel, fds)
