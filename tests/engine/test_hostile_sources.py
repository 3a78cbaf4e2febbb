"""Sources that do not keep to the protocol: one line, nothing runs here, and the source is told why."""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from precopy.engine.channel import HEADER_BYTES
from precopy.engine.messages import SCHEMAS
from precopy.engine.outcome import Failed, MigrationError, Refused
from precopy.engine.target import Received, TargetOptions
from tests.engine.relay import Frame
from tests.engine.rig import (
    BLANK,
    Target,
    as_before,
    control,
    data,
    files,
    memory,
    target,
    working_threads,
)

#: One message of each kind, such as a peer could send.
SAMPLES: dict[str, dict[str, object]] = {
    "hello": {"program": "test", "versions": [2]},
    "accept": {"name": "", "driver": "", "firmware": "", "serial": ""},
    "refuse": {"reason": "no"},
    "loaded": {"bytes": 1, "seconds": 1},
    "sync": {},
    "synced": {},
    "end": {"bytes": 0, "digest": 0},
    "pages": {"region": 99, "first": 0, "sent": "AQ==", "zero": ""},
    "switch": {"digest": 0},
    "final": {},
    "ready": {"load": 0, "memory": 0, "validate": 0},
    "run": {},
    "running": {"resume": 0},
    "stuck": {"reason": "x"},
    "abort": {"reason": "changed its mind"},
    "failed": {"reason": "x"},
    "timeline": {},
    "clock": {},
    "time": {"at": 1.5},
    "tell": {},
    "noted": {"rows": [], "more": False, "left_out": {}, "commands": False},
}


def index_of(frames: Sequence[Frame], kind: str) -> int:
    return [frame.kind for frame in frames].index(kind)


def manifest_of(frames: Sequence[Frame]) -> dict[str, object]:
    found = json.loads(frames[index_of(frames, "manifest")].payload)
    assert found.pop("kind") == "manifest"
    assert isinstance(found, dict)
    return found


def failed(side: Target, text: str = "", kind: type[MigrationError] = Failed) -> str:
    """What the target says, after it was seen that nothing is left of the attempt."""
    assert type(side.outcome) is kind, side.outcome
    line = str(side.outcome)
    assert text in line
    assert "\n" not in line
    if kind is Failed:
        assert line.endswith("; nothing runs here")
    assert as_before(side.opened)
    assert not working_threads()
    theirs = {each for each in files() if "socket" not in each}
    assert theirs == {each for each in side.files_before if "socket" not in each}
    return line


def test_the_samples_are_of_every_kind() -> None:
    assert SAMPLES.keys() == SCHEMAS.keys() - {"manifest"}


def test_the_conversation_is_one_that_goes_well(conversation: list[Frame]) -> None:
    with target() as side:
        heard = side.take(conversation)
        assert isinstance(side.outcome, Received)
        assert "running" in heard
        assert "loaded" in heard


def test_it_ends_at_each_frame(conversation: list[Frame]) -> None:
    for end in range(len(conversation)):
        with target() as side:
            side.take(conversation[:end])
            failed(side, "the peer closed the connection")


def test_a_message_in_the_wrong_place(conversation: list[Frame]) -> None:
    """Each kind of message, at each place where the source of the conversation says another."""
    places = [0] + [
        index
        for index in range(1, len(conversation))
        if conversation[index].kind != "data" or conversation[index - 1].kind != "data"
    ]
    samples = {kind: control(kind, **fields) for kind, fields in SAMPLES.items()}
    samples["manifest"] = conversation[index_of(conversation, "manifest")]
    final = index_of(conversation, "final")
    for index in places:
        for kind, sample in samples.items():
            if kind == conversation[index].kind or (kind == "sync" and 2 <= index <= final):
                continue
            if kind in ("timeline", "clock") and conversation[index].kind == "manifest":
                continue
            with target() as side:
                heard = side.take([*conversation[:index], sample, *conversation[index:]])
                line = failed(side)
                # A first message of another kind is no source, but it is told, too.
                assert heard["failed"]["reason"] in line
                assert ("gave up: changed its mind" in line) == (kind == "abort")


@pytest.mark.parametrize("kind", ["hello", "manifest", "final", "end", "switch"])
def test_a_message_comes_twice(conversation: list[Frame], kind: str) -> None:
    at = index_of(conversation, kind)
    with target() as side:
        heard = side.take([*conversation[: at + 1], *conversation[at:]])
        assert heard["failed"]["reason"] in failed(side, kind)


@pytest.mark.parametrize("kind", ["hello", "manifest", "data", "final", "end", "switch"])
def test_a_message_is_left_out(conversation: list[Frame], kind: str) -> None:
    at = index_of(conversation, kind)
    with target() as side:
        heard = side.take([*conversation[:at], *conversation[at + 1 :]])
        assert heard["failed"]["reason"] in failed(side)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(picks=st.data())
