"""Targets that do not keep to the protocol: the device runs on at the source, or it is in doubt."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from precopy.backends import open_device
from precopy.engine import messages
from precopy.engine.channel import Channel, ChannelError
from precopy.engine.messages import SCHEMAS
from precopy.engine.outcome import Failed, InDoubt, MigrationError, Refused
from precopy.engine.report import Report
from precopy.engine.source import Options, migrate
from precopy.vfio.states import DeviceState
from tests.engine.rig import LARGE, Peer, bare, files, works
from tests.engine.test_hostile_sources import SAMPLES

#: What a target says, in order, and what it has heard of the source before each.
ANSWERS: list[tuple[str, dict[str, object], str]] = [
    ("hello", {"program": "test", "versions": [2]}, "hello"),
    ("accept", {"name": "fake", "driver": "", "firmware": "", "serial": ""}, "manifest"),
    ("loaded", {"bytes": 4 << 20, "seconds": 0.001}, "data"),
    ("synced", {}, "sync"),
    ("ready", {"load": 0, "memory": 0, "validate": 0}, "switch"),
    ("running", {"resume": 0}, "run"),
]
STAGES = [kind for kind, _, _ in ANSWERS]

UNTOUCHED = "nothing has changed, the device is where it was"
KEPT = "the device runs at the source"

Misbehave = Callable[[Peer], None]


class Fake:
    """A target that answers as it should up to ``stage``, and then does as ``instead`` says."""

    def __init__(self, stage: str, instead: Misbehave) -> None:
        self.ours, theirs = socket.socketpair()
        self._peer, self._stage, self._instead = Peer(theirs), stage, instead
        self.heard: dict[str, messages.Message] = {}
        self._thread = threading.Thread(target=self._answer, name="fake target")
        self._thread.start()

    def _answer(self) -> None:
        peer = self._peer
        try:
            for kind, fields, after in ANSWERS:
                # A source may ask more than once whether all is loaded.
                while peer.hear(after, "sync")[0] != after:
                    messages.send(peer.channel, "synced")
                if kind == self._stage:
                    self._instead(peer)
                    break
                messages.send(peer.channel, kind, **fields)
            self.heard = peer.hear_all()
        except ChannelError:
            pass
        finally:
            peer.channel.close()

    def join(self) -> None:
        self._thread.join()


@contextmanager
def ended(
    stage: str, instead: Misbehave, silence: float = 20.0
) -> Iterator[tuple[Report | MigrationError, str, bool]]:
    """How it ends for the source, its line, and whether its device and guest work."""
    opened = open_device(LARGE)
    assert opened.guest is not None
    opened.guest.start()
    before = files()
    fake = Fake(stage, instead)
    channel = Channel(fake.ours)
    said: Report | MigrationError
    try:
        said = migrate(opened, channel, Options(silence=silence))
    except MigrationError as error:
        said = bare(error)
    channel.close()
    fake.join()
    assert files() == before
    try:
        runs = opened.device.state is DeviceState.RUNNING
        if not runs:
            assert opened.device.state in (DeviceState.STOP_COPY, DeviceState.STOP)
        yield said, str(said), runs and works(opened)
    finally:
        opened.close()


def close(peer: Peer) -> None:
    peer.channel.close()


def garbage(peer: Peer) -> None:
    peer.wire.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


def data(peer: Peer) -> None:
    peer.channel.send_data(memoryview(b"data"))


def a_disk(peer: Peer) -> None:
    peer.wire.sendall(bytes.fromhex("435002000000ffffff").ljust(16, b"\xff"))


def no_json(peer: Peer) -> None:
    peer.channel.send_control(b"{")


def failed(peer: Peer) -> None:
    messages.send(peer.channel, "failed", reason="out of \x1b[31mluck")


def says(kind: str) -> Misbehave:
    return lambda peer: messages.send(peer.channel, kind, **SAMPLES[kind])


def check(stage: str, said: Report | MigrationError, line: str, runs: bool) -> None:
    """In doubt where the right to run was given; before that the device is the source's."""
    assert isinstance(said, MigrationError), said
    assert "\n" not in line
    if stage == "running":
        assert type(said) is InDoubt
        assert "look at fake at the target" in line
        assert not runs
    else:
        assert type(said) is Failed
        assert (UNTOUCHED if stage in ("hello", "accept") else KEPT) in line
        assert runs


@pytest.mark.parametrize("instead", [close, garbage, data, a_disk, no_json])
@pytest.mark.parametrize("stage", STAGES)
def test_instead_of_an_answer(stage: str, instead: Misbehave) -> None:
    with ended(stage, instead) as how:
        check(stage, *how)


@pytest.mark.parametrize("stage", STAGES)
def test_every_other_message_instead(stage: str) -> None:
    """``loaded`` means nothing by itself; failed, stuck and refuse have tests of their own."""
    for kind in SCHEMAS.keys() - {"manifest", "loaded", "failed", stage}:
        if (stage, kind) in (("accept", "refuse"), ("running", "stuck")):
            continue
        # What would be waited for has come to early here, so nothing more can be right.
        with ended(stage, says(kind)) as how:
            check(stage, *how)
            assert kind in how[1]


@pytest.mark.parametrize("stage", STAGES)
def test_the_target_has_failed(stage: str) -> None:
    """Then nothing runs there, so that the device runs here, even after RUN."""
    with ended(stage, failed) as (said, line, runs):
        assert type(said) is Failed
        assert line.startswith("the target failed: out of ?[31mluck; ")
        assert runs


def test_the_target_refuses() -> None:
    with ended("accept", says("refuse")) as (said, line, runs):
        assert type(said) is Refused
        assert line == f"the target refuses: no; {UNTOUCHED}"
        assert runs


def test_the_target_is_stuck() -> None:
    with ended("running", says("stuck")) as (said, line, runs):
        assert type(said) is InDoubt
        assert "it took the right and can't run: x" in line
        assert not runs


@pytest.mark.parametrize("stage", ["hello", "accept", "ready", "running"])
def test_silence(stage: str) -> None:
    with ended(stage, lambda _: None, silence=0.2) as how:
        check(stage, *how)
        assert f"the target did not say {stage}" in how[1]


def test_the_target_takes_nothing_more() -> None:
    enough = threading.Event()

    def stand_still(peer: Peer) -> None:
        enough.wait(20)

    opened = open_device(LARGE)
    fake = Fake("loaded", stand_still)
    channel = Channel(fake.ours)
    try:
        with pytest.raises(Failed, match=r"the peer takes nothing after byte .*runs at the source"):
            migrate(opened, channel, Options(silence=0.2))
        assert works(opened)
    finally:
        enough.set()
        channel.close()
        fake.join()
        opened.close()


def test_a_silent_target_is_told_why() -> None:
    fake = Fake("ready", lambda _: None)
    channel = Channel(fake.ours)
    opened = open_device(LARGE)
    with pytest.raises(Failed):
        migrate(opened, channel, Options(silence=0.2))
    channel.close()
    fake.join()
    opened.close()
    assert "the target did not say ready" in fake.heard["abort"]["reason"]


def test_a_listener_that_is_no_target() -> None:
    """Nothing that speaks precopy at all."""
    ours, theirs = socket.socketpair()
    opened = open_device(LARGE)
    with theirs, suppress(OSError):
        theirs.sendall(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n")
        channel = Channel(ours)
        with pytest.raises(Failed, match="does not speak precopy's protocol; nothing has changed"):
            migrate(opened, channel)
        channel.close()
    opened.close()
