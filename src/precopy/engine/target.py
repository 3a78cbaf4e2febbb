"""The target: loads a device's state while it arrives, and runs the device once it is told to.

Until RUN has come nothing runs here, and whatever goes wrong leaves the device as it was before:
reset, RUNNING and unused. ``failed`` is said only where that holds; so a source that hears it may
run its device again, even after RUN.
"""

import contextlib
import threading
import time
from dataclasses import dataclass, field

from precopy.engine import manifest, messages
from precopy.engine.channel import (
    CONTROL,
    DATA,
    MEMORY,
    Channel,
    ChannelError,
    Interrupted,
)
from precopy.engine.messages import Message
from precopy.engine.outcome import (
    Cancelled,
    Failed,
    MigrationError,
    Refused,
    Stopped,
    reason_of,
)
from precopy.engine.pages import PageTarget
from precopy.engine.progress import Progress, Snapshot, safely, silent
from precopy.engine.timeline import Notes, exchange, noting
from precopy.vfio.device import MigrationFile
from precopy.vfio.guest import Guest, Opened
from precopy.vfio.states import DeviceState

#: The messages of the stream, and what is being sent when each may come.
_BEFORE = {
    "sync": ("PRE_COPY",),
    "final": ("PRE_COPY",),
    "end": ("final image",),
    "pages": ("PRE_COPY", "guest memory"),
    "switch": ("guest memory",),
}

#: Bytes of the device's stream after which the source is told how fast they were loaded.
_TELL_EVERY = 4 << 20


@dataclass(slots=True)
class TargetOptions:
    """``silence``: seconds a source may stand still; ``max_memory``: bytes of guest memory taken.

    ``cancel``: set it to give up, as long as the right to run has not come.
    """

    silence: float = 30.0
    max_memory: int = manifest.MAX_MEMORY
    cancel: threading.Event = field(default_factory=threading.Event)
    #: Filled with what happens here; None: nobody here wants to know.
    notes: Notes | None = None
    #: Leave the device in STOP, its guest not started: who asks for it has it alone (``precopy load``).
    keep_stopped: bool = False


@dataclass(slots=True)
class Received:
    """What came: bytes of the device's stream, and the guest that runs now, where there is one."""

    source: str
    device_bytes: int
    guest: Guest | None = None
    notes: list[str] = field(default_factory=list)


