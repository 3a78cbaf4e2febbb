"""The source: reads a device's state ahead while it runs, then hands the device over.

Whatever fails before RUN has been sent leaves the device RUNNING here. From RUN on it is the
target's, unless the target says that it did not and will not run it; what is not known is said, and
nothing is done here by itself.
"""

import contextlib
import threading
import time
from dataclasses import dataclass, field

from precopy.engine import manifest, messages
from precopy.engine.channel import (
    MEMORY,
    Channel,
    ChannelError,
    Closed,
    Interrupted,
)
from precopy.engine.listener import Listener, TargetFailed
from precopy.engine.memory import MemorySource
from precopy.engine.outcome import (
    Cancelled,
    Failed,
    InDoubt,
    MigrationError,
    Refused,
    Stopped,
    reason_of,
)
from precopy.engine.policy import Decision, Measured, Pace, Policy, predicted_downtime
from precopy.engine.progress import Progress, Snapshot, safely, silent
from precopy.engine.report import Image, Report
from precopy.engine.sending import Sending
from precopy.engine.timeline import Notes, Timeline, exchange, noting
from precopy.engine.timeline.clock import Clock
from precopy.pci.memory import PAGE_SIZE
from precopy.vfio.device import MigrationFile, PrecopyInfo
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import Feature

#: Seconds after which what was measured before still holds.
_SOON = 0.005


@dataclass(slots=True)
class Options:
    """``cancel``: set it to stop before the handover; ``silence``: seconds a peer may stand still."""

    precopy: bool = True
    policy: Policy = field(default_factory=Policy)
    silence: float = 30.0
    cancel: threading.Event = field(default_factory=threading.Event)
    #: Bytes a second, at most; 0: as fast as it goes.
    max_bandwidth: float = 0.0
    #: Who tells what the guest writes (see ``precopy.memory``).
    tracking: str = "auto"
    #: Bytes of a page that the device's DMA log is asked to tell apart; a power of two.
    log_page_size: int = PAGE_SIZE
    #: Middle images to ask for before the policy is asked, so that a short run shows some.
    min_rounds: int = 0
    #: Filled with what happens, on both sides; None: nobody wants to know.
    timeline: Timeline | None = None


