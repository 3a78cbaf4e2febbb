"""Both sides of a migration in one process, with a relay between them, or with the test as a peer."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence

from precopy.backends import open_device
from precopy.engine import messages
from precopy.engine.channel import DATA, MEMORY, Channel, ChannelError
from precopy.engine.messages import Message
from precopy.engine.outcome import MigrationError
from precopy.engine.progress import Progress, silent
from precopy.engine.report import Report
from precopy.engine.source import Options, migrate
from precopy.engine.target import Received, TargetOptions, receive
from precopy.guest import WorkloadGuest
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState
from tests.engine.relay import Frame, Point, Relay, Then

SOURCE = "sim:mlx5?qps=8&log_max_qp=8"
#: Enough state for the target to tell how fast it loads, and more than a socket's buffer holds.
LARGE = f"{SOURCE}&state=5M"
BLANK = "sim:mlx5?log_max_qp=8"


def works(opened: Opened) -> bool:
    """Whether the device runs and its guest, after some more messages, has no fault."""
    assert isinstance(opened.guest, WorkloadGuest)
    opened.guest.step(100)
    return opened.device.state is DeviceState.RUNNING and not opened.guest.settle(5).faults


def files() -> set[str]:
    """What this process has open, besides the directory that tells."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return {each for each in found if not each.endswith("/fd")}


def working_threads() -> set[str]:
    """vCPUs and listeners that live."""
    return {t.name for t in threading.enumerate()} & {"vcpu", "listener"}


def as_before(opened: Opened) -> bool:
    """Whether a target's device is reset and unused, with nothing left of a guest."""
    return opened.device.state is DeviceState.RUNNING and opened.guest is None


def bare(error: MigrationError) -> MigrationError:
    """``error`` without the frames that it came from, and without what they had mapped."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


#: The message that closes a stream with its digest.
_CLOSED_BY = {"end": DATA, "switch": MEMORY}


def started(name: str) -> Opened:
    """A device with its guest at work."""
    opened = open_device(name)
    assert opened.guest is not None
    opened.guest.start()
    return opened


class Both:
    """A source and a target that were opened; :meth:`move` tells how it ends on either side.

    A source that is there already works.
    """

    def __init__(self, source: str | Opened = SOURCE, target: str = BLANK) -> None:
        self.source = started(source) if isinstance(source, str) else source
        self.target = open_device(target, target=True)
        self.at_source: Report | MigrationError | None = None
        self.at_target: Received | MigrationError | None = None

    def move(
        self,
        options: Options | None = None,
        at: Point | None = None,
        act: Callable[[], object] = lambda: None,
        then: Then = Then.FORWARD,
        target_options: TargetOptions | None = None,
        progress: Progress = silent,
    ) -> Relay:
        source, to_source = socket.socketpair()
        target, to_target = socket.socketpair()

        def serve() -> None:
            channel = Channel(target)
            try:
                self.at_target = receive(self.target, channel, target_options)
            except MigrationError as error:
                self.at_target = bare(error)
            finally:
                channel.close()

        thread = threading.Thread(target=serve, name="target")
        thread.start()
        relay = Relay(to_source, to_target, at, act, then)
        channel = Channel(source)
        try:
            self.at_source = migrate(self.source, channel, options, progress)
        except MigrationError as error:
            self.at_source = bare(error)
        finally:
            channel.close()
            thread.join()
            relay.join()
        return relay

    def close(self) -> None:
        self.source.close()
        self.target.close()


@contextlib.contextmanager
def both(source: str = SOURCE, target: str = BLANK) -> Iterator[Both]:
    made = Both(source, target)
    try:
        yield made
    finally:
        made.close()


class Peer:
    """The test as the other side: what it sends, and what it has heard."""

    def __init__(self, wire: socket.socket) -> None:
        self.wire = wire
        self.channel = Channel(wire)
        self.channel.limit_reads(20.0)

    def send(self, frame: Frame) -> None:
        """A frame, with a checksum of its own. The digest of a stream that it closes is put right."""
        if frame.kind == "data":
            self.channel.send_data(memoryview(frame.payload))
            return
        if frame.kind == "memory":
            self.channel.send_memory(memoryview(frame.payload))
            return
        if frame.kind == "pages":
            self.channel.count_sent(MEMORY, frame.payload)
        if frame.kind in _CLOSED_BY:
            self.channel.end_sent(_CLOSED_BY[frame.kind])
        self.channel.send_control(frame.payload)

    def _next(self) -> tuple[str, Message]:
        frame, payload = self.channel.receive()
        name = {DATA: "data", MEMORY: "memory"}.get(frame)
        kind, fields = (name, {}) if name else messages.decode(payload)
        if kind == "pages":
            self.channel.count_received(MEMORY, payload)
        if kind in _CLOSED_BY:
            self.channel.end_received(_CLOSED_BY[kind])
        return kind, fields

    def hear(self, *kinds: str) -> tuple[str, Message]:
        """The next message that is one of ``kinds``; those before it are passed over."""
        while True:
            kind, fields = self._next()
            if kind in kinds:
                return kind, fields

    def hear_all(self) -> dict[str, Message]:
        """Everything up to the end of the connection, by kind."""
        heard: dict[str, Message] = {}
        with contextlib.suppress(ChannelError):
            while True:
                kind, fields = self._next()
                heard[kind] = fields
        return heard


class Target:
    """A target of the engine's, with the test as its source."""

    def __init__(self, name: str = BLANK, options: TargetOptions | None = None) -> None:
        self.opened = open_device(name, target=True)
        self.files_before = files()
        ours, theirs = socket.socketpair()
        self.peer = Peer(ours)
        self.outcome: Received | MigrationError | None = None
        self._thread = threading.Thread(target=self._serve, args=(theirs, options), name="target")
        self._thread.start()

    def _serve(self, wire: socket.socket, options: TargetOptions | None) -> None:
        channel = Channel(wire)
        try:
            self.outcome = receive(self.opened, channel, options)
        except MigrationError as error:
            self.outcome = bare(error)
        finally:
            channel.close()

    def take(self, frames: Sequence[Frame]) -> dict[str, Message]:
        """Send ``frames``, as far as they are taken; what the target has said by its end."""
        with contextlib.suppress(ChannelError):
            for frame in frames:
                self.peer.send(frame)
        with contextlib.suppress(OSError):
            self.peer.wire.shutdown(socket.SHUT_WR)
        return self.ended()

    def ended(self) -> dict[str, Message]:
        """What the target has said by its end."""
        heard = self.peer.hear_all()
        self._thread.join()
        return heard

    def close(self) -> None:
        self.peer.channel.close()
        self._thread.join()
        self.opened.close()


@contextlib.contextmanager
def target(name: str = BLANK, options: TargetOptions | None = None) -> Iterator[Target]:
    made = Target(name, options)
    try:
        yield made
    finally:
        made.close()


def control(kind: str, **fields: object) -> Frame:
    return Frame(kind, messages.encode(kind, **fields))


def data(payload: bytes) -> Frame:
    return Frame("data", payload)


def memory(payload: bytes) -> Frame:
    return Frame("memory", payload)
