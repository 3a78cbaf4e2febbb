"""A small software device, right in all requirements, that can deviate in one named way at a time."""

import errno
import threading
import time
from collections.abc import Mapping, Sequence

from precopy.vfio.device import DeviceIdentity, DmaRange, MigrationFile, VfioDevice
from precopy.vfio.errors import refuse
from precopy.vfio.states import DeviceState, MigrationFlags, path
from precopy.vfio.uapi import FEATURE_METHODS, Feature, FeatureFlags
from tests.conformance.deviations import ALL, DEVIATIONS
from tests.conformance.faulty_files import ResumingFile, SavingFile
from tests.conformance.faulty_log import Log
from tests.conformance.faulty_stream import BadState, initial_state, load

E, S, R, SC, RES, RP, PC, PCP = DeviceState

_SAVING = {(R, PC), (RP, PCP), (S, SC)}
_ENDS = {(PC, R), (PCP, RP), (SC, S)}
_PCI_V2 = Feature.MIG_PRECOPY_INFO_V2


class FaultyDevice(VfioDevice):
    """``deviation``: a name of ``DEVIATIONS``, or "": none. ``kept``: what outlived a close."""

    def __init__(
        self, deviation: str = "", flags: MigrationFlags = ALL, kept: Log | None = None
    ) -> None:
        assert not deviation or deviation in DEVIATIONS, deviation
        self.deviation, self._flags = deviation, flags
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.log = kept or Log(self.has)
        self.memory = initial_state()
        self.loads = self.gets = self.stops = 0
        self.info_v2 = False
        self.session: SavingFile | ResumingFile | None = None
        self.left_behind = bytearray()
        self.failed = False
        self._state = S if self.has("STOP at first") else R
        self._late: DeviceState | None = None

    def has(self, deviation: str) -> bool:
        """Whether this is the way in which the device deviates."""
        assert deviation in DEVIATIONS, deviation
        return self.deviation == deviation

    # --- What it says of itself ---------------------------------------------------------------

    @property
    def name(self) -> str:
        return "faulty"

    @property
    def identity(self) -> DeviceIdentity:
        return DeviceIdentity(0x1B36, 0x11, "faulty", "1", "1", "mtty")

    @property
    def migration_flags(self) -> MigrationFlags:
        if self.has("no STOP_COPY flag"):
            return MigrationFlags(6)
        return MigrationFlags(15) if self.has("a flag that there is not") else self._flags

    def features(self) -> Mapping[Feature, FeatureFlags]:
        found = {each: methods for each, (methods, _) in FEATURE_METHODS.items()}
        if not self._flags & MigrationFlags.PRE_COPY:
            del found[_PCI_V2]
        if self.has("no MIG_DATA_SIZE"):
            del found[Feature.MIG_DATA_SIZE]
        return found

    def probe(self, feature: int, methods: FeatureFlags = FeatureFlags(0)) -> bool:  # noqa: B008
        return self.has("an unknown feature can be probed") or super().probe(feature, methods)

    # --- States -------------------------------------------------------------------------------

    @property
    def state(self) -> DeviceState:
        with self.lock:
            self.gets += 1
            found = self._state
            if self._late is not None:
                self._state, self._late = self._late, None
            elif (self.has("STOP wakes up") and found is S and self.gets > 10) or (
                self.has("PRE_COPY falls back") and found is PC and self.gets > 10
            ):
                self._enter(R)
            return found

    def set_state(self, new: int) -> MigrationFile | None:
        if self.has("SETs do not wait for each other"):
            if not self.lock.acquire(blocking=False):
                raise refuse(errno.EBUSY, "another SET is under way")
            try:
                time.sleep(0.005)
                return self._set_state(new)
            finally:
                self.lock.release()
        with self.lock:
            return self._set_state(new)

    def _odd_target(self, new: int) -> bool:
        """Targets that a device refuses; whether a deviation takes them."""
        here, has = self._state, self.has
        if new == E:
            if has("ERROR can be set"):
                self._state = E
                return True
            if has("SET of ERROR is ENOTTY"):
                raise refuse(errno.ENOTTY, "no such state")
            if has("SET of ERROR stops"):
                self._state = S
        if new > PCP:
            if has("state 8 is ENOENT"):
                raise refuse(errno.ENOENT, "no such state")
            if has("a refused SET stops"):
                self._state = S
            return has("state 9 is taken")
        if here is E and has("a SET leaves ERROR"):
            self._state = R
        if new == RP and not self._flags & MigrationFlags.P2P and has("P2P without its flag"):
            self._state = R
            return True
        if new == PC and not self._flags & 4 and has("PRE_COPY without its flag is ENOTTY"):
            raise refuse(errno.ENOTTY, "no such state")
        if here is SC and new in (PC, PCP):
            if has("STOP_COPY is lost on the way back"):
                self._enter(S)
            return has("PRE_COPY after STOP_COPY")
        if (here is S and new == RES and has("STOP to RESUMING is refused")) or (
            here is PC and new == S and has("PRE_COPY to STOP is refused")
        ):
            raise refuse(errno.EINVAL, "no such arc")
        return False

    def _set_state(self, new: int) -> MigrationFile | None:
        if self._odd_target(new):
            return None
        origin = self._state
        if self._state == new and new != E:
            if self.has("SET of the present state is EINVAL"):
                raise refuse(errno.EINVAL, "already there")
            if self.has("SET of the present state begins anew") and self.session is not None:
                self.session.end()
            return None
        steps = path(self._state, new, self._flags)
        file: MigrationFile | None = None
        for step in steps:
            try:
                file = self._enter(step)
            except OSError:
                if self.has("a failed SET leaves the target"):
                    self._state = DeviceState(new)
                raise
        if self.has("a SET is asynchronous") and origin is not self._state:
            self._late, self._state = self._state, origin
        if self.has("RESUMING ends in STOP") and origin is RES:
            self._state = S
        return self._handed_out(file, origin)

    def _handed_out(self, file: MigrationFile | None, origin: DeviceState) -> MigrationFile | None:
        here, has = self._state, self.has
        if here is SC and origin in (PC, PCP) and has("a data_fd from PRE_COPY to STOP_COPY"):
            return self.session
        if here is R and has("a data_fd with RUNNING"):
            return SavingFile(self, precopy=False)
        return None if here is PCP and has("no data_fd with PRE_COPY_P2P") else file

    def _enter(self, new: DeviceState) -> MigrationFile | None:
        """One arc."""
        arc = (self._state, new)
        session = self.session
        file: SavingFile | ResumingFile | None = None
        if arc in _SAVING:
            file = self.session = SavingFile(self, precopy=new is not SC)
        elif arc == (S, RES):
            file = self.session = ResumingFile(self, bytes(self.left_behind))
        elif arc in _ENDS and session is not None:
            if new is S and session.closed and self.has("a closed file breaks STOP"):
                raise refuse(errno.EIO, "the file is closed")
            if new is R and session.closed and self.has("a closed file keeps PRE_COPY"):
                return None
            session.end()
        elif arc == (RES, S) and isinstance(session, ResumingFile):
            self._load(session)
            session.end()
        elif new is SC and isinstance(session, SavingFile):
            session.finish()
        elif arc == (PC, PCP) and isinstance(session, SavingFile):
            if self.has("PRE_COPY_P2P begins anew"):
                session.end()
                self.session = SavingFile(self, precopy=True)
            elif self.has("initial_bytes is set anew by an arc"):
                session.initial += 8
        self._state = new
        if new is S:
            self.stops += 1
            if self.has("STOP ends the log"):
                self.log.stop()
        if new is PC and self.has("PRE_COPY clears the log"):
            self.log.dirty.clear()
        self.changed.notify_all()
        return file

    def _load(self, session: ResumingFile) -> None:
        try:
            unchecked = self.has("a second session is not checked") and self.loads > 0
            if self.failed:
                raise BadState("an earlier load has failed", broken=False)
            state = load(bytes(session.data), self.has, unchecked=unchecked)
            if session.error:
                raise BadState("a write has failed", broken=False)
        except BadState as bad:
            if self.has("RESET does not forget a failed load"):
                self.failed = True
            if self.has("a failed load is RUNNING"):
                self._state = R
            elif bad.broken:
                session.end()
                self._state = E
            raise refuse(errno.EINVAL, str(bad)) from bad
        self.loads += 1
        if self.has("a second session begins with the first"):
            self.left_behind = bytearray(session.data)
        if state is not None:
            self.memory = state

    # --- The rest -----------------------------------------------------------------------------

    def data_size(self) -> int:
        if self.has("MIG_DATA_SIZE while RUNNING only") and self._state is not R:
            raise refuse(errno.EBUSY, "not RUNNING")
        if self.has("MIG_DATA_SIZE changes the state") and self._state is PC:
            self.set_state(R)
        if self.has("MIG_DATA_SIZE is a terabyte"):
            return 1 << 40
        return (1 << 64) - 1 if self.has("MIG_DATA_SIZE is negative") else len(self.memory) + 36

    def enable_precopy_info_v2(self) -> None:
        if not self._flags & MigrationFlags.PRE_COPY and not self.has("INFOv2 without PRE_COPY"):
            raise refuse(errno.EINVAL, "no PRE_COPY")
        if self.info_v2 and self.has("INFOv2 only once"):
            raise refuse(errno.EALREADY, "set already")
        self.info_v2 = True

    def reset(self, *, flr: bool = False) -> None:
        with self.lock:
            alive = "FLR leaves the session alive" if flr else "RESET leaves the session alive"
            if self._state is RES and self.has("RESET is refused while RESUMING"):
                raise refuse(errno.EBUSY, "RESUMING")
            if self._state is E and self.has("RESET does not leave ERROR"):
                return
            session = self.session
            if session is not None and not self.has(alive):
                session.end()
            if isinstance(session, ResumingFile) and self.has("RESET keeps what was written"):
                self.left_behind = bytearray(session.data)
            stays = (flr and self.has("FLR leaves the state")) or (
                self._state is S and self.has("RESET leaves STOP")
            )
            if not stays:
                self._state = R
            self._late = None
            self.memory = initial_state()
            self.stops = 0
            self.changed.notify_all()

    def close(self) -> None:
        with self.lock:
            if self.session is not None and not self.has("closing the device leaves its files"):
                self.session.end()
            self.changed.notify_all()

    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        with self.lock:
            return self.log.start(ranges, page_size)

    def log_stop(self) -> None:
        with self.lock:
            if not self.log.active and self.has("STOP without a log is EINVAL"):
                raise refuse(errno.EINVAL, "no log")
            self.log.stop()

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        with self.lock:
            self.log.report(iova, length, page_size, bitmap)
