"""Firmware commands that fail, or are never answered, under the kernel's own mlx5_vfio_pci.

Every command that the driver gives to migrate a VF fails in each place where it is given, with a
status of each class. Where the driver does not get over it, that stands here, so that a change is
noticed.
"""

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest

from precopy.lab import Job, run
from tests.lab.mlx5.attempt import SCENARIOS
from tests.lab.mlx5.faults import STATUSES, statuses_of
from tests.lab.mlx5.never import PLACES
from tests.lab.mlx5.rig import LEAPING, TOP, Boots, Seen, boot, booting

pytestmark = pytest.mark.timeout(600)

CARD = "mlx5?vfs=2&log_max_qp=12"

#: 0x9 is BAD_RES_STATE: a save that can't go on while the VF runs.
STATE_ERROR = 0x9

#: Of the scenarios.
HALVES = ("faults, first half", "faults, second half")


def hang() -> Seen:
    """A kernel that can't be shut down, with nobody who would have it ended."""
    command = [
        sys.executable,
        "-m",
        "precopy",
        "lab",
        "fault",
        "QUERY_VHCA_MIGRATION_STATE:1:never",
    ]
    ask = [sys.executable, "-m", "tests.lab.inside_mlx5", "data size"]
    script = f"{shlex.join(command)} && {shlex.join(ask)}"
    adapter = f"{CARD}&timeout=1"
    result = run(Job(["sh", "-c", script], adapter=adapter, cwd=TOP, arguments=LEAPING))
    told = {"said": result.out, "status": result.status, "trouble": result.trouble}
    return Seen(told, {}, {}, {}, result)


BOOTS: dict[str, Callable[[], Seen]] = {
    **{half: partial(boot, half, adapter=f"{CARD}&chunks=0") for half in HALVES},
    "hangs": hang,
    "never": partial(boot, "never", adapter=f"{CARD}&chunks=0&timeout=1", hangs=True),
    "chunks": partial(
        boot,
        "faults in chunks",
        "deferred",
        adapter=f"{CARD}&chunks=1&state=17M&timeout=1",
        hangs=True,
    ),
}


@pytest.fixture(scope="module")
def boots() -> Iterator[Boots]:
    with booting(BOOTS, 3) as found:
        yield found


@dataclass(frozen=True, slots=True)
class Faults:
    """Of one scenario: outcomes by case, what the card was asked for, what was left in it."""

    told: dict[str, Any]
    seen: Seen

    def left(self, name: str) -> dict[str, int]:
        return leaks(self.seen)[name]


@pytest.fixture(scope="module")
def faults(boots: Boots) -> dict[str, Faults]:
    """By scenario."""
    found = {}
    for half in HALVES:
        seen = boots[half]
        told = seen.told[half]
        found.update({title: Faults(told, seen) for title in SCENARIOS if title in told})
    return found


def unharmed(guest: dict[str, int]) -> bool:
    faults = ("lost", "doubled", "reordered", "damaged", "failed")
    return guest["sent"] == guest["received"] > 0 and not any(guest[each] for each in faults)


# --- What becomes of a command that fails ---------------------------------------------------------


class Kept(NamedTuple):
    """``step`` fails with the command's errno in ``state``, and succeeds when it is tried again."""

    step: str
    state: str


class Lost(NamedTuple):
    """``step`` fails likewise; ``again`` and the way back fail, too: only a reset helps."""

    step: str
    state: str
    again: str


class Sticky(NamedTuple):
    """``step``, a write, fails likewise; the data_fd is dead."""

    step: str


class Ignored(NamedTuple):
    """Nobody hears of it; the object stays in the card, in the table ``kind`` where it has one."""

    kind: str


class Saving(NamedTuple):
    """``step``, a read or what waits for the save, says ENODEV in ``state``. ``lost``: see Lost.

    ``without``: with BAD_RES_STATE nothing fails, and the final image is a full one.
    """

    step: str
    state: str
    lost: bool = False
    full_image: bool = False


class Cleanup(NamedTuple):
    """The save that ends the tracking: EIO, but with BAD_RES_STATE nothing fails."""

    step: str
    state: str


Becomes = Kept | Lost | Sticky | Ignored | Saving | Cleanup

