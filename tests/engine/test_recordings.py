"""Devices saved and loaded, and migrations replayed."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from precopy.backends import open_device
from precopy.engine.channel import Channel, ChannelError
from precopy.engine.outcome import Failed, InDoubt, MigrationError, Refused, Stopped
from precopy.engine.replay import Recorded, ReplayOptions, examine, load, replay
from precopy.engine.save import record, save
from precopy.engine.source import Options, migrate
from precopy.engine.target import receive
from precopy.stream.compare import inventory
from precopy.stream.recording import ENTRY_HEADER, MOVED, TO_SOURCE, Recorder, read
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState
from tests.engine.relay import Frame
from tests.engine.rig import BLANK, SOURCE, Peer, bare, control, started


@contextlib.contextmanager
def target(name: str = BLANK) -> Iterator[Opened]:
    opened = open_device(name, target=True)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def source(name: str = SOURCE) -> Iterator[Opened]:
    opened = started(name)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "state"
    with source() as opened:
        save(opened, path)
    return path


@pytest.mark.parametrize("precopy", [True, False])
def test_a_device_is_saved_and_works_on_here_and_there(tmp_path: Path, precopy: bool) -> None:
    path = tmp_path / "state"
    with source() as opened:
        report = save(opened, path, Options(precopy=precopy, min_rounds=1))
        assert opened.device.state is DeviceState.RUNNING
        assert opened.guest is not None
        assert opened.guest.settle(5.0).faults == 0
    # A middle image only where the guest came to do something meanwhile.
    kinds = [image.kind for image in report.images if image.kind != "middle 1"]
    assert kinds == (["initial", "final"] if precopy else ["final"])
    recorded = examine(path)
    assert recorded.closing.outcome == MOVED
    assert recorded.manifest["guest"]
    for _ in range(2):  # as often as one likes
        with target() as opened:
            received = load(path, recorded, opened)
            assert opened.device.state is DeviceState.RUNNING
            assert received.device_bytes == report.device_bytes
            assert received.guest is not None
            counts = received.guest.settle(5.0)
            assert counts.faults == 0
            assert counts.received > 0


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    """Saved, loaded and saved again: page by page the same state."""
    first, second = tmp_path / "first", tmp_path / "second"
    with contextlib.closing(open_device("sim:mlx5?guest=0&qps=4&log_max_qp=8&state=1M")) as opened:
        save(opened, first, Options(precopy=False))
    with target() as opened:
        load(first, examine(first), opened)
        save(opened, second, Options(precopy=False))
    found = []
    for path in (first, second):
        with path.open("rb") as file:
            items = inventory(file).items
        found.append({path: seen for path, seen in items.items() if path[-1].startswith("page ")})
    assert len(found[0]) > 200
    assert found[0].keys() == found[1].keys()
    assert all(found[0][page].digest == found[1][page].digest for page in found[0])


def test_a_file_that_can_t_be_written_leaves_the_device_alone(tmp_path: Path) -> None:
    with source() as opened:
        with pytest.raises(Failed, match="nothing has changed"):
            save(opened, tmp_path / "nowhere" / "state")
        with pytest.raises(Failed, match="no file"):
            save(opened, Path("/dev/null"))
        assert opened.device.state is DeviceState.RUNNING
        assert opened.guest is not None
        assert opened.guest.settle(5.0).faults == 0


def test_a_disk_that_fills_up_leaves_the_device_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with source() as opened:
        began = Recorder.frame

        def frame(self: Recorder, *arguments: object) -> None:
            monkeypatch.setattr("precopy.stream.recording.os.writev", full)
            began(self, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(Recorder, "frame", frame)
        with pytest.raises(Failed, match=r"state: No space left on device; the device runs on$"):
            save(opened, tmp_path / "state")
        assert opened.device.state is DeviceState.RUNNING
        assert opened.guest is not None
        assert opened.guest.settle(5.0).faults == 0
    assert not list(tmp_path.iterdir())


def test_a_device_of_another_kind_refuses_it(saved: Path) -> None:
    with target("sim:mlx5?log_max_qp=4") as opened:
        with pytest.raises(Refused, match="lacks log_max_qp"):
            load(saved, examine(saved), opened)
        assert opened.device.state is DeviceState.RUNNING


@pytest.mark.parametrize("part", [0.1, 0.5, 0.999])
def test_a_cut_file_is_refused_by_itself(saved: Path, tmp_path: Path, part: float) -> None:
    data = saved.read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(Failed, match="it was cut; nothing has changed"):
        examine(cut)


def test_an_altered_file_is_refused_by_itself(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    data[len(data) // 2] ^= 0x40
    altered = tmp_path / "altered"
    altered.write_bytes(data)
    with pytest.raises(Failed, match="was altered"):
        examine(altered)


# --- Replays ----------------------------------------------------------------------------------


def play(
    path: Path, target_name: str = BLANK, options: ReplayOptions | None = None
) -> tuple[Recorded, MigrationError | None, bool]:
    """Replay to a target of its own: what it was, how it failed, and whether the device runs there."""
    recorded = examine(path)
    near, far = socket.socketpair()
    received: list[object] = []

    def serve(opened: Opened) -> None:
        with contextlib.closing(Channel(far)) as channel, contextlib.suppress(MigrationError):
            received.append(receive(opened, channel))

    failed = None
    with target(target_name) as opened, contextlib.closing(Channel(near)) as channel:
        thread = threading.Thread(target=serve, args=(opened,))
        thread.start()
        try:
            replay(path, recorded, channel, options)
        except MigrationError as error:
            failed = bare(error)
        finally:
            channel.close()
            thread.join()
    return recorded, failed, bool(received)


def recorded_migration(path: Path, target_name: str) -> str:
    """A migration recorded to ``path``; its outcome."""
    near, far = socket.socketpair()
    recorder = Recorder(path)

    def serve(opened: Opened) -> None:
        with contextlib.closing(Channel(far)) as channel, contextlib.suppress(MigrationError):
            receive(opened, channel)

    outcome = MOVED
    with (
        source() as mine,
        target(target_name) as theirs,
        contextlib.closing(Channel(near)) as channel,
    ):
        record(channel, recorder)
        thread = threading.Thread(target=serve, args=(theirs,))
        thread.start()
        try:
            migrate(mine, channel, Options(min_rounds=1))
        except MigrationError as error:
            outcome = str(bare(error))
        finally:
            channel.close()
            thread.join()
    recorder.close(outcome)
    return outcome


def test_a_recorded_migration_is_played_again(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    assert recorded_migration(path, BLANK) == MOVED
    for _ in range(2):
        _, failed, runs = play(path)
        assert failed is None
        assert runs


def test_it_keeps_the_recording_s_pace(saved: Path) -> None:
    """By a clock that only waiting moves: all waits together are the recording, at its speed."""
    now, waits = [0.0], []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        now[0] += seconds

    for speed in (1.0, 4.0):
        now[0] = 0.0
        waits.clear()
        options = ReplayOptions(speed=speed, clock=lambda: now[0], sleep=sleep)
        recorded, failed, runs = play(saved, options=options)
        assert failed is None
        assert runs
        assert 0 < sum(waits) <= recorded.closing.seconds / speed * 1.000001


def test_as_fast_as_it_goes_it_does_not_wait(saved: Path) -> None:
    def sleep(seconds: float) -> None:
        raise AssertionError("waited")

    _, failed, _ = play(saved, options=ReplayOptions(speed=0.0, sleep=sleep))
    assert failed is None


FAULT = BLANK + "&fault=LOAD_VHCA_STATE:1:0x1"


def test_a_target_that_failed_fails_again(tmp_path: Path) -> None:
    path = tmp_path / "recording"
    assert "the target failed" in recorded_migration(path, FAULT)
    recorded, failed, runs = play(path, FAULT)
    assert recorded.refusal is not None
    assert not recorded.closing.complete
    assert isinstance(failed, Failed)
    assert str(failed).endswith(", as in the recording")
    assert not runs


def test_a_target_that_is_mended_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("precopy.engine.replay._OBJECTION", 0.0)
    path = tmp_path / "recording"
    recorded_migration(path, FAULT)
    _, failed, runs = play(path)
    assert isinstance(failed, Failed)
    assert str(failed).startswith("the target takes all of it; in the recording it said failed: ")
    assert not runs


def test_a_target_that_fails_where_it_did_not(saved: Path) -> None:
    _, failed, runs = play(saved, BLANK + "&fault=LOAD_VHCA_STATE:1:0x1")
    assert isinstance(failed, Failed)
    assert str(failed).endswith("; in the recording it did not fail")
    assert not runs


def test_a_target_that_refuses_where_it_did_not(saved: Path) -> None:
    _, failed, _ = play(saved, "sim:mlx5?log_max_qp=4")
    assert isinstance(failed, Refused)
    assert str(failed).endswith("in the recording it said accept")


def test_a_recording_that_ends_too_early_says_so(saved: Path, tmp_path: Path) -> None:
    """A source that died: its recording stops, and so does the replay."""
    path = tmp_path / "short"
    recorder = Recorder(path)
    data = memoryview(saved.read_bytes())
    at = 16
    for _ in range(6):
        kind, _, _, length, _, _ = ENTRY_HEADER.unpack(data[at : at + ENTRY_HEADER.size])
        start = at + ENTRY_HEADER.size
        recorder.frame(kind, b"", data[start : start + length])
        at = start + length
    recorder.close("failed: the power went")
    _, failed, runs = play(path)
    assert "the power went" in str(failed)
    assert not runs


# --- Between one look at a file and the next ---------------------------------------------------


def test_a_file_that_is_replaced_after_it_was_read_is_not_loaded(
    saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "state"
    path.write_bytes(saved.read_bytes())
    recorded = examine(path)
    path.rename(tmp_path / "old")
    path.write_bytes(saved.read_bytes())
    with target() as opened:
        with pytest.raises(Failed, match="has changed since it was read"):
            load(path, recorded, opened)
        assert opened.device.state is DeviceState.RUNNING
        assert opened.guest is None


def test_a_file_that_is_altered_after_it_was_read_does_not_run(saved: Path, tmp_path: Path) -> None:
    """In place, by one who puts the time back: the checksum is looked at again."""
    path = tmp_path / "state"
    path.write_bytes(saved.read_bytes())
    recorded, before = examine(path), path.stat()
    with path.open("r+b") as file:
        file.seek(before.st_size // 2)
        file.write(bytes([saved.read_bytes()[before.st_size // 2] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with target() as opened:
        with pytest.raises(Failed, match=r"was altered \(checksum\); nothing runs here"):
            load(path, recorded, opened)
        assert opened.device.state is DeviceState.RUNNING
        assert opened.guest is None


# --- Targets that are played to by hand ---------------------------------------------------------


def answered(path: Path, answers: dict[str, Frame | None]) -> MigrationError | None:
    """Replay to a target that answers each message so, and goes where there is None."""
    near, far = socket.socketpair()

    def serve() -> None:
        peer = Peer(far)
        with contextlib.closing(peer.channel), contextlib.suppress(ChannelError):
            peer.send(control("hello", program="a peer", versions=[3]))
            while answer := answers[peer.hear(*answers)[0]]:
                peer.send(answer)

    thread = threading.Thread(target=serve)
    with contextlib.closing(Channel(near)) as channel:
        thread.start()
        try:
            replay(path, examine(path), channel)
        except MigrationError as error:
            return bare(error)
        finally:
            channel.close()
            thread.join()
    return None


ANSWERS: dict[str, Frame | None] = {
    "manifest": control("accept", name="peer", driver="", firmware="", serial=""),
    "sync": control("synced"),
    "switch": control("ready", load=0.0, memory=0.0, validate=0.0),
}


def test_a_target_that_goes_with_the_right_to_run_leaves_a_doubt(saved: Path) -> None:
    error = answered(saved, {**ANSWERS, "run": None})
    assert isinstance(error, InDoubt)
    assert "the target did not confirm that it runs the device: the peer closed" in str(error)


def test_a_target_that_goes_earlier_leaves_none(saved: Path) -> None:
    error = answered(saved, {**ANSWERS, "switch": None})
    assert isinstance(error, Failed)
    assert "the replay broke off: the peer closed the connection" in str(error)


def test_a_target_that_takes_it_and_can_t_run(saved: Path) -> None:
    error = answered(saved, {**ANSWERS, "run": control("stuck", reason="no way")})
    assert isinstance(error, Stopped)
    assert str(error) == "the target said stuck: no way; in the recording it said running"


def test_a_target_that_nobody_understood_is_recorded_and_met_again(
    saved: Path, tmp_path: Path
) -> None:
    """Its answer is no message: neither then nor now a reason for the file to be refused."""
    path, nonsense = tmp_path / "nonsense", Frame("nonsense", b'{"kind": "nonsense"}')
    recorder = Recorder(path)
    with saved.open("rb") as file:
        for entry in read(file):
            if entry.kind == TO_SOURCE and b'"accept"' in bytes(entry.payload):
                break
            recorder.frame(entry.kind, b"", entry.payload)
    near, far = socket.socketpair()
    with contextlib.closing(Channel(near)) as one, contextlib.closing(Channel(far)) as other:
        record(one, recorder)
        other.send_control(nonsense.payload)
        one.receive()
    recorder.close("failed: unknown message 'nonsense'")
    error = answered(path, {**ANSWERS, "manifest": nonsense})
    assert isinstance(error, Failed)
    assert "unknown message 'nonsense'" in str(error)
