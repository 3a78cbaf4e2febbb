"""Saves a device to a file: the source's own way, to a peer that takes what a target would."""

import contextlib
import socket
import threading
import time
from pathlib import Path

from precopy.engine import messages
from precopy.engine.channel import CONTROL, DATA, MEMORY, Channel, ChannelError
from precopy.engine.outcome import Failed, InDoubt, Stopped, reason_of
from precopy.engine.progress import Progress, silent
from precopy.engine.report import Report
from precopy.engine.source import Options, migrate
from precopy.stream.recording import MOVED, TO_SOURCE, TO_TARGET, Recorder
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState


def record(channel: Channel, recorder: Recorder, *, at_target: bool = False) -> None:
    """Have every frame of ``channel`` recorded, as seen by the source, or ``at_target``."""

    def tap(sent: bool, header: bytes | memoryview, payload: bytes | memoryview) -> None:
        recorder.frame(TO_SOURCE if sent is at_target else TO_TARGET, header, payload)

    channel.tap = tap


class _Archive:
    """Answers as a target that takes everything and loads nothing; what came is in the recording."""

    def __init__(self, channel: Channel, recorder: Recorder) -> None:
        self._channel, self._recorder = channel, recorder
        record(channel, recorder, at_target=True)

    def run(self) -> None:
        try:
            self._greet()
            while self._take():
                pass
        except ChannelError as error:
            # A source that is gone does not hear it.
            with contextlib.suppress(ChannelError):
                messages.send_reason(self._channel, "failed", str(error))

    def _greet(self) -> None:
        channel = self._channel
        messages.greet(channel, "precopy save")
        messages.agree(messages.expect(channel, "hello")[1])
        _, wanted = messages.expect(channel, "manifest")
        who = {name: wanted[name] for name in ("driver", "firmware", "serial")}
        messages.send(channel, "accept", name=self._recorder.path.name, **who)

    def _take(self) -> bool:
        """One frame; whether there are more to come. ChannelError."""
        channel = self._channel
        frame, payload = channel.receive()
        if self._recorder.error is not None:
            raise ChannelError(f"{self._recorder.path}: {reason_of(self._recorder.error)}")
        if frame != CONTROL:
            return True
        kind, fields = messages.decode(payload)
        if kind == "sync":
            # The final image finds room.
            self._recorder.catch_up()
            messages.send(channel, "synced")
        elif kind == "pages":
            channel.count_received(MEMORY, payload)
        elif kind in ("end", "switch"):
            if channel.end_received(DATA if kind == "end" else MEMORY) != fields["digest"]:
                raise ChannelError(f"the digest in {kind} is not that of what came")
            if kind == "switch":
                messages.send(channel, "ready", load=0.0, memory=0.0, validate=0.0)
        elif kind == "run":
            messages.send(channel, "running", resume=0.0)
        return kind not in ("run", "abort")


def save(
    opened: Opened,
    path: Path,
    options: Options | None = None,
    progress: Progress = silent,
    *,
    keep_stopped: bool = False,
) -> Report:
    """Save the device (and its guest) of ``opened`` to ``path``; it runs on afterwards, or stays in STOP.

    It stands still as for a migration, as long as its final image is read. Raises MigrationError, then
    there is no file, and the device runs as before; Stopped where it does not.
    """
    try:
        recorder = Recorder(path)
    except OSError as error:
        raise Failed(f"{path}: {reason_of(error)}; nothing has changed") from error
    stopped = False
    try:
        report = _move(opened, recorder, options, progress)
        stopped = keep_stopped
        if not stopped:
            # Before the file is safe: the device does not wait for a disk.
            began = time.monotonic()
            _resume(opened)
            took = time.monotonic() - began
            report.stages["resume"] = report.stages.get("resume", 0.0) + took
        recorder.close(MOVED)
    except OSError as error:
        recorder.discard()
        if stopped:
            _resume(opened)
        raise Failed(f"{path}: {reason_of(error)}; the device runs on") from error
    except Failed as error:
        recorder.discard()
        if recorder.error is None:
            raise
        # The other side's words for it: the file is what the user knows of.
        text = f"{path}: {reason_of(recorder.error)}; the device runs on"
        raise Failed(text) from error
    except BaseException:
        recorder.discard()
        raise
    report.outcome = f"saved to {path}; the device {'is kept in STOP' if stopped else 'runs on'}"
    return report


def _move(
    opened: Opened, recorder: Recorder, options: Options | None, progress: Progress
) -> Report:
    near, far = socket.socketpair()
    with (
        contextlib.closing(Channel(near)) as channel,
        contextlib.closing(Channel(far)) as archive,
    ):
        thread = threading.Thread(target=_Archive(archive, recorder).run, name="archive")
        thread.start()
        try:
            report = migrate(opened, channel, options, progress)
        except InDoubt as error:
            # Nobody took it: the other side is this program, too.
            _resume(opened)
            raise Failed(f"{error.__cause__ or error}; the device runs on") from error
        finally:
            channel.close()
            thread.join()
    return report


def _resume(opened: Opened) -> None:
    try:
        opened.device.set_state(DeviceState.RUNNING)
        if opened.guest is not None:
            opened.guest.start()
    except Exception as error:
        state = "an unknown state"
        with contextlib.suppress(OSError):
            state = opened.device.state.name
        text = f"the device could not be resumed: {reason_of(error)}; it stands in {state}"
        raise Stopped(text) from error