AT_ONCE = Kept("PRE_COPY_P2P", "RUNNING_P2P")
KEY, PD = Ignored("mkey"), Ignored("pd")
#: The responder is suspended by then, and the driver does not take that back.
SWITCHOVER = Lost("STOP_COPY", "PRE_COPY_P2P", "EINVAL")
FINAL = Saving("read to the end", "STOP_COPY")
MIDDLE = Saving("read", "PRE_COPY", lost=True, full_image=True)
SUSPEND: list[Becomes] = [Kept("STOP_COPY", "PRE_COPY"), Kept("STOP_COPY", "PRE_COPY_P2P")]

BECOMES: dict[str, dict[str, list[Becomes]]] = {
    "images": {
        "ALLOC_PD": [Kept("PRE_COPY", "RUNNING")],
        "CREATE_MKEY": [Kept("PRE_COPY", "RUNNING")] * 2,
        "QUERY_VHCA_MIGRATION_STATE": [
            Kept("PRE_COPY", "RUNNING"),
            Kept("info", "PRE_COPY"),
            SWITCHOVER,
        ],
        "SAVE_VHCA_STATE": [MIDDLE, MIDDLE, FINAL],
        "SUSPEND_VHCA": [Kept("PRE_COPY_P2P", "PRE_COPY"), Kept("STOP_COPY", "PRE_COPY_P2P")],
        "DESTROY_MKEY": [KEY] * 2,
        "DEALLOC_PD": [PD],
        "RESUME_VHCA": [Kept("RUNNING_P2P", "STOP"), Kept("RUNNING", "RUNNING_P2P")],
    },
    "unread": {
        "ALLOC_PD": [AT_ONCE],
        "CREATE_MKEY": [AT_ONCE] * 2,
        "QUERY_VHCA_MIGRATION_STATE": [AT_ONCE, SWITCHOVER],
        # Nobody reads: the switchover hears of it.
        "SAVE_VHCA_STATE": [
            Saving("STOP_COPY", "PRE_COPY_P2P", lost=True, full_image=True),
            FINAL,
        ],
        "SUSPEND_VHCA": [Kept("STOP_COPY", "PRE_COPY_P2P")],
    },
    "a larger middle image": {
        "QUERY_VHCA_MIGRATION_STATE": [Kept("info", "PRE_COPY"), SWITCHOVER],
        # That there is no room for a middle image ends all.
        "CREATE_MKEY": [Lost("info", "PRE_COPY", "ENODEV")],
        "DESTROY_MKEY": [KEY],
        "SAVE_VHCA_STATE": [MIDDLE, FINAL],
        "SUSPEND_VHCA": SUSPEND,
    },
    "a larger final image": {
        "SUSPEND_VHCA": SUSPEND,
        "QUERY_VHCA_MIGRATION_STATE": [SWITCHOVER],
        "CREATE_MKEY": [SWITCHOVER],
        "DESTROY_MKEY": [KEY] * 2,
        "SAVE_VHCA_STATE": [FINAL],
    },
    "cancel": {
        "QUERY_VHCA_MIGRATION_STATE": [Kept("RUNNING", "PRE_COPY")],
        "SAVE_VHCA_STATE": [Cleanup("RUNNING", "PRE_COPY")],
        "DESTROY_MKEY": [KEY] * 2,
        "DEALLOC_PD": [PD],
    },
    "cancel, nothing read": {
        "QUERY_VHCA_MIGRATION_STATE": [Kept("RUNNING", "PRE_COPY")],
        "CREATE_MKEY": [Kept("RUNNING", "PRE_COPY")],
        "SAVE_VHCA_STATE": [Cleanup("RUNNING", "PRE_COPY")],
        "DESTROY_MKEY": [KEY] * 3,
        "DEALLOC_PD": [PD],
    },
    "cancel from PRE_COPY_P2P": {
        "QUERY_VHCA_MIGRATION_STATE": [Kept("RUNNING_P2P", "PRE_COPY_P2P")],
        "SAVE_VHCA_STATE": [Cleanup("RUNNING_P2P", "PRE_COPY_P2P")],
        "DESTROY_MKEY": [KEY] * 2,
        "DEALLOC_PD": [PD],
        "RESUME_VHCA": [Kept("RUNNING", "RUNNING_P2P")],
    },
    "back to PRE_COPY": {"RESUME_VHCA": [Kept("PRE_COPY", "PRE_COPY_P2P")]},
    "plain": {
        "ALLOC_PD": [Kept("STOP_COPY", "STOP")],
        "QUERY_VHCA_MIGRATION_STATE": [Kept("STOP_COPY", "STOP")],
        "CREATE_MKEY": [Kept("STOP_COPY", "STOP")],
        "SAVE_VHCA_STATE": [FINAL],
        "DESTROY_MKEY": [KEY],
        "DEALLOC_PD": [PD],
    },
    "load": {
        "SUSPEND_VHCA": [Kept("RESUMING", "RUNNING"), Kept("RESUMING", "RUNNING_P2P")],
        "ALLOC_PD": [Kept("RESUMING", "STOP")],
        "CREATE_MKEY": [Sticky("write 1"), Sticky("write 3")],
        "LOAD_VHCA_STATE": [Sticky(f"write {number}") for number in range(1, 5)],
        "DESTROY_MKEY": [KEY] * 2,
        "DEALLOC_PD": [PD],
        "RESUME_VHCA": [Kept("RUNNING", "STOP"), Kept("RUNNING", "RUNNING_P2P")],
    },
    "log": {
        **{
            opcode: [Kept("start", "RUNNING")] * count
            for opcode, count in {
                "ALLOC_PD": 1,
                "CREATE_CQ": 1,
                "CREATE_QP": 2,
                "CREATE_MKEY": 1,
                "RST2INIT_QP": 2,
                "INIT2RTR_QP": 2,
                "RTR2RTS_QP": 1,
                "CREATE_GENERAL_OBJECT": 1,
            }.items()
        },
        "MODIFY_GENERAL_OBJECT": [Kept("report", "RUNNING")],
        "DESTROY_GENERAL_OBJECT": [Ignored("")],
        "DESTROY_QP": [Ignored("qp")] * 2,
        "DESTROY_MKEY": [KEY],
        "DESTROY_CQ": [Ignored("cq")],
        "DEALLOC_PD": [PD],
    },
    "data size": {"QUERY_VHCA_MIGRATION_STATE": [Kept("data size", "RUNNING")]},
}

