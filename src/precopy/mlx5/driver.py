"""The driver: a VF as a :class:`VfioDevice`.

Each arc is a method, found in one table; which arcs lead from a state to another is the contract's
business (``vfio.states``). All work is done under the state lock; whoever lets go of it also carries
out the resets that arrived while it was held.
"""

import contextlib
import errno
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar, Protocol

from precopy.mlx5 import capabilities
from precopy.mlx5.commands import Commands
from precopy.mlx5.page_tracker import PageTracker
from precopy.mlx5.resuming import ResumingFile
from precopy.mlx5.saving import SavingFile
from precopy.mlx5.watched_port import Told, WatchedPort
from precopy.mlx5_abi.commands import ResumeKind, SuspendKind, VhcaMigrationState
from precopy.mlx5_abi.port import CommandPort, DoorbellPort
from precopy.vfio.device import (
    DeviceIdentity,
    DmaRange,
    MigrationFile,
    PrecopyInfo,
    VfioDevice,
)
from precopy.vfio.dirty import DirtyBitmap, check_ranges
from precopy.vfio.errors import refuse
from precopy.vfio.states import PRE_COPY_STATES, DeviceState, MigrationFlags, next_state
from precopy.vfio.uapi import FEATURE_METHODS, Feature, FeatureFlags

VENDOR_ID = 0x15B3
VF_DEVICE_ID = 0x101E

#: Version of the stream that this driver writes; it reads this one and older ones.
STREAM_VERSION = 1

_E, _S, _R, _SC, _RES, _RP, _PC, _PCP = DeviceState

_MIGRATION_FEATURES = (
    Feature.MIGRATION,
    Feature.MIG_DEVICE_STATE,
    Feature.MIG_DATA_SIZE,
    Feature.MIG_PRECOPY_INFO_V2,
)

_LOGGING_FEATURES = (
    Feature.DMA_LOGGING_START,
    Feature.DMA_LOGGING_STOP,
    Feature.DMA_LOGGING_REPORT,
)


class Worker(Protocol):
    """Runs what can't run where it comes up, one after another."""

    def submit(self, work: Callable[[], None], /) -> object: ...

    def shutdown(self, wait: bool = True) -> None: ...


