"""The file of a recording: written, read back, cut and altered."""

import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.stream.recording import (
    MAX_PAYLOAD,
    MOST_WAITING,
    MOVED,
    PARTIAL,
    TO_SOURCE,
    TO_TARGET,
    Closing,
    Recorder,
    RecordingError,
    read,
    verify,
)

FRAMES = [(TO_TARGET, b"head", b"hello"), (TO_SOURCE, b"h", b""), (TO_TARGET, b"", b"x" * 70)]


def clock() -> Callable[[], int]:
    """A second each time it is asked."""
    times = iter(range(1_000_000))
    return lambda: next(times) * 1_000_000_000


def recording(path: Path, outcome: str = MOVED) -> bytes:
    recorder = Recorder(path, clock())
    for kind, header, payload in FRAMES:
        recorder.frame(kind, header, payload)
    recorder.close(outcome)
    return path.read_bytes()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return recording(tmp_path_factory.mktemp("recording") / "file")


def entries(data: bytes) -> list[tuple[int, int, bytes]]:
    return [(each.kind, each.time, bytes(each.payload)) for each in read(io.BytesIO(data))]


def test_what_was_written_is_read(whole: bytes) -> None:
    found = entries(whole)
    assert [(kind, payload) for kind, _, payload in found[:-1]] == [
        (kind, header + payload) for kind, header, payload in FRAMES
    ]
    assert [when for _, when, _ in found] == [1_000_000_000 * n for n in (1, 2, 3, 5)]
    closing = verify(io.BytesIO(whole))
    assert (closing.outcome, closing.entries, closing.payload_bytes) == (MOVED, 3, 80)
    assert closing.complete


def test_only_a_closed_one_has_its_name(tmp_path: Path) -> None:
    path = tmp_path / "file"
    recorder = Recorder(path)
    recorder.frame(TO_TARGET, b"", b"x")
    assert not path.exists()
    assert path.with_name("file" + PARTIAL).exists()
    recorder.close("failed: why")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    with path.open("rb") as file:
        assert not verify(file).complete


def test_one_that_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "file")
    recorder.discard()
    assert not list(tmp_path.iterdir())


def test_cut_anywhere_it_is_refused(whole: bytes) -> None:
    for end in range(len(whole)):
        with pytest.raises(RecordingError, match=f"ends at byte {end:#x}"):
            verify(io.BytesIO(whole[:end]))


def test_with_any_bit_flipped_it_is_refused(whole: bytes) -> None:
    for at in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(RecordingError):
            verify(io.BytesIO(bytes(damaged)))


def test_an_entry_taken_out_or_doubled_is_found(whole: bytes) -> None:
    places = [each.offset for each in read(io.BytesIO(whole))]
    first, second = places[:2]
    for altered in (whole[:first] + whole[second:], whole[:second] + whole[first:]):
        with pytest.raises(RecordingError, match=r"its digest is not|checksum"):
            verify(io.BytesIO(altered))


def test_more_behind_its_end_is_found(whole: bytes) -> None:
    with pytest.raises(RecordingError, match="more bytes behind its end"):
        verify(io.BytesIO(whole + b"\0"))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(RecordingError):
        verify(io.BytesIO(data))


def test_a_newer_version_is_named(whole: bytes) -> None:
    newer = whole[:8] + (9).to_bytes(4, "little") + whole[12:]
    with pytest.raises(RecordingError, match="has version 9, this program reads version 1"):
        verify(io.BytesIO(newer))


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'"x"', json.dumps({"outcome": 1}).encode(), b"[" * 100_000]
)
def test_what_closes_it_is_not_believed(content: bytes) -> None:
    with pytest.raises(RecordingError, match="last entry is not"):
        Closing.parse(content)


def test_it_is_read_entry_by_entry(whole: bytes) -> None:
    """The payload is the reader's own buffer: no entry is larger than the largest frame."""
    payloads = [each.payload.obj for each in read(io.BytesIO(whole))]
    assert len({id(each) for each in payloads}) == 1
    (buffer,) = {id(each): each for each in payloads}.values()
    assert isinstance(buffer, bytearray)
    assert len(buffer) == MAX_PAYLOAD


def test_a_full_disk_ends_the_recording_and_is_told_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.with_name("file" + PARTIAL).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        Recorder(path)


def test_an_error_while_frames_come_is_kept(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "file")
    full = os.open("/dev/full", os.O_WRONLY)
    assert recorder._file is not None
    os.dup2(full, recorder._file.fileno())
    os.close(full)
    recorder.frame(TO_TARGET, b"", b"x")
    recorder.frame(TO_TARGET, b"", b"y")
    recorder.catch_up()
    assert recorder.error is not None
    with pytest.raises(OSError, match="No space left"):
        recorder.close(MOVED)
    assert not (tmp_path / "file").exists()


def test_no_device_node_is_replaced(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no file"):
        Recorder(Path("/dev/null"))
    with pytest.raises(OSError, match="no file"):
        Recorder(tmp_path)


def test_a_disk_that_takes_nothing_ends_the_recording_not_the_migration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames wait for it, as many as there is room for; then they go on without it."""
    recorder = Recorder(tmp_path / "file")
    writev, goes_on = os.writev, threading.Event()

    def stuck(*arguments: Any) -> int:
        assert goes_on.wait(60)
        return writev(*arguments)

    monkeypatch.setattr("precopy.stream.recording.os.writev", stuck)
    for _ in range(MOST_WAITING):
        recorder.frame(TO_TARGET, b"h", bytes(MAX_PAYLOAD - 1))
    assert recorder.error is None
    monkeypatch.setattr("precopy.stream.recording._PATIENCE", 0.0)
    recorder.frame(TO_TARGET, b"h", b"one too many")
    assert recorder.error is not None
    recorder.frame(TO_TARGET, b"h", b"nobody takes it")
    monkeypatch.setattr("precopy.stream.recording._PATIENCE", 60.0)
    goes_on.set()
    with pytest.raises(OSError, match="the disk takes nothing"):
        recorder.close(MOVED)
    assert not (tmp_path / "file").exists()


def test_large_frames_share_buffers_and_keep_their_content(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "file", clock())
    payload = bytearray(MAX_PAYLOAD - 1)
    count = 2 * MOST_WAITING + 1
    for number in range(count):
        # As a channel does it: the next frame has the same buffer.
        payload[:] = bytes([number]) * len(payload)
        recorder.frame(TO_TARGET, b"h", memoryview(payload))
    recorder.close(MOVED)
    with (tmp_path / "file").open("rb") as file:
        found = [bytes(each.payload[:2]) for each in read(file)]
    assert found[:-1] == [b"h" + bytes([number]) for number in range(count)]


def test_it_is_its_owner_s_alone(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "file")
    assert recorder.partial.stat().st_mode & 0o777 == 0o600
    recorder.close(MOVED)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