CASES = [
    (title, opcode, nth, becomes)
    for title, commands in BECOMES.items()
    for opcode, places in commands.items()
    for nth, becomes in enumerate(places, 1)
]


def case_id(value: object) -> str:
    return str(value) if isinstance(value, str | int) else ""


def leaks(seen: Seen) -> dict[str, dict[str, int]]:
    """By mark: what the card holds that it did not hold at the mark before."""
    found: dict[str, dict[str, int]] = {}
    before = None
    for name, standing in seen.standings.items():
        if name.endswith((" begins", " is done")):
            continue
        now = standing.objects
        found[name] = (
            {kind: now[kind] - before[kind] for kind in now if now[kind] != before[kind]}
            if before
            else {}
        )
        before = now
    return found


def test_the_places_are_all_there_are(faults: dict[str, Faults]) -> None:
    for title, scenario in SCENARIOS.items():
        asked = faults[title].seen.commands(f"{title} begins")
        assert Counter(each.split()[0] for each in asked) == scenario.commands
        places = {opcode: len(each) for opcode, each in BECOMES[title].items()}
        assert places == scenario.commands
    assert set(SCENARIOS) == set(BECOMES)


@pytest.mark.parametrize("title", SCENARIOS)
def test_without_a_fault(faults: dict[str, Faults], title: str) -> None:
    told = faults[title].told[title]
    assert "failed" not in told
    assert told["back"] == [None, "RUNNING"]
    assert told["works"]
    assert SCENARIOS[title].loads or unharmed(told["guest"])
    assert faults[title].left(title) == {}


@pytest.mark.parametrize(("title", "opcode", "nth", "becomes"), CASES, ids=case_id)
def test_a_command_fails(
    faults: dict[str, Faults], title: str, opcode: str, nth: int, becomes: Becomes
) -> None:
    told_of = faults[title].told
    clean = told_of[title]
    for status in statuses_of(title):
        name = f"{title}: {opcode}:{nth}:{status:#x}"
        told = told_of[name]
        # A reset gets over everything, and nothing is left behind but what could not be destroyed.
        assert told["works"]
        left = {becomes.kind: 1} if isinstance(becomes, Ignored) and becomes.kind else {}
        assert faults[title].left(name) == left
        judge(becomes, told, clean, status, STATUSES[status])
        if "guest" in told:
            assert unharmed(told["guest"])


