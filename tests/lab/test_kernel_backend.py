"""The kernel back end in a real kernel. A boot asks for everything; each test judges a part.

Where mtty itself falls short of the uAPI, what it does stands here, so that a change is noticed.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from precopy.lab import MTTY_UUIDS, Job, run
from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags, path
from tests.lab.inside import MOVES

TOP = Path(__file__).parents[2]
ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
STATES = [state for state in DeviceState if state is not DeviceState.ERROR]
VFS = ("0000:00:01.0", "0000:00:02.0")
IN = 1


def inside(command: str, names: Sequence[str], mtty: int = 0, adapter: str = "") -> dict[str, Any]:
    program = [sys.executable, "-m", "tests.lab.inside", command, *names]
    result = run(Job(program, mtty=mtty, adapter=adapter, cwd=TOP))
    assert (result.status, result.err, result.trouble) == (0, "", "")
    told: dict[str, Any] = json.loads(result.out)
    return told


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return inside("facts", MTTY_UUIDS[:2], mtty=2)


@pytest.fixture(scope="module")
def moves() -> dict[str, Any]:
    return inside("moves", MTTY_UUIDS, mtty=len(MTTY_UUIDS))


@pytest.fixture(scope="module")
def noiommu() -> dict[str, Any]:
    return inside("noiommu", VFS, adapter="mlx5?vfs=2")


def test_who_it_is(facts: dict[str, Any]) -> None:
    get, change = 1 << 16, 1 << 17
    assert facts["about"] == {
        "ids": [0x4348, 0x3253],
        "stream": "mtty",
        "needs": ["mdev type mtty-2"],
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
        "data size": 24 + 2 * 36,
    }


def test_every_arc(facts: dict[str, Any]) -> None:
    """The kernel goes where ``states.path`` goes, and hands out a file where that says so."""
    arcs = facts["arcs"]
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


def test_a_saving_session(facts: dict[str, Any]) -> None:
    told = facts["stream"]
    header = told.pop("header")
    assert bytes.fromhex(told.pop("10 bytes") + told.pop("the rest")) == bytes.fromhex(header)
    assert len(bytes.fromhex(told.pop("content"))) == 2 * 36
    assert told == {
        "info at first": [24, 0, 0],
        "poll at first": IN,
        "write to a saving file": "EBADF",
        "info then": [14, 0, 0],
        "info at the temporary end": [0, 0, 0],
        # The uAPI has ENOMSG here; mtty takes it for the end.
        "read at the temporary end": "",
        "read after a reset": "ENODEV",
        "info with INFOv2, after a reset": [24, 0, 0],
        "info in PRE_COPY_P2P": [24, 0, 0],
        "info in STOP_COPY": "EINVAL",
        "reads at the permanent end": ["", "", ""],
        "poll at the permanent end": IN,
        "read when it is over": "ENODEV",
        "info when it is over": "EINVAL",
        # mtty has no poll, so POLLRDHUP does not come.
        "poll when it is over": IN,
        "info of an old file in a new session": "ENODEV",
    }


def test_resuming(facts: dict[str, Any]) -> None:
    assert facts["resuming"] == {
        "nothing": [0, "EINVAL", "RESUMING", "RUNNING"],
        "all but one byte": [95, "EINVAL", "RESUMING", "RUNNING"],
        # Refused when it is written; mtty forgets that when it is left.
        "another magic": ["EFAULT", None, "STOP", "RUNNING"],
        "too much": ["ENOMEM", "EINVAL", "RESUMING", "RUNNING"],
        "whole": [96, None, "STOP", "RUNNING"],
        "byte by byte": [96, None, "STOP", "RUNNING"],
        "read": "EBADF",
        "info": "ENOTTY",
    }


def test_reset_from_every_state(facts: dict[str, Any]) -> None:
    with_file = {"STOP_COPY", "RESUMING", "PRE_COPY", "PRE_COPY_P2P"}
    assert facts["resets"] == {
        state.name: ["RUNNING", "ENODEV" if state.name in with_file else None] for state in STATES
    }


def test_dma_logging(facts: dict[str, Any]) -> None:
    """mtty's own part does nothing and says yes, even twice or without a log; the core checks."""
    assert facts["logging"] == {
        "start": 4096,
        "start again": 4096,
        "start with 256 ranges": 4096,
        "start with 257 ranges": "E2BIG",
        "start with none": "EINVAL",
        "start askew": "EINVAL",
        "start with an overlap": "EINVAL",
        "start beyond the end": "EOVERFLOW",
        "report": "kept",
        "report of nothing": "kept",
        "report of small pages": "EINVAL",
        "report of odd pages": "EINVAL",
        "report beyond the end": "EOVERFLOW",
        "stop": None,
        "stop again": None,
        "report without a log": "kept",
    }