class _Target:
    def __init__(
        self, opened: Opened, channel: Channel, options: TargetOptions, progress: Progress
    ) -> None:
        self._opened, self._device, self._channel = opened, opened.device, channel
        self._options, self._progress = options, safely(progress)
        channel.cancel = options.cancel
        channel.limit_reads(options.silence)
        channel.limit_writes(options.silence)
        self._file: MigrationFile | None = None
        self._guest: Guest | None = None
        self._memory: PageTarget | None = None
        self._bytes = 0
        self._told = 0
        self._load = 0.0
        self._final_load = self._memory_load = self._final_came = 0.0
        self._resuming = False
        self._source = ""
        #: What is noted, for here or for a source that asked; None costs nothing.
        self._notes: Notes | None = None
        self._asked = False
        if options.notes is not None:
            self._note(options.notes)

    def _note(self, notes: Notes) -> None:
        self._notes = notes
        self._device = noting.NotingDevice(self._device, notes)
        self._progress = noting.telling(notes, self._progress)
        noting.watch(self._channel, notes)
        noting.watch_commands(self._opened, notes)

    def run(self) -> Received:
        try:
            try:
                self._greet()
                self._receive()
                self._validate()
                self._expect("run")
            except Refused:
                raise
            except Exception as error:
                raise self._undo(error) from error
            return self._take_over()
        finally:
            # Its views would keep the memory mapped for as long as an error's frames live.
            self._memory = None
            if self._file is not None:
                self._file.close()

    def _tell(self, phase: str) -> None:
        rate = self._bytes / self._load if self._load else 0.0
        self._progress(Snapshot(phase, self._bytes, rate))

    # --- Before anything changes --------------------------------------------------------------

    def _greet(self) -> None:
        channel = self._channel
        messages.greet(channel, "precopy target")
        version = messages.agree(self._expect("hello"))
        wanted = self._manifest(version)
        self._source = wanted["name"]
        reason = manifest.why_not(self._opened, wanted, self._options.max_memory)
        if reason is None:
            reason = self._adopt(wanted)
        if reason is not None:
            with contextlib.suppress(ChannelError):
                messages.send_reason(channel, "refuse", reason)
            raise Refused(f"refused {self._source}: {reason}")
        self._tell("RESUMING")
        self._resuming = True
        self._file = self._device.set_state(DeviceState.RESUMING)
        who = self._device.identity
        messages.send(
            channel,
            "accept",
            name=self._device.name,
            driver=who.driver,
            firmware=who.firmware,
            serial=who.serial,
        )

    def _manifest(self, version: int) -> Message:
        """The manifest, which a source that wants a timeline prepares that before."""
        asides = ("timeline", "clock") if version >= exchange.SINCE else ()
        for _ in range(exchange.MOST_CLOCKS):
            said, fields = messages.expect(self._channel, "manifest", "abort", *asides)
            if said == "manifest":
                return fields
            if said == "abort":
                raise Failed(f"the source gave up: {fields['reason']}")
            if said == "timeline":
                self._asked = True
                if self._notes is None:
                    self._note(Notes())
            else:
                exchange.answer_clock(self._channel)
        raise ChannelError("the source asks for the time without an end")

    def _expect(self, kind: str) -> Message:
        """The next message, which has to be ``kind``. Failed where the source gives up instead."""
        said, fields = messages.expect(self._channel, kind, "abort")
        if said == "abort":
            raise Failed(f"the source gave up: {fields['reason']}")
        return fields

    def _adopt(self, wanted: Message) -> str | None:
        """A guest for the source's memory, where it has one; why there can be none, or None."""
        if not wanted["guest"]:
            return None
        assert self._opened.adopt_guest is not None
        try:
            self._guest = self._opened.adopt_guest(manifest.regions(wanted))
        except (OSError, ValueError, RuntimeError) as error:
            return f"there is no room for the guest's memory: {reason_of(error)}"
        return None

    # --- The stream ---------------------------------------------------------------------------

    def _receive(self) -> None:
        """Everything up to ``switch``; device state is loaded, memory copied, as they come."""
        stage = "PRE_COPY"
        if self._guest is not None:
            self._memory = PageTarget(self._guest.memory)
        while True:
            if self._options.cancel.is_set():
                raise Interrupted("interrupted")
            frame, payload = self._channel.receive(self._place)
            if frame == CONTROL:
                kind, fields = messages.decode(payload)
                if kind == "abort":
                    raise Failed(f"the source gave up: {fields['reason']}")
                if self._memory is not None and self._memory.missing:
                    raise ChannelError(f"{kind} though {self._memory.missing} pages are missing")
                if stage not in _BEFORE.get(kind, ()):
                    raise ChannelError(f"{kind} has no place in the {stage}")
                if kind == "sync":
                    messages.send(self._channel, "synced")
                elif kind == "final":
                    self._final_load = self._load
                    self._final_came = time.monotonic()
                    self._tell("final image")
                    stage = "final image"
                elif kind == "end":
                    self._end(fields)
                    stage = "guest memory"
                elif kind == "pages":
                    if self._memory is None:
                        raise ChannelError("pages of a guest that is not there")
                    self._channel.count_received(MEMORY, payload)
                    self._memory.announce(fields)
                else:
                    self._compare(fields["digest"], "guest memory", MEMORY)
                    return
            elif frame == MEMORY:
                if self._memory is None:
                    raise ChannelError("guest memory, but there is no guest")
                began = time.monotonic()
                self._memory.take(payload)
                ended = time.monotonic()
                if stage == "guest memory":
                    self._memory_load += ended - began
                if self._notes is not None:
                    self._notes.span("memory", "pages", began, ended, bytes=len(payload))
            elif stage != "guest memory":
                self._load_piece(payload)
            else:
                raise ChannelError("the device's state goes on after its end")

    def _place(self, length: int) -> memoryview | None:
        return self._memory.place(length) if self._memory is not None else None

    def _load_piece(self, payload: memoryview) -> None:
        assert self._file is not None
        began = time.monotonic()
        view = payload
        while view:
            try:
                view = view[self._file.write(view) :]
            except OSError as error:
                where = self._bytes + len(payload) - len(view)
                raise Failed(
                    f"the device refuses its state (write at byte {where}): {reason_of(error)}"
                ) from error
        ended = time.monotonic()
        self._load += ended - began
        if self._notes is not None:
            image = "final" if self._final_came else "initial and middle"
            self._notes.span("loaded", image, began, ended, bytes=len(payload))
        self._bytes += len(payload)
        if self._bytes - self._told >= _TELL_EVERY:
            self._told = self._bytes
            messages.send(self._channel, "loaded", bytes=self._bytes, seconds=self._load)
        self._tell("loading")

    def _compare(self, digest: int, what: str, stream: int = DATA) -> None:
        if self._channel.end_received(stream) != digest:
            raise ChannelError(f"the digest of {what} is not the source's")

    def _end(self, fields: Message) -> None:
        if fields["bytes"] != self._bytes:
            raise ChannelError(f"{self._bytes} of {fields['bytes']} bytes of the state have come")
        self._compare(fields["digest"], "the device's state")
        if self._notes is not None:
            now, load = time.monotonic(), self._load - self._final_load
            self._notes.span("downtime", "final image", self._final_came, now, load_seconds=load)

    # --- The handover -------------------------------------------------------------------------

    def _validate(self) -> None:
        began = time.monotonic()
        self._tell("validating")
        self._device.set_state(DeviceState.STOP)
        took = time.monotonic() - began
        if self._notes is not None:
            self._notes.span("downtime", "validate", began, began + took)
        messages.send(
            self._channel,
            "ready",
            load=self._load - self._final_load,
            memory=self._memory_load,
            validate=took,
        )
        self._tell("ready")

    def _take_over(self) -> Received:
        """RUN has come: the device is this side's, whatever happens to the connection."""
        began = time.monotonic()
        found = Received(self._source, self._bytes, self._guest)
        try:
            if not self._options.keep_stopped:
                self._run()
        except Exception as error:
            raise self._cannot_run(error) from error
        took = time.monotonic() - began
        if self._notes is not None:
            self._notes.span("downtime", "resume", began, began + took)
            if self._guest is not None:
                self._notes.moment("guest started")
        try:
            messages.send(self._channel, "running", resume=took)
        except ChannelError as error:
            found.notes.append(f"the device runs here, but the source could not be told: {error}")
        self._tell("running")
        if self._notes is not None:
            self._notes.phase(None)
            if self._asked and not found.notes:
                trouble = exchange.serve(self._channel, self._notes)
                found.notes += [trouble] if trouble is not None else []
        return found

    def _run(self) -> None:
        self._device.set_state(DeviceState.RUNNING)
        if self._guest is not None:
            self._guest.start()

    # --- When it fails ------------------------------------------------------------------------

    def _state(self) -> DeviceState | None:
        try:
            return self._device.state
        except OSError:
            return None

    def _cannot_run(self, error: Exception) -> MigrationError:
        """RUN has come, and the device does not run."""
        state = self._state()
        reason = f"it can't run here: {reason_of(error)}"
        if state is DeviceState.STOP:
            # It has not done anything since it was loaded, so it can still be given back.
            return self._undo(Failed(reason))
        reason += f"; it stands in {state.name if state else 'an unknown state'}"
        with contextlib.suppress(ChannelError):
            messages.send_reason(self._channel, "stuck", reason)
        return Stopped(f"the device was handed over and {reason}; nothing runs at the source")

    def _undo(self, error: Exception) -> MigrationError:
        kind: type[MigrationError] = Failed
        text = reason_of(error)
        if isinstance(error, Interrupted):
            kind, text = Cancelled, "cancelled"
        with contextlib.suppress(ChannelError):
            messages.send_reason(self._channel, "failed", text)
        if self._guest is not None:
            self._guest.close()
            self._opened.guest = None
        if self._resuming:
            try:
                self._device.reset()
            except OSError as second:
                text += f"; then the device could not be reset: {reason_of(second)}"
        return kind(f"{text}; nothing runs here")


def receive(
    opened: Opened,
    channel: Channel,
    options: TargetOptions | None = None,
    progress: Progress = silent,
) -> Received:
    """Take one device, and its guest, into ``opened`` from the source at the other end.

    Raises MigrationError: Refused before anything has changed; Failed or Cancelled later, then nothing
    runs here, and the device is as after a reset; Stopped where the source has let go of a device
    that can't run here. The caller closes ``opened``.
    """
    return _Target(opened, channel, options or TargetOptions(), progress).run()
