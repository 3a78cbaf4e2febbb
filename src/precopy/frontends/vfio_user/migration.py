"""DEVICE_FEATURE and the data of a device's state: a ``VfioDevice`` as the protocol shows it.

The protocol has no data_fd: the file of the device's present session belongs to the device, and goes
on when another client comes. Blocking is bounded, so that a client can be told that there is nothing
yet: a read waits where the protocol has no other answer.
"""

import contextlib
import errno
import functools
import json
import select
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio.errors import refuse
from precopy.vfio.states import PRE_COPY_STATES
from precopy.vfio.uapi import (
    FEATURE_INDEX_MASK,
    FEATURE_METHODS,
    MAX_LOGGING_RANGES,
    DataSize,
    Feature,
    FeatureFlags,
    LoggingRange,
    MigrationFeature,
)
from precopy.vfio_user.messages import DataPoll, DeviceFeature, PrecopyInfoMessage, wrong

# A plain integer: the complement of a flag has known bits only.
_METHODS = int(FeatureFlags.GET | FeatureFlags.SET | FeatureFlags.PROBE)
_STATE = struct.Struct("=Ii")
_START = struct.Struct("=QII")
_RANGE = struct.Struct("=QQ")
_REPORT = struct.Struct("=QQQ")

_FEATURE_HEAD = 8

#: Longest that one poll or read waits, in seconds: other commands of the client wait behind it.
LONGEST_WAIT = 1.0

_PRECOPY_ARGSZ = 24

#: Pieces of the stream that one reply is made of: sendmsg(2) takes 1024.
_MOST_PIECES = 64


@dataclass(frozen=True, slots=True)
class Data:
    """Bytes of the stream, which count as read once :attr:`sent` has been called."""

    views: Sequence[memoryview] = ()
    size: int = 0
    sent: Callable[[], None] | None = None

    def put(self, room: memoryview) -> None:
        """Copy them into ``room``, unless they are there."""
        if self.sent is not None:
            at = 0
            for view in self.views:
                # Without the interpreter's lock, so that the client's part goes on beside it.
                np.copyto(
                    np.frombuffer(room[at : at + len(view)], dtype=np.uint8),
                    np.frombuffer(view, dtype=np.uint8),
                )
                at += len(view)


