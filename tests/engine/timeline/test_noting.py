"""What a device, a channel and a progress tell of themselves."""

import errno
import socket

import pytest

from precopy.backends import open_device
from precopy.engine import messages
from precopy.engine.channel import Channel
from precopy.engine.progress import Snapshot, silent
from precopy.engine.timeline import Notes, noting
from precopy.engine.timeline.noting import NotingDevice
from precopy.vfio.device import VfioDevice
from precopy.vfio.states import DeviceState
from tests.engine.rig import BLANK


def test_arcs_are_noted() -> None:
    opened = open_device(BLANK, target=True)
    notes = Notes()
    device = NotingDevice(opened.device, notes)
    try:
        assert device.set_state(DeviceState.PRE_COPY) is not None
        assert device.state is opened.device.state is DeviceState.PRE_COPY
        with pytest.raises(OSError, match="ERROR") as refused:
            device.set_state(DeviceState.ERROR)
        with pytest.raises(OSError, match="77"):
            device.set_state(77)
        device.reset()
    finally:
        device.close()
    found = notes.spans("arcs")
    assert [span.name for span in found] == [
        "RUNNING->PRE_COPY",
        "PRE_COPY->ERROR",
        "PRE_COPY->77",
        "PRE_COPY->RUNNING (reset)",
    ]
    assert refused.value.errno == errno.EINVAL
    assert found[1].details["stands"] == "PRE_COPY"
    assert found[1].details["error"]
    assert not found[0].details
    assert all(span.begin <= span.end for span in found)


def test_all_else_is_the_devices() -> None:
    opened = open_device(BLANK, target=True)
    device = NotingDevice(opened.device, Notes())
    with device:
        assert device.name == opened.device.name
        assert device.identity == opened.device.identity
        assert device.migration_flags == opened.device.migration_flags
        assert device.features() == opened.device.features()
        assert device.data_size() == opened.device.data_size()
        with pytest.raises(OSError, match="log") as refused:
            device.log_report(0, 4096, 4096, memoryview(bytearray(8)))
        assert refused.value.errno == errno.EINVAL


def test_every_call_of_the_contract_is_passed_on() -> None:
    own = {name for name in vars(VfioDevice) if not name.startswith("_")} - {"probe"}
    assert own <= vars(NotingDevice).keys()


def test_commands_are_noted() -> None:
    notes = Notes()
    with open_device(BLANK, target=True).device as device:
        assert not notes.commands
    opened = open_device(BLANK, target=True)
    noting.watch_commands(opened, notes)
    with opened.device as device:
        device.set_state(DeviceState.PRE_COPY)
    assert notes.commands
    names = [span.name for span in notes.spans("firmware")]
    assert "SAVE_VHCA_STATE" in names
    assert "QUERY_VHCA_MIGRATION_STATE" in names
    assert all("status" not in span.details for span in notes.spans("firmware"))


def test_a_device_that_shows_no_commands() -> None:
    opened = open_device(BLANK, target=True)
    opened.watch_commands = None
    notes = Notes()
    noting.watch_commands(opened, notes)
    opened.close()
    assert not notes.commands


def test_messages_and_bytes_of_a_channel() -> None:
    ours, theirs = socket.socketpair()
    source, target = Channel(ours), Channel(theirs)
    at_source, at_target = Notes(), Notes()
    seen: list[bool] = []
    source.tap = lambda sent, header, payload: seen.append(sent)
    noting.watch(source, at_source)
    noting.watch(target, at_target)
    for kind in ("sync", "clock", "final"):
        messages.send(source, kind)
        target.receive()
    source.send_data(memoryview(b"x" * 100))
    source.send_data(memoryview(b"x" * 100))
    target.receive()
    messages.send(target, "synced")
    source.receive()
    for channel in (source, target):
        channel.close()
    # Who watched before goes on watching.
    assert seen == [True] * 5 + [False]
    assert [span.name for span in at_source.spans()] == ["sent sync", "sent final", "heard synced"]
    assert [span.name for span in at_target.spans()] == ["heard sync", "heard final", "sent synced"]
    assert [value for _, value in at_source.points("bytes")] == [116, 232]
    assert [value for _, value in at_target.points("bytes")] == [116]


def test_messages_that_are_none() -> None:
    ours, theirs = socket.socketpair()
    channel, peer = Channel(ours), Channel(theirs)
    notes = Notes()
    noting.watch(channel, notes)
    for payload in (b"no json", b"[]", b'{"kind": 7}', b"[" * 50_000, b"\xff"):
        peer.send_control(payload)
        channel.receive()
    for each in (channel, peer):
        each.close()
    assert not notes.spans()


def test_progress_is_noted_and_told() -> None:
    notes, told = Notes(), list[Snapshot]()

    def progress(now: Snapshot) -> None:
        told.append(now)

    tell = noting.telling(notes, progress)
    for now in (Snapshot("a", 1, 1.0, 50, 7), Snapshot("a", 2, 1.0, 50, 7), Snapshot("b")):
        tell(now)
    notes.phase(None)
    assert len(told) == 3
    assert [span.name for span in notes.spans("phases")] == ["a", "b"]
    assert [value for _, value in notes.points("initial_bytes")] == [50, 0]
    assert [value for _, value in notes.points("dirty_bytes")] == [7, 0]
    noting.telling(notes, silent)(Snapshot("c"))
