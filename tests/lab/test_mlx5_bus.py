"""VFs and drivers that come and go, and what the driver offers on older and newer cards."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.lab.mlx5.rig import Boots, Seen, boot, booting

pytestmark = pytest.mark.timeout(600)

CARD = "mlx5?vfs=2&log_max_qp=12"
FIRST, SECOND = "0000:00:01.0", "0000:00:02.0"
VFIO = "mlx5_vfio_pci"

#: Everything that this driver can do.
GET, CHANGE = 1 << 16, 1 << 17
MIGRATION = {
    "MIGRATION": GET,
    "MIG_DEVICE_STATE": GET | CHANGE,
    "MIG_DATA_SIZE": GET,
    "MIG_PRECOPY_INFO_V2": CHANGE,
}
LOGGING = {"DMA_LOGGING_START": CHANGE, "DMA_LOGGING_STOP": CHANGE, "DMA_LOGGING_REPORT": GET}

OLDEST = ("no tracking state", "no migration")
FACTS = ("unasked", "host driver", "sriov", "pf driver", "held", "detached")
OLDER = ("migratable=0", "multi_load=0", "page_track=0")
BOOTS = {
    "bus": partial(boot, *FACTS, adapter=CARD),
    **{option: partial(boot, "offers", adapter=f"{CARD}&{option}") for option in OLDER},
    **{card: partial(boot, "offers", adapter=CARD, card=card) for card in OLDEST},
}


@pytest.fixture(scope="module")
def boots() -> Iterator[Boots]:
    with booting(BOOTS) as found:
        yield found


@pytest.fixture(scope="module")
def bus(boots: Boots) -> Seen:
    return boots["bus"]


def works(told: Any) -> bool:
    guest, can_be_saved = told
    faults = ("lost", "doubled", "reordered", "damaged", "failed")
    arrived = guest["sent"] == guest["received"] > 0
    return arrived and can_be_saved and not any(guest[each] for each in faults)


# --- Cards ----------------------------------------------------------------------------------------


NOTHING = {
    "features": {},
    "flags": "ENOTTY",
    "state": "ENOTTY",
    "STOP": "ENOTTY",
    "data size": "ENOTTY",
    "INFOv2": "EINVAL",
    "log": "ENOTTY",
}


@pytest.mark.parametrize("card", ["migratable=0", "multi_load=0", *OLDEST])
def test_a_card_that_can_not_migrate(boots: Boots, card: str) -> None:
    """Without migration_multi_load there would be STOP_COPY alone, which this driver does not offer."""
    assert boots[card].told["offers"] == NOTHING


def test_a_card_that_does_not_answer(bus: Seen) -> None:
    told = bus.told["unasked"]
    assert told["migratable"] == told["vhca_id"] == NOTHING
    assert told["then"]["features"] == {**MIGRATION, **LOGGING}
    assert told["then"]["log"] == 4096


def test_a_card_that_tracks_no_pages(boots: Boots) -> None:
    assert boots["page_track=0"].told["offers"] == {
        "features": MIGRATION,
        "flags": 7,
        "state": "RUNNING",
        "STOP": None,
        "data size": True,
        "INFOv2": None,
        "log": "ENOTTY",
    }


# --- Drivers --------------------------------------------------------------------------------------


def test_a_vf_with_its_host_driver(bus: Seen) -> None:
    told = bus.told["host driver"]
    assert told["bound"] == {FIRST: "mlx5_core", SECOND: VFIO}
    assert told["opened"] == "ENODEV"
    assert told["taken back"] == {FIRST: VFIO, SECOND: VFIO}
    assert works(told["works"])
    begun = bus.commands("host driver: bind", "vf0")
    assert begun[0] == "ENABLE_HCA"
    assert "INIT_HCA" in begun
    assert begun.count("CREATE_EQ") == 3
    ended = bus.commands("host driver: take back", "vf0")
    assert ended[-1] == "DISABLE_HCA"
    assert "TEARDOWN_HCA" in ended
    assert not [line for line in (*begun, *ended) if " -> " in line]


def test_vfs_that_are_probed_by_themselves(bus: Seen) -> None:
    told = bus.told["host driver"]
    assert told["autoprobe"] == {FIRST: "mlx5_core", SECOND: "mlx5_core"}
    assert "INIT_HCA" in bus.commands("host driver: autoprobe", "vf0")
    assert "INIT_HCA" in bus.commands("host driver: autoprobe", "vf1")
    assert all(map(works, told["works then"]))


def test_sriov_off_and_on(bus: Seen) -> None:
    told = bus.told["sriov"]
    assert (told["too many"], told["beyond"], told["another count"]) == (
        "ERANGE",
        "ERANGE",
        "EBUSY",
    )
    both = {FIRST: VFIO, SECOND: VFIO}
    for number, vfs in enumerate(({}, {FIRST: VFIO}, {}, both)):
        found, guests = told[str(number)]
        assert found == vfs
        assert len(guests) == len(vfs)
        assert all(map(works, guests))
    assert bus.commands("sriov: 0").count("DISABLE_HCA") == 2
    assert bus.commands("sriov: 1")[0] == "ENABLE_HCA"


def test_the_driver_of_the_pf_goes_and_comes(bus: Seen) -> None:
    told = bus.told["pf driver"]
    assert told["unbound"] == ["", {}, False]
    assert told["bound"] == ["mlx5_core", {}]
    assert all(map(works, told["works"]))
    ended = bus.commands("pf driver: unbind")
    assert ended[-3:] == ["TEARDOWN_HCA", "MANAGE_PAGES op_mod=0x2", "DISABLE_HCA"]
    left = bus.standings["pf driver: bind"].objects
    assert not any(left.values())


# --- Taken away -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "left"), [("SR-IOV off", {}), ("unbind", {FIRST: "", SECOND: VFIO})]
)
def test_a_vf_is_taken_away_that_is_open(bus: Seen, way: str, left: dict[str, str]) -> None:
    waits, used, dead, vfs, again = bus.told["held"][way]
    # It is asked for, and until it is closed it is what it was.
    assert waits is True
    assert used == ["PRE_COPY", True, 24]
    assert bus.standings[f"held: {way}"].objects["pd"] == 1
    assert dead == "ENODEV"
    assert vfs == left
    assert works(again)


def test_the_driver_of_the_pf_lets_go(bus: Seen) -> None:
    told = bus.told["detached"]
    assert told["reload fails"] == "EIO"
    # Sessions and logs end with it; nothing that takes a command can be had any more.
    assert told["sessions"] == ["ENODEV", "ENODEV"]
    assert told["states"] == ["STOP_COPY", "RESUMING"]
    refused = "ENOTCONN"
    assert told["arcs"] == {
        "STOP": False,
        "STOP_COPY": refused,
        "RESUMING": refused,
        "RUNNING_P2P": refused,
    }
    assert told["log"] == ["EINVAL", None, refused]
    assert told["data size"] == refused
    assert told["after a reset"] == {"PRE_COPY": refused, "RUNNING_P2P": refused}
    assert told["closed"] is None
    assert not any(bus.standings["detached: reload"].objects.values())


def test_the_driver_of_the_pf_takes_back(bus: Seen) -> None:
    told = bus.told["detached"]
    assert told["reload"] is None
    assert told["attached"] == ["RUNNING", None]
    assert all(map(works, told["works"]))


def test_nothing_is_left_in_the_card(boots: Boots) -> None:
    for name in BOOTS:
        objects = boots[name].standings["closed"].objects
        assert (objects["pd"], objects["mkey"], objects["cq"], objects["qp"]) == (0, 0, 0, 0)
