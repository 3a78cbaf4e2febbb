"""What every backend offers: a device that can be migrated and the file its state moves through."""

import abc
import select
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import (
    FEATURE_METHODS,
    Feature,
    FeatureFlags,
    LoggingRange,
    PrecopyInfoFlags,
)

#: Any object with the buffer protocol that can be read from.
Buffer = bytes | bytearray | memoryview

#: A range of device addresses: ``iova`` and ``length`` in bytes.
DmaRange = LoggingRange


NO_METHODS = FeatureFlags(0)
NO_INFO_FLAGS = PrecopyInfoFlags(0)


@dataclass(frozen=True, slots=True)
class PrecopyInfo:
    """What VFIO_MIG_GET_PRECOPY_INFO answers, in bytes.

    ``flags`` is 0 unless the user has set MIG_PRECOPY_INFO_V2.
    """

    initial_bytes: int
    dirty_bytes: int
    flags: PrecopyInfoFlags = NO_INFO_FLAGS


@dataclass(frozen=True, slots=True)
class DeviceIdentity:
    """Who a device is: what a target compares before anything changes.

    ``stream`` names the format of the device's state ("mlx5", "mtty", ...) and ``stream_version``
    its version; a target reads streams of its own version and of older ones. ``needs`` are the
    capabilities without which the device's present state can't be loaded; ``offers`` those that
    this device has as a target, None where it can't say. ``details`` is told to people and compared by nobody.
    """

    vendor_id: int
    device_id: int
    driver: str
    firmware: str
    serial: str
    stream: str
    stream_version: int = 1
    needs: frozenset[str] = frozenset()
    offers: frozenset[str] | None = frozenset()
    details: Mapping[str, str] = field(default_factory=dict)


class MigrationFile(abc.ABC):
    """The data_fd of one saving or resuming session.

    A saving file is read, a resuming file is written; the other call raises EBADF. Once the session
    has ended every call raises ENODEV. How a stream is cut into reads and writes never matters.
    """

    @abc.abstractmethod
    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read up to ``len(buffer)`` bytes; the number read, 0 at the end of a STOP_COPY stream.

        Blocks while a save is under way, unless non-blocking. Raises OSError: ENOMSG at the
        temporary end in PRE_COPY, EAGAIN where it would block, EBADF on a resuming file, ENODEV
        when the session is over or has failed.
        """

    def peek(self, limit: int) -> Sequence[memoryview] | None:
        """The next bytes of the stream where they lie, ``limit`` at most; none at its end.

        They stay unread, and valid, until :meth:`advance`. None where a file can only be copied from
        (the default). Blocks and raises as :meth:`readinto`.
        """
        return None

    def advance(self, count: int) -> None:
        """``count`` bytes of what :meth:`peek` gave have been read."""
        raise NotImplementedError

    @abc.abstractmethod
    def write(self, data: Buffer) -> int:
        """Write up to ``len(data)`` bytes; the number taken (at least 1 unless ``data`` is empty).

        Raises OSError: EBADF on a saving file, ENODEV when the session is over or has failed, and
        what the device says of a state that it refuses (EINVAL, EOPNOTSUPP, ENOMEM, ...).
        """

    @abc.abstractmethod
    def precopy_info(self) -> PrecopyInfo:
        """VFIO_MIG_GET_PRECOPY_INFO.

        Raises OSError: EINVAL outside PRE_COPY and PRE_COPY_P2P, ENOTTY on a resuming file or where
        PRE_COPY is not supported, ENODEV when the session is over.
        """

    @abc.abstractmethod
    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        """Wait up to ``timeout`` seconds (None: for ever) for ``events``; those that came, or 0.

        A saving file is readable when data is queued and at its permanent end; a file whose session
        is over answers POLLIN | POLLRDHUP.
        """

    @abc.abstractmethod
    def set_nonblocking(self, nonblocking: bool) -> None:
        """O_NONBLOCK on or off (off at first)."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the file. The device keeps its state; a second call does nothing."""

    def fileno(self) -> int | None:
        """The file descriptor behind the file, or None where it lives in this process."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class VfioDevice(abc.ABC):
    """A VFIO device with the v2 migration uAPI.

    All calls may come from any thread; state changes are made one after another. What a device does
    not support raises OSError ENOTTY.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What the user calls it (``sim:mlx5``, ``vfio:0000:06:00.2``, ...)."""

    @property
    @abc.abstractmethod
    def identity(self) -> DeviceIdentity:
        """Who it is, as of now (``needs`` follows the state that it holds)."""

    @property
    @abc.abstractmethod
    def migration_flags(self) -> MigrationFlags:
        """Feature MIGRATION, GET. Raises OSError ENOTTY where the device can't be migrated."""

    @abc.abstractmethod
    def features(self) -> Mapping[Feature, FeatureFlags]:
        """The features that the device has and the methods (GET, SET) of each."""

    @property
    @abc.abstractmethod
    def state(self) -> DeviceState:
        """Feature MIG_DEVICE_STATE, GET."""

    @abc.abstractmethod
    def set_state(self, new: int) -> MigrationFile | None:
        """Feature MIG_DEVICE_STATE, SET: go to ``new``, over other states where no arc joins them.

        The new data_fd where the last arc hands one out (see ``states.DATA_FD_ARCS``), else None.
        Raises OSError EINVAL for a state that can't be reached, and the errno of the arc that
        failed; ``state`` then tells where the device stands: where it was, on the way, or in ERROR.
        """

    @abc.abstractmethod
    def data_size(self) -> int:
        """Feature MIG_DATA_SIZE, GET: about how many bytes a STOP_COPY entered now would give."""

    @abc.abstractmethod
    def enable_precopy_info_v2(self) -> None:
        """Feature MIG_PRECOPY_INFO_V2, SET, until the device is closed. EINVAL without PRE_COPY."""

    @abc.abstractmethod
    def reset(self) -> None:
        """VFIO_DEVICE_RESET: RUNNING, in the state after power-on; sessions end."""

    @abc.abstractmethod
    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        """Feature DMA_LOGGING_START; the page size in bytes that is tracked (``page_size``: a hint).

        Raises OSError: EINVAL (no range, not aligned, overlapping, already logging), E2BIG,
        EOVERFLOW, EOPNOTSUPP where the device can't track so much.
        """

    @abc.abstractmethod
    def log_stop(self) -> None:
        """Feature DMA_LOGGING_STOP; nothing happens where no log is kept."""

    @abc.abstractmethod
    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        """Feature DMA_LOGGING_REPORT: set a bit for each page written since the last report.

        Bit n (``bitmap[n // 8] >> n % 8``) stands for ``iova + n * page_size``; only sets bits.
        Raises OSError: EINVAL (not logging, page size below 4096 or no power of two), EOVERFLOW.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close the device; sessions end. A second call does nothing."""

    def probe(self, feature: int, methods: FeatureFlags = NO_METHODS) -> bool:
        """Feature PROBE: whether ``feature`` exists with all of ``methods``."""
        has = dict(self.features()).get(Feature(feature)) if feature in FEATURE_INDEXES else None
        return has is not None and has & methods == methods

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


FEATURE_INDEXES = frozenset(int(feature) for feature in FEATURE_METHODS)
