"""What QEMU itself says, in every way of migrating, is dissected to the last byte."""

import json
from typing import Any

import pytest

from tests.interop.inside_lab import inside
from tests.interop.stream.inside import WAYS

# The first test waits for all the runs.
pytestmark = pytest.mark.timeout(600)

NAMES = [way.name for way in WAYS]
BY_MULTIFD = ("multifd", "two devices by multifd", "zero pages as ever")

Told = dict[str, Any]


@pytest.fixture(scope="module")
def told(request: pytest.FixtureRequest) -> dict[str, Told]:
    """All of it, made here and now."""
    out = inside(request, "tests.interop.stream.inside", mtty=4, timeout=400.0)
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_wrong_and_no_byte_is_left_out(told: dict[str, Told], name: str) -> None:
    assert told[name]["wrong"] == []
    assert told[name]["untold"] == 0
    assert told[name]["opaque"] == []


@pytest.mark.parametrize("name", NAMES)
def test_the_extracted_state_is_the_device_s(told: dict[str, Told], name: str) -> None:
    """Loaded into another mtty, it has the registers that were set at the source."""
    devices = told[name]["devices"]
    assert len(devices) == next(way.devices for way in WAYS if way.name == name)
    for device in devices.values():
        assert device["format"] == "mtty"
        assert len(device["state"]) == 2 * 96
        assert device["found"] == device["wanted"]


@pytest.mark.parametrize("name", NAMES)
def test_bytes_by_phase(told: dict[str, Told], name: str) -> None:
    for device in told[name]["devices"].values():
        phases = device["phases"]
        assert (phases["pre-copy"], phases["stop-copy"]) == (24, 72)
        assert phases["config"] > 4096
        assert ("packets of data" in device["counts"]) == (name in BY_MULTIFD)


@pytest.mark.parametrize("name", [name for name in NAMES if "file" in name or "mapped" in name])
def test_pieces_are_those_that_their_flags_alone_show(told: dict[str, Told], name: str) -> None:
    states = "".join(told[name]["pieces"])
    assert len(states) == sum(len(device["state"]) for device in told[name]["devices"].values())
    for device in told[name]["devices"].values():
        assert device["state"][:48] in states
        assert device["state"][48:] in states


def test_a_connection_for_each_channel(told: dict[str, Told]) -> None:
    for way in WAYS:
        channels = way.parameters.get("multifd-channels", 0) if way.to == "qemu" else 0
        assert told[way.name]["formats"] == ["qemu", *["qemu-multifd"] * channels]


def test_all_of_the_guest_s_memory_is_there(told: dict[str, Told]) -> None:
    """Each page of the first pass at least, full or zero, over whichever way."""
    pages = 32 << 20 >> 12
    for way in WAYS:
        if "mapped-ram" in way.capabilities:
            continue
        counts = told[way.name]["machine"]
        sent = sum(each.get("pages", 0) + each.get("zero pages", 0) for each in counts)
        assert sent >= pages, way.name


def test_pages_that_went_as_what_has_changed_in_them(told: dict[str, Told]) -> None:
    (counts,) = told["XBZRLE"]["machine"]
    assert counts["XBZRLE pages"] > 0
