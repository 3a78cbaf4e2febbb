"""Saving and loading by the kernel's own mlx5_vfio_pci, on the software ConnectX.

Where the driver falls short of the uAPI, what it does stands here, so that a change is noticed.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags, path
from tests.lab.mlx5.rig import Boots, Seen, boot, booting

pytestmark = pytest.mark.timeout(600)

ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
STATES = [state for state in DeviceState if state is not DeviceState.ERROR]
IN, ENDED = 0x1, 0x2001
MIB = 1 << 20

SMALL = "mlx5?vfs=3&log_max_qp=12&timeout=1"
BIG = "mlx5?vfs=2&log_max_qp=12&state=17M"
SESSIONS = ("images", "unread", "plain", "cancel")
REST = (
    "about",
    "arcs",
    "resets",
    "closing",
    "early",
    "no image",
    "reinit",
    "refused",
    "calls",
    "waiting",
)

#: Kernels: with chunk mode or not, with bulk state or not.
BOOTS = {
    "chunks": partial(boot, *SESSIONS, *REST, adapter=f"{SMALL}&chunks=1", hangs=True),
    "one image": partial(boot, *SESSIONS, *REST, adapter=f"{SMALL}&chunks=0", hangs=True),
    "big, chunks": partial(boot, *SESSIONS, adapter=f"{BIG}&chunks=1"),
    "big, one image": partial(boot, *SESSIONS, adapter=f"{BIG}&chunks=0"),
}
LITTLE = ("chunks", "one image")


@pytest.fixture(scope="module")
def boots() -> Iterator[Boots]:
    with booting(BOOTS) as found:
        yield found


@pytest.fixture(params=BOOTS)
def seen(request: pytest.FixtureRequest, boots: Boots) -> Seen:
    return boots[request.param]


@pytest.fixture(params=LITTLE)
def little(request: pytest.FixtureRequest, boots: Boots) -> Seen:
    return boots[request.param]


def unharmed(guest: dict[str, int]) -> bool:
    faults = ("lost", "doubled", "reordered", "damaged", "failed")
    return guest["sent"] == guest["received"] > 0 and not any(guest[each] for each in faults)


def sizes(records: list[list[int]]) -> list[int]:
    """The images of a stream, which begins with the record of what is to be expected."""
    assert records[0] == [1, 1, 8]
    assert all((tag, flags) == (0, 0) for tag, flags, _ in records[1:])
    return [size for _, _, size in records[1:]]


# --- Who it is ------------------------------------------------------------------------------------


def test_who_it_is(little: Seen) -> None:
    get, change = 1 << 16, 1 << 17
    assert little.told["about"] == {
        "ids": [0x15B3, 0x101E],
        "stream": "mlx5",
        "driver": "mlx5_vfio_pci",
        "flags": int(ALL),
        "features": {
            "MIGRATION": get,
            "MIG_DEVICE_STATE": get | change,
            "DMA_LOGGING_START": change,
            "DMA_LOGGING_STOP": change,
            "DMA_LOGGING_REPORT": get,
            "MIG_DATA_SIZE": get,
            "MIG_PRECOPY_INFO_V2": change,
        },
        "state": "RUNNING",
    }


# --- Images ---------------------------------------------------------------------------------------


def test_the_initial_image_falls_by_what_is_read(seen: Seen) -> None:
    told = seen.told["images"]
    assert told["poll at first"] == IN
    initial, dirty, flags = told["at first"]
    # Record and content of the expected size, and what stands before an image.
    assert initial > 24 + 16
    assert (dirty, flags) == (0, 0)
    for count, now, _, _ in told["falls"]:
        initial = max(0, initial - count)
        assert now == initial
    assert initial == 0


def test_dirty_bytes_begin_when_the_initial_image_is_read(seen: Seen) -> None:
    told = seen.told["images"]
    before = 0
    for count, initial, dirty, _ in told["falls"]:
        assert not (initial and dirty)
        # Only with more to come does it grow: bulk state in chunks.
        assert before == 0 or dirty >= before - count
        before = dirty
    assert told["at the end"] == [0, 0, 0]
    assert told["poll at the end"] == 0


def test_middle_images(seen: Seen) -> None:
    told = seen.told["images"]["middle"]
    assert len(told) == 3
    for initial, dirty, flags, ready, count, end in told:
        assert (initial, flags, ready, end) == (0, 0, IN, "ENOMSG")
        # The guest stands still meanwhile, so what was told is what comes.
        assert count == dirty > 16


def test_the_final_image(seen: Seen) -> None:
    told = seen.told["images"]
    # Nothing can be saved in PRE_COPY_P2P, so the driver does not ask what there would be.
    assert told["in PRE_COPY_P2P"] == [0, 0, 0]
    assert told["info in STOP_COPY"] == "EINVAL"
    assert told["final"] > 16
    assert told["end"] == "EOF"
    assert told["reads at the end"] == [0, 0, 0]
    assert told["poll at the permanent end"] == IN


def test_the_images_of_a_stream(seen: Seen) -> None:
    told = seen.told["images"]
    found = sizes(told["records"])
    assert found[-1] + 16 == told["final"]
    assert [size + 16 for size in found[-4:-1]] == [count for *_, count, _ in told["middle"]]
    assert sum(size + 16 for size in found[:-4]) + 24 == sum(each[0] for each in told["falls"])


def test_the_end_of_a_session(seen: Seen) -> None:
    told = seen.told["images"]
    assert told["read when it is over"] == "ENODEV"
    assert told["info when it is over"] == "EINVAL"
    assert told["poll when it is over"] == ENDED


def test_state_arrives(seen: Seen) -> None:
    standings = seen.standings
    for name in ("images: run", "unread: loaded", "plain: loaded"):
        source, target = standings[name].content[:2]
        assert source == target, name
    # It had changed meanwhile: the middle images were needed.
    contents = [
        standings[f"images: {each}"].content[0]
        for each in ("middle 0", "middle 1", "leave STOP_COPY")
    ]
    assert len(set(contents)) == 3


@pytest.mark.parametrize("fact", ["images", "unread", "plain", "cancel"])
def test_the_guest_is_unharmed(seen: Seen, fact: str) -> None:
    assert unharmed(seen.told[fact]["guest"])


def test_nothing_is_left_in_the_card(seen: Seen) -> None:
    objects = seen.standings["closed"].objects
    assert objects == {"pd": 0, "mkey": 0, "cq": 0, "qp": 0, "eq": 3, "uar": 1}
    assert all(seen.standings["closed"].works)


# --- What the firmware is asked -------------------------------------------------------------------

QUERY, SAVE = "QUERY_VHCA_MIGRATION_STATE", "SAVE_VHCA_STATE"
TRACKED, MORE = f"{SAVE} set_track=0x1", f"{SAVE} incremental=0x1"
MORE_TRACKED, MORE_QUERY = f"{MORE} set_track=0x1", f"{QUERY} incremental=0x1"


def test_commands_of_pre_copy(boots: Boots) -> None:
    for name, keys in (("chunks", 3), ("one image", 2)):
        seen = boots[name]
        begun = seen.commands("images: enter PRE_COPY") + seen.commands("images: read it")
        assert begun[: keys + 3] == ["ALLOC_PD", QUERY, *["CREATE_MKEY"] * keys, TRACKED]
        # One query for each look at initial_bytes and dirty_bytes.
        looks = len(seen.told["images"]["falls"]) + 2
        assert begun[keys + 3 :] == [MORE_QUERY] * looks
        assert seen.commands("images: middle 0") == [MORE_QUERY, MORE_TRACKED]
        assert seen.commands("images: enter PRE_COPY_P2P") == ["SUSPEND_VHCA"]
        final = ["SUSPEND_VHCA op_mod=0x1", MORE_QUERY, MORE]
        assert seen.commands("images: enter STOP_COPY") == final
        assert seen.commands("images: leave STOP_COPY") == [*["DESTROY_MKEY"] * keys, "DEALLOC_PD"]


def test_commands_of_a_target(little: Seen) -> None:
    suspend = ["SUSPEND_VHCA", "SUSPEND_VHCA op_mod=0x1"]
    assert little.commands("images: load") == [
        *suspend,
        "ALLOC_PD",
        "CREATE_MKEY",
        *["LOAD_VHCA_STATE"] * 5,
        "DESTROY_MKEY",
        "DEALLOC_PD",
    ]
    # Of a resumption 0 is the responder, other than of a suspension.
    assert little.commands("images: run")[:2] == ["RESUME_VHCA", "RESUME_VHCA op_mod=0x1"]


def test_commands_without_pre_copy(boots: Boots) -> None:
    for name, keys, saves in (
        ("one image", 1, 1),
        ("chunks", 2, 1),
        ("big, one image", 1, 1),
        ("big, chunks", 2, 3),
    ):
        seen = boots[name]
        assert seen.commands("plain: data size") == [QUERY]
        asked = ["ALLOC_PD", QUERY, *["CREATE_MKEY"] * keys, SAVE, *[MORE] * (saves - 1)]
        assert seen.commands("plain: enter STOP_COPY") == asked


def test_the_data_size_is_what_comes(seen: Seen) -> None:
    told = seen.told["plain"]
    # The driver counts no headers, and each chunk has one of its own and one in its image.
    chunks = len(sizes(told["records"]))
    assert 0 <= sum(sizes(told["records"])) - told["data size"] <= 64 * (chunks - 1)
    assert sizes(told["again"]) == sizes(told["records"])
    assert told["end"] == "EOF"


def test_chunks(boots: Boots) -> None:
    for fact in ("plain", "unread", "images"):
        found = sizes(boots["big, chunks"].told[fact]["records"])
        assert len(found) == (3 if fact != "images" else 3 + 4)
        assert all(size <= 8 * MIB for size in found)
        assert sum(found) > 17 * MIB
    assert len(sizes(boots["big, one image"].told["plain"]["records"])) == 1
    assert len(sizes(boots["big, one image"].told["unread"]["records"])) == 2


def test_nothing_read_before_stop_copy(seen: Seen) -> None:
    told = seen.told["unread"]
    assert told["end"] == "EOF"
    assert len(sizes(told["records"])) >= 2


def test_cancel(seen: Seen) -> None:
    told = seen.told["cancel"]
    for name, each in told.items():
        if name != "guest":
            assert each == [True, "RUNNING", "ENODEV", ENDED], name
            # A last save ends the tracking; nobody reads it.
            asked = seen.commands(f"cancel: {name}")
            assert asked[0] == MORE_QUERY
            assert SAVE in asked[1:3]


# --- States and ends ------------------------------------------------------------------------------


def test_every_arc(little: Seen) -> None:
    """The driver goes where ``states.path`` goes, and hands out a file where that says so."""
    arcs = little.told["arcs"]
    assert len(arcs) == len(STATES) * 9
    for origin in STATES:
        for new in (*DeviceState, 8):
            at_once, end, walked = arcs[f"{int(origin)} {int(new)}"]
            try:
                steps = path(origin, new, ALL)
            except OSError:
                assert (at_once, end, walked) == ("EINVAL", origin.name, "EINVAL")
                continue
            pairs = list(zip((origin, *steps), steps, strict=False))
            files = [pair in DATA_FD_ARCS for pair in pairs]
            assert (at_once, end) == (bool(files) and files[-1], DeviceState(new).name)
            assert walked == [[file, step.name] for file, step in zip(files, steps, strict=True)]


def dead(origin: DeviceState, info: str | None) -> list[Any] | None:
    """What the data_fd of a session says that began in ``origin`` and has ended."""
    if origin is DeviceState.RESUMING:
        return ["ENODEV"]
    with_file = (DeviceState.STOP_COPY, DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P)
    return ["ENODEV", ENDED, info] if origin in with_file else None


def test_reset_in_every_state(little: Seen) -> None:
    for origin in STATES:
        stands, file, guest = little.told["resets"][origin.name]
        assert (stands, file) == ("RUNNING", dead(origin, "EINVAL"))
        assert unharmed(guest)
        standing = little.standings[f"resets: {origin.name}"]
        assert standing.works[0]
        assert (standing.objects["pd"], standing.objects["mkey"]) == (0, 0)


def test_close_in_every_state(little: Seen) -> None:
    closed = {DeviceState.PRE_COPY: None, DeviceState.PRE_COPY_P2P: "ENODEV"}
    for origin in STATES:
        stands, guest, at_once, later, fresh = little.told["closing"][origin.name]
        assert stands == "RUNNING"
        assert unharmed(guest)
        assert at_once == dead(origin, closed.get(origin, "EINVAL"))
        # A new session is under way now.
        assert later == dead(origin, "ENODEV")
        assert fresh
        standing = little.standings[f"closing: {origin.name}"]
        assert standing.works[2]
        assert (standing.objects["pd"], standing.objects["mkey"]) == (0, 0)


def test_a_data_fd_closed_early(little: Seen) -> None:
    told = little.told["early"]
    assert unharmed(told.pop("works"))
    assert told.pop("on to STOP_COPY") == [None, "STOP_COPY"]
    assert told == {
        state: [None, None] for state in ("PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "RESUMING")
    }


def test_pre_copy_error(little: Seen) -> None:
    """There will be one full image; nothing more is to be had, or asked, in PRE_COPY."""
    told = little.told["no image"]
    # To go back an increment is asked for, and there is nothing to which it would be one.
    assert told["first"] == [False, "", [0, 0, 0], 0, "EINVAL", "PRE_COPY"]
    assert told["later"] == [True, "ENOMSG", [0, 0, 0], 0, None, "RUNNING"]
    for name, last in (("first", f"{MORE_QUERY} -> BAD_RES_STATE"), ("later", MORE_QUERY)):
        assert little.commands(f"no image: {name}")[0] == last
    # The size record had been read before.
    assert [tag for tag, _, _ in told["in the end"]] == [0]
    assert unharmed(told["guest"])


# --- New initial state ----------------------------------------------------------------------------


def test_reinit(little: Seen) -> None:
    told = little.told["reinit"]
    # 256 pages that no image has held yet, the page of QP numbers among them or not.
    new = 1050688 + 16
    assert told["without INFOv2"] == [[0, new, 0], [new, "ENOMSG"], [0, 0, 0]]
    less = told["too little"][1][0]
    assert less < MIB
    assert told["too little"] == [[0, less, 0], [less, "ENOMSG"], [0, 0, 0]]
    assert told["drained"] == [[new, 0, 1]]
    assert told["then"] == [[1000, new - 1000, 0, 0], [1000, new - 2000, 0, 0]]
    # What has not been read is initial state, too.
    both = 2 * new - 2000
    assert told["not drained"] == [[both, 0, 1], [both, "ENOMSG"], [0, 0, 0]]
    initial, dirty, flags = told["changes"][0]
    assert (initial, flags) == (0, 0)
    assert told["changes"][1] == [dirty, "ENOMSG"]
    assert told["in PRE_COPY_P2P"] == [0, 0, 0]
    assert told["back in PRE_COPY"] == [[new, 0, 1], [new, "ENOMSG"]]
    assert told["after a reset"] == 0
    assert little.commands("reinit: not drained")[:2] == [MORE_QUERY, "CREATE_MKEY"]


# --- What is refused ------------------------------------------------------------------------------

RUNS, STANDS = [None, None, "RUNNING"], [None, "EINVAL", "STOP"]

#: Stream: what a write says, what the next one says, then STOP, then RUNNING, and the state.
REFUSED = {
    "whole": [None, 1, *RUNS],
    "without the size record": [None, 1, *RUNS],
    "an optional record": [None, 1, *RUNS],
    "the initial image twice": [None, 1, *RUNS],
    # The firmware knows of images alone, and of these nothing is missing.
    "nothing": [None, 1, *RUNS],
    "half a header": [None, 1, *RUNS],
    "half an image": [None, 1, *RUNS],
    "something behind it": [None, 1, *RUNS],
    # The firmware does not resume what has not all been loaded.
    "the initial image alone": [None, 1, *STANDS],
    "the final image alone": ["EINVAL", "ENODEV", *RUNS],
    "images in another order": ["EINVAL", "ENODEV", *RUNS],
    "a bit flipped": ["EINVAL", "ENODEV", *RUNS],
    "a mandatory record": ["EOPNOTSUPP", "ENODEV", *RUNS],
    "a record too large": ["ENOMEM", "ENODEV", *RUNS],
    "an image of 0 bytes": ["EINVAL", "ENODEV", *RUNS],
}


def test_streams_that_are_wrong(little: Seen) -> None:
    # ENOTSUP is the same number.
    told = {
        name: ["EOPNOTSUPP" if each == "ENOTSUP" else each for each in found]
        for name, found in little.told["refused"].items()
    }
    assert told == REFUSED
    standings = little.standings
    fresh = standings["refused: nothing"].content[1]
    # A stream of which nothing was loaded has left nothing behind.
    assert standings["refused: a bit flipped"].content[1] == fresh
    source, target, _ = standings["refused: nothing of it after all"].content
    assert source == target != fresh


def test_system_calls_that_are_wrong(little: Seen) -> None:
    assert little.told["calls"] == {
        "argsz too small": "EINVAL",
        "argsz larger": 0,
        "saving": {
            "write": "EBADF",
            "pread": "ESPIPE",
            "lseek": "ESPIPE",
            "another ioctl": "ENOTTY",
            "info, a bad pointer": "EFAULT",
            "info, half a pointer": "EFAULT",
            "info, read-only": "EFAULT",
            "read of nothing": 0,
            "read, a bad pointer": "EFAULT",
            "close-on-exec": 1,
            "flags": 0,
        },
        "lost by a bad pointer": 0,
        "read, half a pointer": "EFAULT",
        # What went into the half that is there is gone for the reader: up to a page of it.
        "lost by half a pointer": 40,
        "resuming": {
            "read": "EBADF",
            "pwrite": "ESPIPE",
            "info": "ENOTTY",
            "close-on-exec": 1,
            "flags": 1,
            "write of nothing": 0,
            "write, a bad pointer": "EFAULT",
            "write after it": "ENODEV",
        },
        "image, a bad pointer": "EFAULT",
        "optional record, a bad pointer": "EFAULT",
    }


def test_reads_that_have_to_wait(little: Seen) -> None:
    ended = [False, "ENODEV"]
    assert little.told["waiting"] == {
        "STOP_COPY, non-blocking": [24, "EAGAIN", 0],
        "STOP_COPY, blocking": ["ENODEV", "STOP_COPY"],
        "PRE_COPY, non-blocking": [24, "EAGAIN", 0],
        "PRE_COPY, blocking": ["ENODEV", "PRE_COPY"],
        # Data is on its way, yet it is said to be the temporary end.
        "a middle image, non-blocking": ["ENOMSG", 0],
        # Nothing is left to be read, it is said, while the initial image is still being saved.
        "PRE_COPY_P2P at once": [[24, 0, 0], 24, [0, 0, 0], "EAGAIN"],
        "ended by STOP": ended,
        "ended by reset": ended,
        "ended by close": ended,
    }