class _Source:
    def __init__(
        self, opened: Opened, channel: Channel, options: Options, progress: Progress
    ) -> None:
        self._device, self._guest = opened.device, opened.guest
        self._opened, self._channel = opened, channel
        self._options, self._progress = options, safely(progress)
        channel.cancel = options.cancel
        channel.limit_writes(options.silence)
        self._timeline = options.timeline
        #: What is noted for it; None costs nothing.
        self._notes: Notes | None = None
        if self._timeline is not None:
            self._note_for(self._timeline)
        self._file: MigrationFile | None = None
        self._listener: Listener | None = None
        self._paused = self._slowed = False
        #: Whether the device has left RUNNING since this began.
        self._touched = False
        self._fixed = 0.0
        self._info = PrecopyInfo(0, 0)
        #: Whether the device can be read while it runs.
        self._live = options.precopy
        self._memory: MemorySource | None = None
        if self._guest is not None:
            self._memory = MemorySource(
                self._guest,
                self._device,
                channel,
                self._check,
                options.tracking,
                options.log_page_size,
            )
        channel.limit_rate(options.max_bandwidth)
        self.report = Report(source=opened.device.name, precopy=options.precopy)
        self._sending = Sending(
            channel, self.report, self._notes, opened.count_records, self._check, self._tell
        )

    def _note_for(self, timeline: Timeline) -> None:
        self._notes = notes = timeline.source = Notes()
        self._device = noting.NotingDevice(self._device, notes)
        self._progress = noting.telling(notes, self._progress)
        noting.watch(self._channel, notes)
        noting.watch_commands(self._opened, notes)

    # --- The run ------------------------------------------------------------------------------

    def run(self) -> Report:
        began = time.monotonic()
        try:
            try:
                self._tell("connecting")
                self._greet()
                if self._options.precopy:
                    self._read_ahead()
                self._switch_over()
                self._give_right()
            except Exception as error:
                raise self._undo(error) from error
            self._hand_over()
        except MigrationError as error:
            if self._timeline is not None:
                self._timeline.remarks.append(
                    "the target's side is missing: it is fetched once the device runs there"
                )
                self._timeline.end(str(error), self.report.to_dict())
            raise
        finally:
            if self._memory is not None:
                self._memory.end()
            if self._file is not None:
                self._file.close()
        self._add_memory()
        self.report.total_seconds = time.monotonic() - began
        self.report.bandwidth = self._sending.bandwidth
        self.report.outcome = "moved; the device runs at the target"
        if self._timeline is not None:
            self._end_timeline(self._timeline)
        return self.report

    def _end_timeline(self, timeline: Timeline) -> None:
        """All is done, and the device the target's: nothing here can change that."""
        timeline.end(self.report.outcome, self.report.to_dict())
        if timeline.clock is not None:
            exchange.fetch(timeline, self._channel)

    def _add_memory(self) -> None:
        memory = self._memory
        if memory is not None:
            self.report.memory = memory.report
            self.report.memory_bytes = memory.report.sent_bytes
            self.report.notes += memory.notes

    def _tell(self, phase: str) -> None:
        info = self._info
        self._progress(
            Snapshot(
                phase,
                self._sending.sent,
                self._sending.bandwidth,
                info.initial_bytes,
                info.dirty_bytes,
                self.report.predicted_downtime,
            )
        )

    def _check(self) -> None:
        if self._options.cancel.is_set():
            raise Interrupted("interrupted")
        self._target().check()

    def _greet(self) -> None:
        channel = self._channel
        self._listener = Listener(channel)
        messages.greet(channel, "precopy source")
        version = messages.agree(self._wait("hello")[1])
        if self._timeline is not None:
            self._compare_clocks(self._timeline, version)
        flags = self._device.migration_flags
        if self.report.precopy and not flags & MigrationFlags.PRE_COPY:
            self.report.precopy = self._live = False
            self.report.notes.append("the device has no PRE_COPY: moved while stopped")
        began = time.monotonic()
        messages.send(channel, "manifest", **manifest.describe(self._opened, self.report.precopy))
        kind, said = self._wait("accept", "refuse")
        if kind == "refuse":
            raise Refused(f"the target refuses: {said['reason']}")
        # A round trip now: two of them lie in every downtime.
        self._fixed = 2 * (time.monotonic() - began)
        self.report.target = said["name"]

    def _compare_clocks(self, timeline: Timeline, version: int) -> None:
        if version < exchange.SINCE:
            timeline.remarks.append(
                f"the target's side is missing: it speaks version {version} of the protocol"
            )
            return
        channel = self._channel
        messages.send(channel, "timeline")

        def answer() -> tuple[float, float]:
            return self._wait("time")[1]["at"], self._target().time_heard

        timeline.clock = Clock(exchange.compare(lambda: messages.send(channel, "clock"), answer))

    def _wait(self, *kinds: str) -> tuple[str, messages.Message]:
        """What the target owes now; meanwhile a cancel is heard."""
        options = self._options
        return self._target().wait(*kinds, timeout=options.silence, cancel=options.cancel)

    def _target(self) -> Listener:
        assert self._listener is not None
        return self._listener

    # --- While the device runs ----------------------------------------------------------------

    def _read_ahead(self) -> None:
        """Move what there is while it runs, until the policy says to switch over."""
        device, memory = self._device, self._memory
        tracked = memory is not None and memory.begin()
        if self._live:
            if Feature.MIG_PRECOPY_INFO_V2 in device.features():
                device.enable_precopy_info_v2()
            self._tell("PRE_COPY")
            self._touched = True
            self._file = device.set_state(DeviceState.PRE_COPY)
        elif not tracked:
            return
        pace = Pace(self._options.policy, self._options.min_rounds)
        sent = self._drain(Image("initial"), "initial image") if self._live else 0
        if memory is not None and tracked:
            self._sending.memory(memory, "guest memory")
        pace.begin(sent)
        while True:
            now = self._measure()
            self.report.predicted_downtime = predicted_downtime(now)
            self._tell("middle images")
            decision = pace.decide(now)
            if decision is not Decision.ANOTHER_ROUND:
                self._moment(decision.name)
            if decision is Decision.GIVE_UP:
                raise Cancelled(pace.complaint(now))
            if decision is Decision.SWITCH_OVER:
                if self._catch_up() <= _SOON or pace.stands(now := self._measure()):
                    break
                self.report.predicted_downtime = predicted_downtime(now)
            if decision is Decision.SLOW_DOWN and self._guest is not None:
                self._slowed = True
                self._guest.limit(pace.share)
            got = 0
            if self._live:
                got += self._drain(Image(f"middle {pace.middle}"), "middle images")
            if memory is not None and tracked:
                got += self._sending.memory(memory, "guest memory")
            pace.went(got)
        self.report.rounds = pace.rounds
        self.report.notes += pace.notes(now)

    def _catch_up(self) -> float:
        """Wait until the target has loaded all that was sent; the seconds that took.

        What it has not loaded would be waited for in the downtime.
        """
        began = time.monotonic()
        self._tell("until the target has caught up")
        messages.send(self._channel, "sync")
        self._wait("synced")
        return time.monotonic() - began

    def _measure(self) -> Measured:
        """What is left, by the device and by what has been written to memory, and how fast it goes."""
        asked = time.monotonic()
        if self._live:
            self._info = self._require_file().precopy_info()
        if self._memory is not None:
            self._memory.collect()
        answer = time.monotonic() - asked
        memory = self._memory
        if self._notes is not None and memory is not None:
            self._notes.count("memory_bytes", memory.remaining_bytes)
        return Measured(
            remaining_bytes=self._info.initial_bytes + self._info.dirty_bytes,
            bandwidth=self._sending.bandwidth,
            load_rate=self._target().load_rate,
            fixed=self._fixed + answer,
            memory_bytes=memory.remaining_bytes if memory is not None else 0,
            dirty_rate=memory.report.dirty_rate if memory is not None else 0.0,
        )

    def _require_file(self) -> MigrationFile:
        assert self._file is not None
        return self._file

    def _drain(self, image: Image, phase: str) -> int:
        """Send what there is to read now; the bytes sent."""
        return self._sending.image(self._require_file(), image, phase)

    # --- While it stands still ----------------------------------------------------------------

    def _switch_over(self) -> None:
        device, stages = self._device, self.report.stages
        self._check()
        self._tell("STOP_COPY")
        self._touched = True
        stamp = time.monotonic()

        def stage(name: str) -> float:
            nonlocal stamp
            now = time.monotonic()
            stages[name] = stages.get(name, 0.0) + now - stamp
            if self._notes is not None:
                self._notes.span("downtime", name, stamp, now)
            taken, stamp = now - stamp, now
            return taken

        if self._guest is not None:
            self._paused = True
            self._guest.pause()
            self._moment("guest paused")
            # Whoever lets it run again, be it by hand after a doubt, lets it run at full speed.
            self._full_speed()
        if device.migration_flags & MigrationFlags.P2P:
            running = DeviceState.PRE_COPY_P2P if self._file else DeviceState.RUNNING_P2P
            device.set_state(running)
        stage("suspend")
        file = device.set_state(DeviceState.STOP_COPY)
        if file is not None:
            self._file = file
        self._require_file().poll(timeout=None)
        stage("query and save")
        if self._memory is not None:
            self._memory.collect(stopped=True)
            stage("dirty pages")
        messages.send(self._channel, "final")
        before = sum(image.bytes for image in self.report.images)
        final = self._drain(Image("final"), "final image")
        digest = self._channel.end_sent()
        self.report.digest = f"{digest:016x}"
        messages.send(self._channel, "end", bytes=before + final, digest=digest)
        if self._memory is not None:
            self._sending.memory(self._memory, "guest memory, stopped")
        messages.send(self._channel, "switch", digest=self._channel.end_sent(MEMORY))
        self._tell("waiting for the target")
        _, ready = self._wait("ready")
        taken = stage("transfer")
        for name in ("validate", "load"):
            part = min(ready[name] + (ready["memory"] if name == "load" else 0.0), taken)
            stages["transfer"] -= part
            taken -= part
            stages[name] = part
        self._stamp = stamp

    # --- The handover -------------------------------------------------------------------------

    def _give_right(self) -> None:
        """Send RUN, the one frame that gives the target the right to run.

        Only a whole frame does: one that could not be sent to its end is void, so that an error
        here still leaves the device to this side.
        """
        self._check()
        self._tell("handover")
        messages.send(self._channel, "run")

    def _hand_over(self) -> None:
        doubt = None
        try:
            # No cancel any more: the device is the target's.
            kind, said = self._target().wait("running", "stuck", timeout=self._options.silence)
            if kind == "stuck":
                doubt = f"it took the right and can't run: {said['reason']}"
        except TargetFailed as error:
            # It gave up before RUN came, or its device never left STOP: the state here is the only one.
            raise self._undo(error) from error
        except ChannelError as error:
            doubt = str(error)
        if doubt is not None:
            raise InDoubt(
                "in doubt: the right to run was given to the target, which did not confirm it"
                f" ({doubt}); nothing runs here, the device may run there: look at"
                f" {self.report.target} at the target before you start anything"
            )
        now = time.monotonic()
        waited = now - self._stamp
        resume = min(float(said["resume"]), waited)
        self.report.stages["resume"] = resume
        self.report.stages["handover"] = waited - resume
        if self._notes is not None:
            self._notes.span("downtime", "handover", self._stamp, now)
        with contextlib.suppress(OSError):
            self._device.set_state(DeviceState.STOP)
        self._tell("done")

    # --- When it fails ------------------------------------------------------------------------

    def _undo(self, error: Exception) -> MigrationError:
        """Let the device run here again; the error that says what happened."""
        text = reason_of(error)
        kind: type[MigrationError] = Failed
        if isinstance(error, Interrupted):
            kind, text = Cancelled, "cancelled"
        elif isinstance(error, MigrationError) and not isinstance(error, TargetFailed):
            kind = type(error)
        elif isinstance(error, ChannelError) and self._listener is not None:
            # The target may have said why before it went; the word may still be on its way.
            objection = self._listener.objection(1.0 if isinstance(error, Closed) else 0.0)
            if objection:
                text = f"the target failed: {objection}"
        with contextlib.suppress(ChannelError):
            self._channel.limit_writes(1.0)
            messages.send_reason(self._channel, "abort", text)
        self._full_speed()
        if not self._touched:
            return kind(f"{text}; nothing has changed, the device is where it was")
        try:
            self._device.set_state(DeviceState.RUNNING)
            if self._paused and self._guest is not None:
                self._guest.start()
                self._moment("guest started again")
                self._paused = False
        except Exception as second:
            return Stopped(
                f"{text}; then the device could not be resumed here: {reason_of(second)}."
                f" It stands in {self._state_name()}"
            )
        return kind(f"{text}; the device runs at the source")

    def _full_speed(self) -> None:
        """Give a guest that was slowed down all its time again."""
        if self._slowed and self._guest is not None:
            self._slowed = False
            self._guest.limit(1.0)

    def _moment(self, name: str) -> None:
        if self._notes is not None:
            self._notes.moment(name)

    def _state_name(self) -> str:
        try:
            return self._device.state.name
        except OSError:
            return "an unknown state"


def migrate(
    opened: Opened,
    channel: Channel,
    options: Options | None = None,
    progress: Progress = silent,
) -> Report:
    """Move the device (and its guest) of ``opened`` to the target at the other end of ``channel``.

    Raises MigrationError; its kind says where the device is. The caller closes ``opened``: after a
    success the device stands in STOP, to be given back.
    """
    return _Source(opened, channel, options or Options(), progress).run()