class Migration:
    """The migration side of one device, for one client after another. Calls come one at a time."""

    def __init__(self, device: VfioDevice) -> None:
        self.device = device
        self._file: MigrationFile | None = None
        #: What the first write of this session that failed raised.
        self._failed: OSError | None = None
        self._lock = threading.Lock()

    # --- Features -----------------------------------------------------------------------------

    def feature(self, request: DeviceFeature, most_bytes: int) -> DeviceFeature:
        """DEVICE_FEATURE; the reply has at most ``most_bytes`` of data. OSError as the kernel's."""
        index = request.flags & FEATURE_INDEX_MASK
        methods = FeatureFlags(request.flags & ~FEATURE_INDEX_MASK)
        if int(methods) & ~_METHODS:
            raise wrong(errno.EINVAL, f"feature flags {request.flags:#x}")
        probe = bool(methods & FeatureFlags.PROBE)
        wanted = methods & (FeatureFlags.GET | FeatureFlags.SET)
        if not probe and wanted == FeatureFlags.GET | FeatureFlags.SET:
            raise wrong(errno.EINVAL, "a feature is read or set, not both")
        has = self._methods(index)
        if has is None:
            raise refuse(errno.ENOTTY, f"feature {index} is not here")
        # After the index, as the kernel's core does.
        if wanted & has != wanted or not methods:
            raise wrong(errno.EINVAL, f"feature {Feature(index).name} has no such method")
        if probe:
            return DeviceFeature(_FEATURE_HEAD, request.flags, b"")
        data = bytes(request.data)
        least = _LEAST[Feature(index)]
        if request.argsz < _FEATURE_HEAD + least or len(data) < (least if data else 0):
            raise wrong(errno.EINVAL, f"feature {Feature(index).name} needs {least} bytes")
        asks = wanted == FeatureFlags.SET or index == Feature.DMA_LOGGING_REPORT
        if not data and asks and least:
            raise wrong(errno.EINVAL, f"feature {Feature(index).name} comes without its data")
        answer = _HANDLERS[Feature(index), wanted](self, data, most_bytes)
        return DeviceFeature(_FEATURE_HEAD + len(answer), request.flags, answer)

    def _methods(self, index: int) -> FeatureFlags | None:
        try:
            return self.device.features().get(Feature(index))
        except ValueError:
            return None

    def _get_flags(self, data: bytes, most: int) -> bytes:
        return MigrationFeature(int(self.device.migration_flags)).pack()

    def _get_state(self, data: bytes, most: int) -> bytes:
        # There are no data_fds here: -1, as of the kernel's where none is new.
        return _STATE.pack(int(self.device.state), -1)

    def _set_state(self, data: bytes, most: int) -> bytes:
        state, _ = _STATE.unpack_from(data)
        file = self.device.set_state(state)
        if file is not None:
            file.set_nonblocking(True)
            self._replace(file)
        return _STATE.pack(int(self.device.state), -1)

    def _get_size(self, data: bytes, most: int) -> bytes:
        return DataSize(self.device.data_size()).pack()

    def _set_info_v2(self, data: bytes, most: int) -> bytes:
        self.device.enable_precopy_info_v2()
        return b""

    def _log_start(self, data: bytes, most: int) -> bytes:
        page_size, count, _ = _START.unpack_from(data)
        if count > MAX_LOGGING_RANGES:
            raise wrong(errno.E2BIG, f"{count} ranges to log; at most {MAX_LOGGING_RANGES}")
        ranges = data[_START.size :]
        if len(ranges) != count * _RANGE.size:
            raise wrong(errno.EINVAL, f"{count} ranges to log, but {len(ranges)} bytes of them")
        tracked = self.device.log_start(
            [LoggingRange(*each) for each in _RANGE.iter_unpack(ranges)], page_size
        )
        return _START.pack(tracked, count, 0) + ranges

    def _log_stop(self, data: bytes, most: int) -> bytes:
        self.device.log_stop()
        return b""

    def _log_report(self, data: bytes, most: int) -> bytes:
        iova, length, page_size = _REPORT.unpack_from(data)
        if page_size < 4096 or page_size & (page_size - 1):
            raise wrong(errno.EINVAL, f"a page size of {page_size} bytes")
        if iova + length > 1 << 64:
            raise wrong(errno.EOVERFLOW, f"a report of {length:#x} bytes at {iova:#x} wraps around")
        size = -(-length // page_size // 64) * 8
        if _REPORT.size + size > most:
            raise wrong(
                errno.E2BIG, f"a report of {size} bytes is more than a message has room for"
            )
        bitmap = bytearray(size)
        self.device.log_report(iova, length, page_size, memoryview(bitmap))
        return data[: _REPORT.size] + bitmap

    # --- The data -----------------------------------------------------------------------------

    def _replace(self, file: MigrationFile | None) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._failed = file, None

    def _require_file(self) -> MigrationFile:
        if self._file is None:
            raise refuse(errno.EINVAL, "the device is neither saving nor resuming")
        return self._file

    def read(self, room: memoryview, *, extension: bool) -> Data:
        """MIG_DATA_READ: bytes for the client, none at an end; in ``room`` where they need copying.

        With the extension OSError tells what kind of end: ENOMSG for the temporary one, EAGAIN where
        the device is still saving. Without it a temporary end reads as 0 bytes, and what is being
        saved is waited for.
        """
        file = self._require_file()
        while True:
            try:
                views = file.peek(len(room))
                if views is not None:
                    views = views[:_MOST_PIECES]
                    total = sum(map(len, views))
                    return Data(views, total, functools.partial(file.advance, total))
                count = file.readinto(room)
                return Data([room[:count]], count)
            except OSError as error:
                if extension or error.errno not in (errno.ENOMSG, errno.EAGAIN):
                    raise
                if error.errno == errno.ENOMSG:
                    return Data()
            if not file.poll(select.POLLIN, LONGEST_WAIT) and self.device.state in PRE_COPY_STATES:
                # In PRE_COPY nobody takes 0 bytes for the end of all.
                return Data()

    def write(self, data: memoryview) -> None:
        """MIG_DATA_WRITE: all of it. OSError as the device's.

        Once one has failed those behind it fail alike: a client may have sent them already, and what
        it has lost does not end up in the middle of a state.
        """
        file = self._require_file()
        if self._failed is not None:
            raise refuse(self._failed.errno or errno.EIO, "an earlier write of this state failed")
        try:
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            self._failed = error
            raise

    # --- The extension ------------------------------------------------------------------------

    def precopy_info(self, request: PrecopyInfoMessage) -> PrecopyInfoMessage:
        if request.argsz < _PRECOPY_ARGSZ:
            raise wrong(errno.EINVAL, f"precopy info with an argsz of {request.argsz}")
        info = self._require_file().precopy_info()
        flags = int(info.flags)
        return PrecopyInfoMessage(_PRECOPY_ARGSZ, flags, info.initial_bytes, info.dirty_bytes)

    def poll(self, request: DataPoll) -> DataPoll:
        timeout = min(request.timeout / 1000, LONGEST_WAIT)
        found = self._require_file().poll(request.events, timeout)
        return DataPoll(12, found, request.timeout)

    def identity(self) -> bytes:
        """``DeviceIdentity`` as JSON."""
        who = asdict(self.device.identity)
        who["needs"] = sorted(who["needs"])
        who["offers"] = None if who["offers"] is None else sorted(who["offers"])
        who["details"] = dict(who["details"])
        return json.dumps(who, separators=(",", ":")).encode()

    def reset(self) -> None:
        self.device.reset()
        self._replace(None)

    def release(self) -> None:
        """A client has gone. Its log of DMA goes with it, as where a device's file is closed; the
        state, and the session's data, stay for the next one."""
        with contextlib.suppress(OSError):
            self.device.log_stop()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._replace(None)


_GET, _SET = FeatureFlags.GET, FeatureFlags.SET

_HANDLERS: dict[tuple[Feature, FeatureFlags], Callable[[Migration, bytes, int], bytes]] = {
    (Feature.MIGRATION, _GET): Migration._get_flags,
    (Feature.MIG_DEVICE_STATE, _GET): Migration._get_state,
    (Feature.MIG_DEVICE_STATE, _SET): Migration._set_state,
    (Feature.DMA_LOGGING_START, _SET): Migration._log_start,
    (Feature.DMA_LOGGING_STOP, _SET): Migration._log_stop,
    (Feature.DMA_LOGGING_REPORT, _GET): Migration._log_report,
    (Feature.MIG_DATA_SIZE, _GET): Migration._get_size,
    (Feature.MIG_PRECOPY_INFO_V2, _SET): Migration._set_info_v2,
}

#: Bytes that a feature's payload has at least; here ranges and bitmap stand behind it, not at an
#: address.
_LEAST: dict[Feature, int] = {
    **{feature: size for feature, (_, size) in FEATURE_METHODS.items()},
    Feature.DMA_LOGGING_START: _START.size,
    Feature.DMA_LOGGING_REPORT: _REPORT.size,
}