def test_frames_in_any_order(conversation: list[Frame], picks: st.DataObject) -> None:
    """Whatever is dropped, doubled or moved, the device runs here only as the source has sent it."""
    frames = list(conversation)
    for _ in range(picks.draw(st.integers(1, 3))):
        at = picks.draw(st.integers(0, len(frames) - 1))
        what = picks.draw(st.sampled_from(["drop", "double", "swap"]))
        if what == "drop":
            del frames[at]
        elif what == "double":
            frames.insert(at, frames[at])
        else:
            other = picks.draw(st.integers(0, len(frames) - 1))
            frames[at], frames[other] = frames[other], frames[at]
        if not frames:
            break
    # What comes behind RUN nobody reads any more.
    kinds = [frame.kind for frame in frames]
    end = kinds.index("run") + 1 if "run" in kinds else len(kinds)
    assume(streams(frames[:end]) != streams(conversation))
    with target() as side:
        side.take(frames)
        failed(side)


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.0\r\n\r\n", b"\x00" * 64, b"\xff" * 4096])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_garbage(conversation: list[Frame], said: bytes, after: int) -> None:
    with target() as side:
        for frame in conversation[:after]:
            side.peer.send(frame)
        side.peer.wire.sendall(said)
        heard = side.take([])
        assert heard["failed"]["reason"] in failed(side)


def test_silence() -> None:
    with target(options=TargetOptions(silence=0.1)) as side:
        heard = side.ended()
        failed(side, "the peer said nothing for too long (byte 0)")
        assert "said nothing" in heard["failed"]["reason"]


def streams(frames: Sequence[Frame]) -> list[list[tuple[str, bytes]]]:
    """What matters of an order: state and memory are each a stream, ``sync`` only wants an answer."""
    kinds: list[Callable[[str], bool]] = [
        lambda kind: kind == "data",
        lambda kind: kind in ("pages", "memory"),
        lambda kind: kind not in ("data", "pages", "memory", "sync"),
    ]
    return [[(f.kind, f.payload) for f in frames if belongs(f.kind)] for belongs in kinds]


def test_a_length_of_a_disk() -> None:
    header = bytes.fromhex("43500100") + (0xFFFFFFFF).to_bytes(4, "little")
    with target() as side:
        side.peer.wire.sendall(header.ljust(HEADER_BYTES, b"\0"))
        side.take([])
        failed(side, "claims 4294967295 bytes: too long")


_ONE = "AQ=="

WRONG_PAGES = [
    ({"region": 1}, "pages of region 1; there are 1"),
    ({"region": (1 << 64) - 1}, "there are 1"),
    ({"first": 1 << 40}, "is beyond its end"),
    ({"first": (1 << 64) - 1}, "is beyond its end"),
    # The last page of a window that begins just before the end.
    ({"first": "last", "sent": "gA=="}, "of region 0, which has"),
    ({"first": "last", "sent": "", "zero": "gA=="}, "of region 0, which has"),
    ({"sent": "?"}, "is no base64"),
    ({"sent": "AB"}, "is no base64"),
    ({"zero": "/" * 400}, "has 300 bytes, at most 256"),
]


@pytest.mark.parametrize(("fields", "reason"), WRONG_PAGES)
def test_pages_that_are_not_there(
    conversation: list[Frame], fields: dict[str, object], reason: str
) -> None:
    at = index_of(conversation, "pages")
    regions: Any = manifest_of(conversation)["memory"]
    length = regions[0][1]
    said: dict[str, object] = {"region": 0, "first": 0, "sent": _ONE, "zero": "", **fields}
    if said["first"] == "last":
        said["first"] = length // 4096 - 1
    with target() as side:
        heard = side.take([*conversation[:at], control("pages", **said), *conversation[at + 1 :]])
        failed(side, reason)
        assert reason in heard["failed"]["reason"]


def test_more_memory_than_was_announced(conversation: list[Frame]) -> None:
    at = index_of(conversation, "switch")
    with target() as side:
        side.take([*conversation[:at], memory(bytes(4096))])
        failed(side, "4096 bytes of guest memory, 0 pages are expected")


def test_part_of_a_page(conversation: list[Frame]) -> None:
    at = index_of(conversation, "pages")
    with target() as side:
        side.take([*conversation[: at + 1], memory(bytes(100))])
        failed(side, "100 bytes of guest memory")


def test_less_memory_than_was_announced(conversation: list[Frame]) -> None:
    at = index_of(conversation, "pages")
    pages = control("pages", region=0, first=0, sent="Aw==", zero="")
    with target() as side:
        side.take([*conversation[:at], pages, memory(bytes(4096)), *conversation[at:]])
        failed(side, "pages though 1 pages are missing")


def test_state_after_its_end(conversation: list[Frame]) -> None:
    at = index_of(conversation, "switch")
    with target() as side:
        side.take([*conversation[:at], data(b"x")])
        failed(side, "the device's state goes on after its end")


