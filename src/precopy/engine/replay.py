"""Plays a recording to a target: a saved device into a device, or a migration once more."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from precopy.engine import messages
from precopy.engine.channel import CONTROL, HEADER_BYTES, Channel, ChannelError, Interrupted
from precopy.engine.listener import Listener, TargetFailed
from precopy.engine.messages import Message
from precopy.engine.outcome import (
    Cancelled,
    Failed,
    InDoubt,
    MigrationError,
    Refused,
    Stopped,
    reason_of,
)
from precopy.engine.progress import Progress, Snapshot, safely, silent
from precopy.engine.target import Received, TargetOptions, receive
from precopy.stream.recording import (
    CLOSE,
    TO_SOURCE,
    TO_TARGET,
    Closing,
    Entry,
    RecordingError,
    read,
)
from precopy.vfio.guest import Opened

#: What a target may answer, except that it has failed.
_ANSWERS = ("hello", "accept", "refuse", "synced", "ready", "running", "stuck")

#: What the errors are that a target's answers lead to.
_ERRORS: dict[str, type[MigrationError]] = {"refuse": Refused, "stuck": Stopped}

#: Seconds for a target to fail as it did, where nothing more comes.
_OBJECTION = 5.0

#: A target's last word where it did not take the device.
_REFUSALS = ("refuse", "failed", "stuck")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording says of itself: all of it has been read and found whole."""

    closing: Closing
    manifest: Message
    #: The target's last word where it was a refusal: its kind and its reason.
    refusal: tuple[str, str] | None
    #: By what the file is known again: another one was not looked at.
    stamp: tuple[int, ...]


#: The kind of a message that nobody understands: a recording may be of a peer that sent such a one.
_UNKNOWN = "something that is no message"

#: Not replayed, and not waited for: clocks and events of that day, and what comes when it comes.
_PASSED_OVER = frozenset({"loaded"}) | messages.OF_TIMELINES


def _message(payload: memoryview) -> tuple[str, Message] | None:
    """The message in a frame of the channel; None for a frame of another kind."""
    if len(payload) <= HEADER_BYTES or payload[2] != CONTROL:
        return None
    try:
        return messages.decode(payload[HEADER_BYTES:])
    except ChannelError:
        return _UNKNOWN, {}


def examine(path: Path) -> Recorded:
    """Read all of ``path``. Failed with what is wrong, and where."""
    wanted: Message | None = None
    closing = refusal = None
    try:
        with path.open("rb") as file:
            stamp = _stamp(file)
            for entry in read(file):
                if entry.kind == CLOSE:
                    closing = Closing.parse(entry.payload)
                    continue
                said = _message(entry.payload)
                if said is None:
                    continue
                if said[0] == "manifest" and entry.kind == TO_TARGET and wanted is None:
                    wanted = said[1]
                elif said[0] in _REFUSALS and entry.kind == TO_SOURCE:
                    refusal = (said[0], str(said[1]["reason"]))
    except OSError as error:
        raise Failed(f"{path}: {reason_of(error)}; nothing has changed") from error
    except RecordingError as error:
        raise Failed(f"{path}: {error}; nothing has changed") from error
    assert closing is not None
    if wanted is None:
        raise Failed(f"{path} ends before the device is described: {closing.outcome}")
    return Recorded(closing, wanted, refusal, stamp)


def _stamp(file: BinaryIO) -> tuple[int, ...]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(slots=True)
class ReplayOptions:
    """``speed``: 1.0 is the recording's own pace, 0 as fast as it goes; ``silence``: seconds that a
    target may say nothing."""

    speed: float = 0.0
    silence: float = 30.0
    cancel: threading.Event = field(default_factory=threading.Event)
    clock: Callable[[], float] = time.monotonic
    #: Waits so many seconds, or until ``cancel`` is set.
    sleep: Callable[[float], object] | None = None


class Difference(NamedTuple):
    """What a target says otherwise than the recorded one: a field of its ``answer``."""

    answer: str
    field: str
    now: object
    recorded: object


