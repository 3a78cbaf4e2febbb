"""The target: loads a device's state while it arrives, and runs the device once it is told to.

Until RUN has come nothing runs here, and whatever goes wrong leaves the device as it was before:
reset, RUNNING and unused.
"""

import contextlib
import time
from dataclasses import dataclass, field

from precopy.engine import manifest, messages
from precopy.engine.channel import CONTROL, Channel, ChannelError
from precopy.engine.messages import Message
from precopy.engine.outcome import Failed, MigrationError, Refused
from precopy.engine.progress import Progress, Snapshot, silent
from precopy.vfio.device import MigrationFile
from precopy.vfio.guest import Guest, Opened
from precopy.vfio.states import DeviceState

#: Bytes of the device's stream after which the source is told how fast they were loaded.
_TELL_EVERY = 4 << 20


@dataclass(slots=True)
class TargetOptions:
    """``silence``: seconds a source may stand still; ``max_memory``: bytes of guest memory taken."""

    silence: float = 30.0
    max_memory: int = manifest.MAX_MEMORY


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
        self._options, self._progress = options, progress
        self._file: MigrationFile | None = None
        self._guest: Guest | None = None
        self._bytes = 0
        self._told = 0
        self._load = 0.0
        self._final_load = self._memory_load = 0.0
        self._resuming = False
        self._source = ""

    def run(self) -> Received:
        try:
            self._greet()
            self._receive()
            self._validate()
            self._await_run()
        except Refused:
            raise
        except (MigrationError, ChannelError, OSError, ValueError, RuntimeError) as error:
            raise self._undo(error) from error
        return self._take_over()

    def _tell(self, phase: str) -> None:
        rate = self._bytes / self._load if self._load else 0.0
        self._progress(Snapshot(phase, self._bytes, rate))

    # --- Before anything changes --------------------------------------------------------------

    def _greet(self) -> None:
        channel = self._channel
        channel.timeout(self._options.silence)
        messages.hello(channel, "precopy target")
        _, wanted = messages.expect(channel, "manifest")
        self._source = wanted["name"]
        reason = manifest.why_not(self._opened, wanted, self._options.max_memory)
        if reason is not None:
            messages.send(channel, "refuse", reason=reason)
            raise Refused(f"refused {self._source}: {reason}")
        if wanted["guest"]:
            assert self._opened.adopt_guest is not None
            self._guest = self._opened.adopt_guest(manifest.regions(wanted))
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

    # --- The stream ---------------------------------------------------------------------------

    def _receive(self) -> None:
        """Everything up to ``switch``; device state is loaded, memory copied, as they come."""
        device_over = False
        left = at = region = 0
        while True:
            frame, payload = self._channel.receive()
            if frame == CONTROL:
                kind, fields = messages.decode(payload)
                if kind == "abort":
                    raise Failed(f"the source gave up: {fields['reason']}")
                if left:
                    raise ChannelError(f"{kind} though {left} bytes of guest memory are missing")
                if kind == "final" and not device_over:
                    self._final_load = self._load
                    self._tell("final image")
                elif kind == "end" and not device_over:
                    self._end(fields)
                    device_over = True
                elif kind == "extent" and device_over:
                    region, at, left = self._extent(fields)
                elif kind == "switch" and device_over:
                    self._compare(fields["digest"], "guest memory")
                    return
                else:
                    raise ChannelError(f"{kind} has no place here")
            elif not device_over:
                self._load_piece(payload)
            else:
                if len(payload) > left:
                    raise ChannelError("guest memory beyond its extent")
                began = time.monotonic()
                assert self._guest is not None
                self._guest.memory.regions[region].view[at : at + len(payload)] = payload
                self._memory_load += time.monotonic() - began
                at, left = at + len(payload), left - len(payload)

    def _load_piece(self, payload: memoryview) -> None:
        assert self._file is not None
        began = time.monotonic()
        view = payload
        while view:
            try:
                view = view[self._file.write(view) :]
            except OSError as error:
                where = self._bytes + len(payload) - len(view)
                raise Failed(f"byte {where} of the state: {error.strerror}") from error
        self._load += time.monotonic() - began
        self._bytes += len(payload)
        if self._bytes - self._told >= _TELL_EVERY:
            self._told = self._bytes
            messages.send(self._channel, "loaded", bytes=self._bytes, seconds=self._load)
        self._tell("loading")

    def _compare(self, digest: int, what: str) -> None:
        if self._channel.end_received() != digest:
            raise ChannelError(f"the digest of {what} is not the source's")

    def _end(self, fields: Message) -> None:
        if fields["bytes"] != self._bytes:
            raise ChannelError(f"{self._bytes} of {fields['bytes']} bytes of the state have come")
        self._compare(fields["digest"], "the device's state")

    def _extent(self, fields: Message) -> tuple[int, int, int]:
        index, offset, length = fields["region"], fields["offset"], fields["length"]
        regions = self._guest.memory.regions if self._guest is not None else []
        if index >= len(regions) or offset + length > regions[index].spec.length:
            raise ChannelError(f"extent {index}:{offset:#x}+{length:#x} is outside guest memory")
        return index, offset, length

    # --- The handover -------------------------------------------------------------------------

    def _validate(self) -> None:
        began = time.monotonic()
        self._tell("validating")
        self._device.set_state(DeviceState.STOP)
        took = time.monotonic() - began
        messages.send(
            self._channel,
            "ready",
            load=self._load - self._final_load,
            memory=self._memory_load,
            validate=took,
        )
        self._tell("ready")

    def _await_run(self) -> None:
        kind, fields = messages.expect(self._channel, "run", "abort")
        if kind == "abort":
            raise Failed(f"the source gave up: {fields['reason']}")

    def _take_over(self) -> Received:
        """RUN has come: the device is this side's, whatever happens to the connection."""
        began = time.monotonic()
        found = Received(self._source, self._bytes, self._guest)
        try:
            self._device.set_state(DeviceState.RUNNING)
            if self._guest is not None:
                self._guest.start()
        except (OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            with contextlib.suppress(ChannelError):
                messages.send(self._channel, "failed", reason=f"it can't run here: {reason}")
            raise Failed(
                f"the device was handed over and can't run here: {reason}; it stands in"
                f" {self._device.state.name}, and nothing runs at the source"
            ) from error
        try:
            messages.send(self._channel, "running", resume=time.monotonic() - began)
        except ChannelError as error:
            found.notes.append(f"the device runs here, but the source could not be told: {error}")
        self._tell("running")
        return found

    # --- When it fails ------------------------------------------------------------------------

    def _undo(self, error: Exception) -> MigrationError:
        text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        with contextlib.suppress(ChannelError):
            messages.send(self._channel, "failed", reason=text[:1000])
        if self._file is not None:
            self._file.close()
        if self._guest is not None:
            self._guest.close()
        if self._resuming:
            with contextlib.suppress(OSError):
                self._device.reset()
        if isinstance(error, Failed):
            return Failed(text)
        return Failed(f"{text}; nothing runs here")


def receive(
    opened: Opened,
    channel: Channel,
    options: TargetOptions | None = None,
    progress: Progress = silent,
) -> Received:
    """Take one device, and its guest, into ``opened`` from the source at the other end.

    Raises MigrationError: Refused before anything has changed, Failed otherwise; then nothing runs
    here, and the device is as after a reset.
    """
    return _Target(opened, channel, options or TargetOptions(), progress).run()
