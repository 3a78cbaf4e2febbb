"""The kernel's own mlx5_vfio_pci where memory is short: every allocation fails, one after another."""

from collections.abc import Iterator
from functools import partial

import pytest

from tests.lab.mlx5.rig import Boots, boot, booting

pytestmark = pytest.mark.timeout(600)

CARD = "mlx5?vfs=2&log_max_qp=12&chunks=0"


@pytest.fixture(scope="module")
def boots() -> Iterator[Boots]:
    with booting({"allocations": partial(boot, "allocations", adapter=CARD)}) as found:
        yield found


#: What a call says, the state then, and what the way back says: when nothing fails, and when an
#: allocation does.
CALLS = {
    "STOP to STOP_COPY": ("well, STOP_COPY, well", {"ENOMEM, STOP, well"}),
    "STOP to RESUMING": ("well, RESUMING, well", {"ENOMEM, STOP, well"}),
    "RUNNING to PRE_COPY": ("well, PRE_COPY, well", {"ENOMEM, RUNNING, well"}),
    # That it can't tell the firmware to forget something is not told.
    "PRE_COPY to RUNNING": (
        "well, RUNNING, well",
        {"ENOMEM, PRE_COPY, well", "well, RUNNING, well"},
    ),
    # Once the responder is suspended there is no way back but a reset.
    "PRE_COPY to STOP_COPY": (
        "well, STOP_COPY, well",
        {"ENOMEM, PRE_COPY_P2P, well", "ENOMEM, PRE_COPY_P2P, ENODEV"},
    ),
    # Nor is there one when no room can be had for an image in PRE_COPY.
    "a middle image": (
        "well, PRE_COPY, well",
        {"ENOMEM, PRE_COPY, well", "ENOMEM, PRE_COPY, ENODEV"},
    ),
    "an image is loaded": ("well, RESUMING, well", {"ENOMEM, RESUMING, well"}),
}


@pytest.mark.parametrize("name", CALLS)
def test_memory_is_short(boots: Boots, name: str) -> None:
    told = boots["allocations"].told["allocations"][name]
    well, failing = CALLS[name]
    assert told["well"] == well
    assert set(told["failing"]) == failing


def test_memory_is_short_for_a_log(boots: Boots) -> None:
    told = boots["allocations"].told["allocations"]["log"]
    assert told["well"] == "well, RUNNING, well"
    # It can do without an entry in debugfs.
    assert set(told["failing"]) <= {"ENOMEM, RUNNING, well", "well, RUNNING, well"}
    assert told["failing"]["ENOMEM, RUNNING, well"] > 30


def test_what_is_left_in_the_card(boots: Boots) -> None:
    """What the firmware was not told to forget, as the command itself could not be allocated."""
    seen = boots["allocations"]
    before = {"pd": 0, "mkey": 0}
    for name in (*CALLS, "log"):
        objects = seen.standings[name].objects
        left = sum(objects[kind] - before[kind] for kind in before)
        failing = seen.told["allocations"][name]["failing"]
        untold = failing["well, RUNNING, well"] if name == "PRE_COPY to RUNNING" else 0
        assert left == untold, name
        before = {kind: objects[kind] for kind in before}
        assert (objects["cq"], objects["qp"]) == (0, 0)
    assert all(seen.standings["closed"].works)