def test_regions(facts: dict[str, Any]) -> None:
    assert facts["regions"] == {
        "ids": "48435332",
        "beyond BAR 0": "EINVAL",
        "no BAR 2": "EINVAL",
        "no region 9": "EINVAL",
    }


CDEV, GROUP = "/dev/vfio/devices/vfio1", "/dev/vfio/1"
BY_CDEV = [["/dev/iommu", CDEV], CDEV, "RUNNING"]
#: This kernel's container has no IOMMU type for an mdev, so an iommufd takes its part.
BY_GROUP = [["/dev/iommu", GROUP, "anon_inode:[vfio-device]"], GROUP, "RUNNING"]


@pytest.mark.parametrize(
    ("way", "expected"),
    [
        ("free", BY_CDEV),
        ("free?attach=cdev", BY_CDEV),
        ("free?attach=group", BY_GROUP),
        ("by its node", BY_CDEV),
        ("no container", BY_GROUP),
        ("no cdev", BY_GROUP),
        ("after all", []),
    ],
)
def test_ways_in(facts: dict[str, Any], way: str, expected: list[Any]) -> None:
    assert facts["ways"][way] == expected


@pytest.mark.parametrize(
    ("way", "code", "text"),
    [
        ("taken by cdev", "EINVAL", "VFIO_DEVICE_BIND_IOMMUFD: it is in use by another process"),
        ("taken by cdev?attach=group", "EBUSY", f"{GROUP}: it is in use"),
        ("taken by group", "EBUSY", "VFIO_DEVICE_BIND_IOMMUFD: it is in use by way of its group"),
        ("taken by group?attach=group", "EBUSY", f"{GROUP}: it is in use"),
        ("no cdev, asked for", "ENOENT", "/dev/vfio/devices has no node for it"),
        ("nothing", "ENOENT", "neither /dev/vfio/vfio nor /dev/iommu is there"),
    ],
)
def test_what_is_in_the_way(facts: dict[str, Any], way: str, code: str, text: str) -> None:
    found, said = facts["ways"][way]
    assert found == code
    assert said.startswith(text)
    assert "\n" not in said


def test_devices_that_can_not_be_opened_say_why(facts: dict[str, Any]) -> None:
    why = "neither /dev/vfio/vfio nor /dev/iommu is there: is VFIO in this kernel?"
    names = list(MTTY_UUIDS[:2])
    rows = [row for row in facts["devices"] if row["name"] in names]
    assert [row["name"] for row in rows] == names
    assert all(row["error"].startswith(why) for row in rows)
    lines = [line for line in facts["table"] if any(name in line for name in names)]
    assert len(lines) == 2
    assert all(why in line for line in lines)


@pytest.mark.parametrize("name", MOVES)
def test_content_moves(moves: dict[str, Any], name: str) -> None:
    report, content, state = moves[name]
    number = list(MOVES).index(name)
    assert content == f"{number}~moves"
    assert state == "RUNNING"
    assert report["precopy"] is (not MOVES[name][0])
    kinds = [image["kind"] for image in report["images"]]
    assert kinds == (["initial", "final"] if report["precopy"] else ["final"])
    assert report["device_bytes"] == sum(image["bytes"] for image in report["images"]) == 96
    assert report["downtime"] == pytest.approx(sum(report["stages"].values()))


@pytest.mark.parametrize(
    ("way", "files", "node"),
    [
        ("free", ["/dev/iommu", "/dev/vfio/devices/noiommu-vfio0"], None),
        ("by group", ["/dev/vfio/noiommu-0", "/dev/vfio/vfio"], "/dev/vfio/noiommu-0"),
        ("no container", ["/dev/iommu", "/dev/vfio/noiommu-0"], "/dev/vfio/noiommu-0"),
    ],
)
def test_ways_to_a_vf_without_an_iommu(
    noiommu: dict[str, Any], way: str, files: list[str], node: str | None
) -> None:
    device = ["anon_inode:[vfio-device]"] if node else []
    assert noiommu[way] == [sorted(files + device), node or files[1], "RUNNING"]


def test_a_vf_without_an_iommu_moves_by_its_group(noiommu: dict[str, Any]) -> None:
    """The kernel's own mlx5 driver; the container is VFIO's, then an iommufd."""
    kinds = {
        name: [image["kind"] for image in noiommu[name]["images"]]
        for name in ("moved", "moved without a container")
    }
    assert kinds["moved"][0] == "initial"
    assert kinds["moved"][-1] == "final"
    assert kinds["moved without a container"] == ["final"]