class Mlx5VfioDevice(VfioDevice):
    """VF ``vf_index`` (from 0) of the adapter whose PF answers on ``port``.

    ``flr`` resets the VF itself. ``firmware`` and ``serial`` are told in :attr:`identity`.
    ``worker`` starts the later chunks of a final state; by default a thread of its own. ``ahead``:
    a target makes room for the final image before that comes (:class:`ResumingFile`).
    """

    def __init__(
        self,
        port: CommandPort,
        vf_index: int,
        *,
        name: str,
        flr: Callable[[], None],
        firmware: str = "",
        serial: str = "",
        worker: Worker | None = None,
        ahead: bool = True,
    ) -> None:
        self._name = name
        self._flr = flr
        self._firmware = firmware
        self._serial = serial
        self._commands = Commands(port)
        self._ahead = ahead
        self._vf_index = vf_index
        self._worker: Worker = worker or ThreadPoolExecutor(1, thread_name_prefix="mlx5vf_wq")
        self._lock = threading.RLock()
        #: How often the thread that holds the lock has taken it.
        self._depth = 0
        self._deferred: deque[Callable[[], None]] = deque()
        self._state = DeviceState.RUNNING
        self._info_v2 = False
        self._closed = False
        self._saving: SavingFile | None = None
        self._resuming: ResumingFile | None = None
        self._tracker: PageTracker | None = None
        self.caps = capabilities.query(self._commands, vf_index)

    # --- Who it is and what it can do ---------------------------------------------------------

    @property
    def name(self) -> str:
        return self._name

    @property
    def identity(self) -> DeviceIdentity:
        caps = self.caps
        # An image can hold every QP that the card has room for, so a target needs as much room.
        room = frozenset(f"log_max_qp>={log}" for log in range(1, caps.log_max_qp + 1))
        supported = {"multi_load", "tracking_state"} if caps.migratable else set()
        return DeviceIdentity(
            vendor_id=VENDOR_ID,
            device_id=VF_DEVICE_ID,
            driver="mlx5",
            firmware=self._firmware,
            serial=self._serial,
            stream="mlx5",
            stream_version=STREAM_VERSION,
            needs=frozenset({"multi_load", f"log_max_qp>={caps.log_max_qp}"}),
            offers=room | supported,
            details={
                "vhca_id": f"{caps.vhca_id:#x}",
                "chunk mode": "yes" if caps.chunk_mode else "no",
                "REINIT": "yes" if caps.migration_state else "no",
            },
        )

    def watch_commands(self, told: Told) -> None:
        """Call ``told`` after each command that the driver gives from now on."""
        port = self._commands.port
        if isinstance(port, DoorbellPort):
            self._commands.port = WatchedPort(port, told)

    def _require_migratable(self) -> None:
        if self._closed:
            raise refuse(errno.ENODEV, f"{self._name} is closed")
        if not self.caps.migratable:
            raise refuse(errno.ENOTTY, f"{self._name} can't be migrated: {self.caps.reason}")

    @property
    def migration_flags(self) -> MigrationFlags:
        self._require_migratable()
        return MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY

    def features(self) -> Mapping[Feature, FeatureFlags]:
        if not self.caps.migratable:
            return {}
        logs = self.caps.page_track is not None and isinstance(self._commands.port, DoorbellPort)
        features = (*_MIGRATION_FEATURES, *(_LOGGING_FEATURES if logs else ()))
        return {feature: FEATURE_METHODS[feature][0] for feature in features}

    # --- The state lock, and what comes while it is held --------------------------------------

    @contextlib.contextmanager
    def _state_lock(self) -> Iterator[None]:
        with self._lock:
            self._depth += 1
            try:
                yield
            finally:
                self._let_go()

    def _let_go(self) -> None:
        """The outermost holder first does what was deferred (mlx5vf_state_mutex_unlock)."""
        try:
            while self._deferred and self._depth == 1:
                self._deferred.popleft()()
        finally:
            self._depth -= 1

    def _defer(self, work: Callable[[], None]) -> None:
        """Do ``work`` when nobody is on an arc.

        Called from inside a command of this thread, that is later: when it lets go of the state
        lock. Else it is done when this returns.
        """
        self._deferred.append(work)
        with self._state_lock():
            pass

    def reset(self) -> None:
        if self._closed:
            raise refuse(errno.ENODEV, f"{self._name} is closed")
        self._defer(self._reset)

    def _reset(self) -> None:
        # The kernel's FLR runs beside a transition, which may suspend the VF after it. Here it comes
        # after the transition, so that a VF in RUNNING does run.
        self._flr()
        self._state = DeviceState.RUNNING
        self._end_sessions()

    def _end_sessions(self) -> None:
        if self._resuming is not None:
            self._resuming.end()
            self._resuming = None
        if self._saving is not None:
            self._saving.end()
            self._saving = None

    def detach(self) -> None:
        """The PF takes the VF away (SR-IOV off): sessions end, later commands raise ENOTCONN."""
        self._wake_log("the VF is gone")
        self._defer(self._detach)

    def _detach(self) -> None:
        self._end_sessions()
        self._end_log()
        self._commands.detached = True

    def close(self) -> None:
        self._wake_log("the device is being closed")
        self._defer(self._close)

    def _close(self) -> None:
        if not self._closed:
            self._end_sessions()
            self._end_log()
            self._closed = True
            self._worker.shutdown(wait=False)

    # --- States and arcs ----------------------------------------------------------------------

    @property
    def state(self) -> DeviceState:
        self._require_migratable()
        with self._state_lock():
            pass
        return self._state

    def set_state(self, new: int) -> MigrationFile | None:
        self._require_migratable()
        handed_out: MigrationFile | None = None
        with self._state_lock():
            self._commands.require_attached()
            step = next_state(self._state, new, self.migration_flags)
            while step is not self._state:
                try:
                    handed_out = self._ARCS[self._state, step](self)
                except OSError as error:
                    arc = f"{self._state.name} -> {step.name}"
                    raise OSError(error.errno, f"{self._name}: {arc}: {error.strerror}") from error
                self._state = step
                step = next_state(self._state, new, self.migration_flags)
        return handed_out

    def _suspend_initiator(self) -> None:
        self._suspend(SuspendKind.INITIATOR)

    def _suspend_responder(self) -> None:
        self._suspend(SuspendKind.RESPONDER)

    def _suspend(self, kind: SuspendKind) -> None:
        if self._saving is not None:
            # A save can't turn tracking on in a VHCA that stops meanwhile.
            self._saving.wait_for_save()
        self._commands.suspend(self.caps.vhca_id, kind)

    def _resume_responder(self) -> None:
        self._commands.resume(self.caps.vhca_id, ResumeKind.RESPONDER)

    def _resume_initiator(self) -> None:
        self._commands.resume(self.caps.vhca_id, ResumeKind.INITIATOR)

    def _new_saving_file(self, *, track: bool) -> MigrationFile:
        saving = SavingFile(
            self._commands,
            self.caps.vhca_id,
            chunk_mode=self.caps.chunk_mode,
            ask_info=self._precopy_info,
            more_chunks=self._queue_chunk,
        )
        # The session is known before its first save completes, which may ask for the next chunk.
        self._saving = saving
        try:
            saving.open(track=track)
        except BaseException:
            self._saving = None
            raise
        return saving

    def _begin_precopy(self) -> MigrationFile:
        return self._new_saving_file(track=True)

    def _begin_stop_copy(self) -> MigrationFile:
        return self._new_saving_file(track=False)

    def _finish_precopy(self) -> None:
        assert self._saving is not None
        self._suspend_responder()
        try:
            self._saving.save_final()
        except OSError:
            # The arc is half done: the kernel (7.3) stays in PRE_COPY_P2P with the responder
            # suspended. Here that is undone, and where it can't be, the state says so.
            try:
                self._resume_responder()
            except OSError:
                self._state = DeviceState.ERROR
            raise

    def _cancel_precopy(self) -> None:
        assert self._saving is not None
        if not self._saving.cancel():
            # The kernel (7.3) forgets the session and stays in PRE_COPY, which no arc leaves then.
            raise refuse(errno.EIO, "the save that ends tracking failed; try again, or reset")
        self._end_sessions()

    def _begin_resuming(self) -> MigrationFile:
        self._resuming = ResumingFile(
            self._commands, self.caps.vhca_id, self._state_lock, ahead=self._ahead
        )
        return self._resuming

    def _finish_resuming(self) -> None:
        """The kernel (7.3) checks nothing here; a cut stream would give half a device."""
        assert self._resuming is not None
        why = self._resuming.unfinished()
        if why is None and self.caps.migration_state:
            size = self._commands.query_state(
                self.caps.vhca_id, incremental=False, chunk=self.caps.chunk_mode
            )
            if size.state == VhcaMigrationState.DIRTY:
                why = "the final image has not come"
        if why is not None:
            raise refuse(errno.EINVAL, f"the state is not complete: {why}")
        self._end_sessions()

    _ARCS: ClassVar[
        dict[tuple[DeviceState, DeviceState], Callable[["Mlx5VfioDevice"], MigrationFile | None]]
    ] = {
        (_R, _RP): _suspend_initiator,
        (_PC, _PCP): _suspend_initiator,
        (_RP, _S): _suspend_responder,
        (_S, _RP): _resume_responder,
        (_RP, _R): _resume_initiator,
        (_PCP, _PC): _resume_initiator,
        (_R, _PC): _begin_precopy,
        (_RP, _PCP): _begin_precopy,
        (_PCP, _SC): _finish_precopy,
        (_S, _SC): _begin_stop_copy,
        (_PC, _R): _cancel_precopy,
        (_PCP, _RP): _cancel_precopy,
        (_SC, _S): _end_sessions,
        (_S, _RES): _begin_resuming,
        (_RES, _S): _finish_resuming,
    }

    def _queue_chunk(self, saving: SavingFile, number: int, size: int) -> None:
        def work() -> None:
            with self._state_lock():
                saving.save_chunk(number, size)

        # After close() nobody is left to read the chunk.
        with contextlib.suppress(RuntimeError):
            self._worker.submit(work)

    def _precopy_info(self, saving: SavingFile) -> PrecopyInfo:
        with self._state_lock():
            if self._state not in PRE_COPY_STATES:
                raise refuse(errno.EINVAL, f"no precopy info in {self._state.name}")
            if saving is not self._saving:
                raise refuse(errno.ENODEV, "the saving session has ended")
            return saving.info(
                running=self._state is DeviceState.PRE_COPY,
                want_reinit=self._info_v2 and self.caps.migration_state,
            )

    def data_size(self) -> int:
        self._require_migratable()
        with self._state_lock():
            size = self._commands.query_state(
                self.caps.vhca_id, incremental=False, chunk=self.caps.chunk_mode
            )
        return size.total

    def enable_precopy_info_v2(self) -> None:
        self._require_migratable()
        self._info_v2 = True

    # --- DMA logging --------------------------------------------------------------------------

    def _logging_port(self) -> DoorbellPort:
        """The PF's port, where DMA can be logged through it; else ENOTTY."""
        self._require_migratable()
        port = self._commands.port
        if self.caps.page_track is None or not isinstance(port, DoorbellPort):
            raise refuse(errno.ENOTTY, f"{self._name} does not log DMA")
        return port

    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        port = self._logging_port()
        checked = check_ranges(ranges, page_size)
        with self._state_lock():
            self._commands.require_attached()
            if self._tracker is not None:
                raise refuse(errno.EINVAL, f"{self._name} logs DMA already; stop that log first")
            self._tracker = PageTracker(
                self._commands, port, self.caps, self._vf_index + 1, checked, page_size
            )
            return self._tracker.page_size

    def log_stop(self) -> None:
        self._logging_port()
        with self._state_lock():
            self._end_log()

    def _wake_log(self, why: str) -> None:
        """A report under way holds the state lock, for as long as the firmware does not go on."""
        tracker = self._tracker
        if tracker is not None:
            tracker.give_up(why)

    def _end_log(self) -> None:
        if self._tracker is not None:
            self._tracker.stop()
            self._tracker = None

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        self._logging_port()
        dirty = DirtyBitmap(iova, length, page_size, bitmap)
        with self._state_lock():
            if self._tracker is None:
                raise refuse(errno.EINVAL, f"{self._name} does not log DMA now; start a log first")
            self._tracker.report(dirty)