def test_memory_without_a_guest(conversation: list[Frame]) -> None:
    at = index_of(conversation, "pages")
    bare = manifest_of(conversation) | {"guest": False, "memory": []}
    frames = [conversation[0], control("manifest", **bare), *conversation[2:]]
    for more in (conversation[at], memory(bytes(4096))):
        with target() as side:
            side.take([*frames[:at], more])
            failed(side)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"vendor_id": 0x8086}, "the source is a 8086:101e, this is a 15b3:101e"),
        ({"device_id": 0x1019}, "the source is a 15b3:1019, this is a 15b3:101e"),
        ({"stream": "mtty"}, "the source's state is a mtty stream, this device reads mlx5"),
        ({"stream_version": 1 << 40}, "update its driver"),
        ({"needs": ["teleport", "log_max_qp>=8"]}, "this device lacks teleport"),
        ({"needs": [f"need {n:020}" for n in range(1000)]}, "this device lacks need 0"),
        ({"memory": []}, "the guest has no memory"),
        ({"memory": [[0, 0]]}, "is not made of whole pages"),
        ({"memory": [[1 << 32, 4097]]}, "is not made of whole pages"),
        ({"memory": [[5, 4096]]}, "is not made of whole pages"),
        ({"memory": [[0, 8192], [4096, 4096]]}, "overlaps another region"),
        ({"memory": [[4096, 4096], [0, 8192]]}, "overlaps another region"),
        ({"memory": [[(1 << 64) - 4096, 8192]]}, "goes beyond the end of 64 bits"),
        ({"memory": [[0, 1 << 63]]}, "is more than the limit here, 1024.0 GiB"),
        ({"memory": [[n << 40, 1 << 39] for n in range(3)]}, "is more than the limit here"),
        ({"memory": [[n << 20, 4096] for n in range(2000)]}, "has 2000 regions, more than 256"),
        ({"guest": False}, "memory without a guest"),
    ],
)
def test_a_manifest_that_is_refused(
    conversation: list[Frame], changes: dict[str, object], text: str
) -> None:
    wanted = manifest_of(conversation) | changes
    with target() as side:
        rss = _resident()
        heard = side.take([conversation[0], control("manifest", **wanted)])
        failed(side, text, Refused)
        assert text in heard["refuse"]["reason"]
        assert _resident() - rss < 16 << 20


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_less_memory_may_be_allowed(conversation: list[Frame]) -> None:
    with target(options=TargetOptions(max_memory=1 << 20)) as side:
        heard = side.take(conversation)
        failed(side, "more than the limit here, 1.0 MiB (receive --max-memory)", Refused)
        assert "--max-memory" in heard["refuse"]["reason"]


def test_memory_that_can_not_be_mapped(conversation: list[Frame]) -> None:
    """Within the limit, but more than an address space holds."""
    wanted = manifest_of(conversation) | {"memory": [[0, 1 << 60]]}
    with target(options=TargetOptions(max_memory=1 << 62)) as side:
        side.take([conversation[0], control("manifest", **wanted)])
        failed(side, "there is no room for the guest's memory", Refused)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (f"{BLANK}&multi_load=0", "too old for PRE_COPY"),
        (f"{BLANK}&migratable=0", "can't be migrated"),
        ("sim:mlx5?log_max_qp=4", "this device lacks log_max_qp>=5, log_max_qp>=6"),
    ],
)
def test_a_target_that_is_too_small_or_too_old(
    conversation: list[Frame], name: str, text: str
) -> None:
    wanted = manifest_of(conversation) | {"needs": [f"log_max_qp>={n}" for n in (5, 6)]}
    with target(name) as side:
        heard = side.take([conversation[0], control("manifest", **wanted)])
        assert type(side.outcome) is Refused
        assert text in str(side.outcome)
        assert text in heard["refuse"]["reason"]


def test_no_version_in_common(conversation: list[Frame]) -> None:
    with target() as side:
        heard = side.take([control("hello", program="of\x1b[2J tomorrow", versions=[7, 8])])
        # What a peer calls itself is not given to a terminal as it is.
        failed(side, "no common version: here [2, 3], there [7, 8] (of?[2J tomorrow)")
        assert "no common version" in heard["failed"]["reason"]


def test_memory_in_which_no_guest_is(conversation: list[Frame]) -> None:
    """The device runs as soon as it is told to; a guest that can't is told, not a traceback."""
    kept = [frame for frame in conversation if frame.kind not in ("pages", "memory")]
    end, switch = index_of(kept, "end"), index_of(kept, "switch")
    empty = [*kept[: end + 1], control("switch", digest=_DIGEST_OF_NOTHING), *kept[switch + 1 :]]
    with target() as side:
        heard = side.take(empty)
        assert isinstance(side.outcome, MigrationError)
        assert "the device was handed over and it can't run here" in str(side.outcome)
        assert "it stands in RUNNING" in heard["stuck"]["reason"]


#: xxh3 of no bytes.
_DIGEST_OF_NOTHING = 0x2D06800538D394C2