def judge(
    becomes: Becomes, told: dict[str, Any], clean: dict[str, Any], status: int, code: str
) -> None:
    failed, again, back = told.get("failed"), told.get("again"), told.get("back")
    match becomes:
        case Kept(step, state):
            assert failed == [step, code, state]
            assert again is not None
            assert again[0] is None
            assert back == (None if again[1] == "RESUMING" else [None, "RUNNING"])
        case Lost(step, state, error):
            assert failed == [step, code, state]
            assert again == [error, state]
            assert back == ["ENODEV", state]
        case Sticky(step):
            assert failed == [step, code, "RESUMING"]
            assert again == ["ENODEV", "RESUMING"]
        case Ignored(_):
            assert failed is None
            assert told["values"] == clean["values"]
        case Saving(_, _, _, full_image) if status == STATE_ERROR and full_image:
            assert failed is None
            assert back == [None, "RUNNING"]
            full_again(told["values"], clean["values"])
        case Saving(step, state, lost, _):
            assert failed == [step, "ENODEV", state]
            refused = "EINVAL" if step == "STOP_COPY" else "ENODEV"
            assert again == [refused, state]
            assert back == (["ENODEV", state] if lost else [None, "RUNNING"])
        case Cleanup(step, state):
            # What is tried then brings the kernel down, see test_mlx5_crashes.py.
            assert failed == (None if status == STATE_ERROR else [step, "EIO", state])


def full_again(values: list[Any], clean: list[Any]) -> None:
    """The images that failed are missing; the last one holds everything."""
    read = [each[0] for each in values if isinstance(each, list) and len(each) == 1]
    whole = [each[0] for each in clean if isinstance(each, list) and len(each) == 1]
    assert len(read) == len(whole)
    if len(read) > 1:
        assert read[-1] > whole[-1]
        assert any(some < all_ for some, all_ in zip(read[:-1], whole[:-1], strict=True))
    else:
        # Nothing was read before: one full image instead of two.
        assert read[0] <= whole[0]


# --- Chunks ---------------------------------------------------------------------------------------


def test_a_chunk_fails(boots: Boots) -> None:
    seen = boots["chunks"]
    told = seen.told["faults in chunks"]
    assert told.pop("no fault") == {"failed": None, "state": "STOP_COPY", "saves": 3}
    for nth in (1, 2):
        assert told.pop(f"buffer {nth}") == ["ENOMEM", "STOP"]
        assert leaks(seen)[f"buffer {nth}"] == {}
    assert len(told) == 6
    for name, each in told.items():
        assert (each["failed"], each["state"], each["works"]) == ("ENODEV", "STOP_COPY", True)
        # A chunk that was saved and not yet read is gone, too.
        assert each["saves"] < int(name[0])
        assert leaks(seen)[name] == {}


# --- No answer ------------------------------------------------------------------------------------

#: Seconds that the adapter is given, and that the driver then takes to look for a lost interrupt.
GIVEN, RECOVERY = 1, 5


@pytest.mark.parametrize(("title", "opcode", "nth"), PLACES)
def test_a_command_is_never_answered(boots: Boots, title: str, opcode: str, nth: int) -> None:
    told = boots["never"].told["never"][f"{title}: {opcode}:{nth}:never"]
    becomes = BECOMES[title][opcode][nth - 1]
    clean = {"values": told["values"]}
    judge(becomes, told, clean, 0, "ETIMEDOUT")
    assert told["works"]
    # A save is not waited for twice.
    waits = GIVEN if isinstance(becomes, Saving | Cleanup) else GIVEN + RECOVERY
    assert waits <= told["seconds"] < waits + 1


def test_a_reset_while_the_lock_is_taken(boots: Boots) -> None:
    """It comes into effect when the other call is done, before anything else is."""
    assert boots["chunks"].told["deferred"] == [True, 9, "ETIMEDOUT", "RUNNING", "ENODEV", True]


def test_a_kernel_that_hangs_at_its_end_is_ended(boots: Boots) -> None:
    """A command without an answer keeps its place, and the driver waits for all places to be free."""
    told = boots["hangs"].told
    assert '"ETIMEDOUT"' in told["said"]
    assert told["status"] == 124
    assert "no power-off within " in told["trouble"]