class _Player:
    def __init__(
        self, channel: Channel, recorded: Recorded, options: ReplayOptions, progress: Progress
    ) -> None:
        self._channel, self._recorded = channel, recorded
        self._options, self._progress = options, safely(progress)
        channel.cancel = options.cancel
        channel.limit_writes(options.silence)
        self._listener = Listener(channel)
        self._sleep = options.sleep or options.cancel.wait
        #: The last thing that happened: when in the recording (ns), and when here (seconds).
        self._then, self._now = 0, options.clock()
        self._sent = 0
        #: Whether the target was given the right to run.
        self._given = False
        self.differences: list[Difference] = []

    def play(self, path: Path) -> str:
        """The last word of the target's that was recorded and came again."""
        last = ""
        with path.open("rb") as file:
            if _stamp(file) != self._recorded.stamp:
                raise RecordingError(f"{path} has changed since it was read")
            for entry in read(file):
                if self._options.cancel.is_set():
                    raise Interrupted("interrupted")
                kind, fields = _message(entry.payload) or ("", {})
                if kind in _PASSED_OVER:
                    continue
                if entry.kind == TO_TARGET:
                    self._given = self._given or kind == "run"
                    self._send(entry)
                elif entry.kind == TO_SOURCE and kind:
                    last = self._hear(kind, fields, entry.time)
        return last

    def _send(self, entry: Entry) -> None:
        options = self._options
        if options.speed:
            due = self._now + (entry.time - self._then) / 1e9 / options.speed
            wait = due - options.clock()
            if wait > 0:
                self._sleep(wait)
            self._then, self._now = entry.time, due
        self._channel.send_recorded(entry.payload)
        self._sent += len(entry.payload)
        self._progress(Snapshot("replaying", self._sent))

    def _hear(self, recorded: str, said: Message, when: int) -> str:
        """Wait for what the target said then."""
        options = self._options
        # A target that does not fail as it did has nothing to say here.
        timeout = min(options.silence, _OBJECTION) if recorded == "failed" else options.silence
        try:
            kind, fields = self._listener.wait(*_ANSWERS, timeout=timeout, cancel=options.cancel)
        except ChannelError:
            if recorded != "failed":
                raise
            raise Failed(f"the target takes all of it{self._compared('', '')}") from None
        self._then, self._now = when, options.clock()
        reason = str(fields.get("reason", ""))
        told = f"the target said {kind}{': ' if reason else ''}{reason}"
        error = _ERRORS.get(kind, Failed)
        if kind != recorded:
            raise error(f"{told}; in the recording it said {recorded}")
        if kind in _ERRORS:
            raise error(f"{told}{self._compared(kind, reason)}")
        self.differences += [
            Difference(kind, name, fields[name], value)
            for name, value in said.items()
            if fields[name] != value
        ]
        return kind

    def _compared(self, kind: str, reason: str) -> str:
        """Whether the recorded target said the same."""
        refusal = self._recorded.refusal
        if refusal is None:
            return "; in the recording it did not fail" if self._recorded.closing.complete else ""
        if refusal == (kind, reason):
            return ", as in the recording"
        return f"; in the recording it said {refusal[0]}: {refusal[1]}"

    def objection(self, error: Exception) -> MigrationError:
        """What to say of an error that has ended the replay: what the target says, if it does."""
        if isinstance(error, TargetFailed):
            reason: str | None = str(error).removeprefix("the target failed: ")
        else:
            reason = self._listener.objection(1.0)
        if reason is None and self._given:
            return InDoubt(
                f"the target did not confirm that it runs the device: {reason_of(error)}"
            )
        if reason is None:
            return Failed(f"the replay broke off: {reason_of(error)}")
        return Failed(f"the target failed: {reason}{self._compared('failed', reason)}")


def replay(
    path: Path,
    recorded: Recorded,
    channel: Channel,
    options: ReplayOptions | None = None,
    progress: Progress = silent,
) -> list[Difference]:
    """Play ``path``, as :func:`examine` has found it, to the target at the other end of ``channel``.

    On return the target runs the device; what it said otherwise than in the recording is returned.
    Else MigrationError with the target's reason, and whether that is the one in the recording.
    """
    player = _Player(channel, recorded, options or ReplayOptions(), progress)
    try:
        last = player.play(path)
    except Interrupted:
        raise Cancelled("cancelled") from None
    except (TargetFailed, ChannelError, RecordingError, OSError) as error:
        raise player.objection(error) from error
    if last != "running":
        raise Failed(f"the recording ends here: {recorded.closing.outcome}")
    return player.differences


def load(
    path: Path,
    recorded: Recorded,
    opened: Opened,
    options: TargetOptions | None = None,
    progress: Progress = silent,
) -> Received:
    """Load what ``path`` holds, as :func:`examine` has found it, into ``opened``, which then runs, or
    stands in STOP where the options say so. MigrationError as ``engine.target.receive`` does.
    """
    options = options or TargetOptions()
    near, far = socket.socketpair()
    broke: list[str] = []

    def play() -> None:
        with (
            contextlib.closing(Channel(near)) as channel,
            # A target that fails says so itself.
            contextlib.suppress(MigrationError, ChannelError),
        ):
            player = _Player(channel, recorded, ReplayOptions(silence=options.silence), silent)
            try:
                player.play(path)
            except (RecordingError, OSError) as error:
                broke.append(f"{path}: {reason_of(error)}")
                messages.send_reason(channel, "abort", broke[0])

    thread = threading.Thread(target=play, name="replay")
    with contextlib.closing(Channel(far)) as channel:
        thread.start()
        try:
            return receive(opened, channel, options, progress)
        except Failed as error:
            channel.close()
            thread.join()
            if broke:
                # It may have been over before the target could hear why.
                raise Failed(f"{broke[0]}; nothing runs here") from error
            raise
        finally:
            channel.close()
            thread.join()
