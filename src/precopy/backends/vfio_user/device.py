"""A device that a vfio-user server offers, as a :class:`VfioDevice`."""

import contextlib
import errno
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.data import DataPath
from precopy.backends.vfio_user.file import VfioUserFile
from precopy.vfio.device import DeviceIdentity, DmaRange, MigrationFile, VfioDevice
from precopy.vfio.dirty import DirtyBitmap
from precopy.vfio.errors import refuse
from precopy.vfio.face import DeviceFlags, RegionIndex
from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags, path
from precopy.vfio.uapi import (
    FEATURE_METHODS,
    MAX_LOGGING_RANGES,
    DataSize,
    Feature,
    FeatureFlags,
    MigrationFeature,
)
from precopy.vfio_user.messages import Command, DeviceFeature, Identity

_HEAD = 8
_STATE = struct.Struct("=II")
_START, _RANGE, _REPORT = struct.Struct("=QII"), struct.Struct("=QQ"), struct.Struct("=QQQ")

#: A peer of unknown make may lose the end of a longer write (libvfio-user, mid-2026).
SAFE_WRITE = 64 << 10

#: What servers say of a feature that they do not have.
_ABSENT = frozenset({errno.ENOTTY, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


class VfioUserDevice(VfioDevice):
    """The device behind ``client``, which this owns.

    ``stream``: what its state is, where the server can't say and the user knows. ``write_bytes``:
    most that one message of data carries; 0: as much as was agreed on with a server of this project,
    :data:`SAFE_WRITE` with any other. ``area``: whether data may go through memory that is shared.
    """

    def __init__(
        self,
        client: Client,
        name: str,
        *,
        stream: str = "",
        write_bytes: int = 0,
        area: bool = True,
    ) -> None:
        self.client, self._name, self._stream = client, name, stream
        most = client.agreed.max_data_xfer_size
        usual = most if client.agreed.extension else min(most, SAFE_WRITE)
        self._data = DataPath(client, min(write_bytes or usual, most), area=area)
        self._features: dict[Feature, FeatureFlags] | None = None
        self._file: VfioUserFile | None = None
        self._closed = False
        self._state = DeviceState.RUNNING

    @property
    def name(self) -> str:
        return self._name

    def _require_open(self) -> None:
        if self._closed:
            raise refuse(errno.ENODEV, f"{self._name} is closed")

    # --- Who it is ----------------------------------------------------------------------------

    @property
    def identity(self) -> DeviceIdentity:
        self._require_open()
        if self.client.agreed.extension:
            found = self.client.call(Command.DEVICE_IDENTITY, Identity(4, b""))
            assert isinstance(found, Identity)
            return self._told(bytes(found.text))
        vendor = device = 0
        if self.client.device_info().flags & DeviceFlags.PCI:
            with contextlib.suppress(OSError):
                ids = self.client.region_read(RegionIndex.CONFIG, 0, 4)
                vendor, device = struct.unpack("<HH", ids)
        return DeviceIdentity(
            vendor_id=vendor,
            device_id=device,
            driver="vfio-user",
            firmware="",
            serial="",
            stream=self._stream or f"vfio-user {vendor:04x}:{device:04x}",
            offers=None,
        )

    def _told(self, text: bytes) -> DeviceIdentity:
        """EPROTO for an identity that is none."""
        try:
            who: Any = json.loads(text)
            words = [str(who[key]) for key in ("driver", "firmware", "serial", "stream")]
            numbers = [int(who[key]) for key in ("vendor_id", "device_id", "stream_version")]
            offers = who["offers"]
            return DeviceIdentity(
                vendor_id=numbers[0],
                device_id=numbers[1],
                driver=words[0],
                firmware=words[1],
                serial=words[2],
                stream=self._stream or words[3],
                stream_version=numbers[2],
                needs=frozenset(map(str, who["needs"])),
                offers=None if offers is None else frozenset(map(str, offers)),
                details={str(key): str(value) for key, value in dict(who["details"]).items()},
            )
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            what = f"{self._name}: what the server says of its device can't be read"
            raise refuse(errno.EPROTO, what) from error

    # --- DEVICE_FEATURE -----------------------------------------------------------------------

    def _feature(
        self, feature: Feature, method: FeatureFlags, data: bytes = b"", room: int = 0
    ) -> bytes:
        """One call; ``room``: bytes that the answer may have."""
        self._require_open()
        argsz = _HEAD + max(len(data), room)
        request = DeviceFeature(argsz, int(feature) | int(method), data)
        found = self.client.call(Command.DEVICE_FEATURE, request)
        assert isinstance(found, DeviceFeature)
        answer = bytes(found.data)
        if method == FeatureFlags.GET and len(answer) < room:
            what = f"{self._name}: {feature.name} has {len(answer)} bytes, not {room}"
            raise refuse(errno.EPROTO, what)
        return answer

    @property
    def migration_flags(self) -> MigrationFlags:
        size = MigrationFeature(0)
        data = self._feature(Feature.MIGRATION, FeatureFlags.GET, size.pack(), len(size.pack()))
        return MigrationFlags(MigrationFeature.parse(data).flags & int(~MigrationFlags(0)))

    def features(self) -> Mapping[Feature, FeatureFlags]:
        if self._features is None:
            found = {}
            for feature, (methods, size) in FEATURE_METHODS.items():
                has = FeatureFlags(0)
                for method in methods:
                    try:
                        # Some servers look at the payload even of a probe.
                        self._feature(feature, method | FeatureFlags.PROBE, bytes(size))
                        has |= method
                    except OSError as error:
                        if error.errno not in _ABSENT:
                            raise
                if has:
                    found[feature] = has
            self._features = found
        return self._features

    @property
    def state(self) -> DeviceState:
        data = self._feature(Feature.MIG_DEVICE_STATE, FeatureFlags.GET, bytes(8), 8)
        found = _STATE.unpack_from(data)[0]
        try:
            state = DeviceState(found)
        except ValueError:
            raise refuse(errno.EPROTO, f"{self._name}: there is no device state {found}") from None
        self._entered(state)
        return state

    def _entered(self, state: DeviceState) -> None:
        self._state = state
        if self._file is not None and not self._file.lasts_in(state):
            self._file.end()
            self._file = None

    def set_state(self, new: int) -> MigrationFile | None:
        self._require_open()
        before = self.state
        steps = path(before, new, self.migration_flags)
        try:
            self._feature(
                Feature.MIG_DEVICE_STATE, FeatureFlags.SET, _STATE.pack(new, 0), _STATE.size
            )
        except OSError:
            with contextlib.suppress(OSError):
                # Where it stands now is for the server to say.
                _ = self.state
            raise
        arcs = zip((before, *steps), steps, strict=False)
        handed_out = False
        for arc in arcs:
            self._entered(arc[1])
            if arc in DATA_FD_ARCS:
                handed_out = True
        if not handed_out or self._file_goes_on(before, steps):
            return None
        self._file = VfioUserFile(self.client, lambda: self._state, self._data)
        return self._file

    def _file_goes_on(self, before: DeviceState, steps: Sequence[DeviceState]) -> bool:
        """Whether the last data_fd of the way is over again at its end."""
        last = max(
            index
            for index, arc in enumerate(zip((before, *steps), steps, strict=False))
            if arc in DATA_FD_ARCS
        )
        saving = steps[last] is not DeviceState.RESUMING
        lasting = {DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P, DeviceState.STOP_COPY}
        return not all(
            (step in lasting) if saving else (step is DeviceState.RESUMING) for step in steps[last:]
        )

    def data_size(self) -> int:
        data = self._feature(Feature.MIG_DATA_SIZE, FeatureFlags.GET, bytes(8), 8)
        return DataSize.parse(data).stop_copy_length

    def enable_precopy_info_v2(self) -> None:
        self._feature(Feature.MIG_PRECOPY_INFO_V2, FeatureFlags.SET)

    def reset(self) -> None:
        self._require_open()
        self.client.reset()
        self._entered(DeviceState.RUNNING)

    # --- DMA logging --------------------------------------------------------------------------

    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        if len(ranges) > MAX_LOGGING_RANGES:
            raise refuse(errno.E2BIG, f"{len(ranges)} ranges to log, at most {MAX_LOGGING_RANGES}")
        data = _START.pack(page_size, len(ranges), 0)
        data += b"".join(_RANGE.pack(*each) for each in ranges)
        answer = self._feature(Feature.DMA_LOGGING_START, FeatureFlags.SET, data)
        if len(answer) < _START.size:
            return page_size
        return int(_START.unpack_from(answer)[0])

    def log_stop(self) -> None:
        self._feature(Feature.DMA_LOGGING_STOP, FeatureFlags.SET)

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        # Checks what is asked as every device does.
        DirtyBitmap(iova, length, page_size, bitmap)
        view = bitmap.cast("B")
        words = (self.client.agreed.max_data_xfer_size - _REPORT.size) // 8
        step = words * 64 * page_size
        for at in range(0, max(length, 1), step):
            self._report(iova + at, min(step, length - at), page_size, view[at // page_size // 8 :])

    def _report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        size = -(-length // page_size // 64) * 8
        answer = self._feature(
            Feature.DMA_LOGGING_REPORT,
            FeatureFlags.GET,
            _REPORT.pack(iova, length, page_size),
            _REPORT.size + size,
        )
        bits = min(-(-length // page_size), len(bitmap) * 8)
        for at, byte in enumerate(answer[_REPORT.size : _REPORT.size + -(-bits // 8)]):
            if byte:
                bitmap[at] |= byte

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self._file is not None:
                self._file.end()
            self.client.close()
