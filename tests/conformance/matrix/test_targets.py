"""The tables: what stands in them can be had."""

import itertools

import pytest

from precopy.conformance import known
from precopy.conformance.matrix.targets import OPTIONAL, SOCKETS, Kernel, Target, cells, targets
from precopy.conformance.runner import load
from precopy.lab import card
from precopy.lab.machine import Job

ALL = targets()


def test_every_mix_of_what_is_optional_is_held() -> None:
    options = [each.option for each in OPTIONAL]
    found = set()
    for target in ALL:
        if target.adapter and target.migrates and "bulk" not in target.name:
            told = card.parse(target.adapter)
            found.add(tuple(bool(told[each]) for each in options))
    assert found == set(itertools.product((True, False), repeat=len(options)))


@pytest.mark.parametrize("target", ALL, ids=lambda each: each.name)
def test_a_target_can_be_had(target: Target) -> None:
    one, other = target.devices
    assert target.in_kernel == bool(target.mtty or target.adapter)
    if target.adapter:
        assert card.parse(target.adapter)["vfs"] == 2
    if target.known:
        assert known.load(known.DRIVERS / f"{target.known}.toml", load())
    assert bool(target.served) == (target.devices == SOCKETS)
    assert one != other or one.startswith("sim:")
    assert Job(["true"], mtty=target.mtty).mtty == target.mtty


def test_drivers_are_held_on_each_kernel_and_our_devices_once() -> None:
    chosen = [each for each in ALL if each.name in ("mtty", "sim")]
    found = [(target.name, kernel) for target, kernel in cells(chosen, ("newest", "6.12"), "debug")]
    assert found == [
        ("mtty", Kernel("newest", "debug")),
        ("mtty", Kernel("6.12", "debug")),
        ("sim", None),
    ]
    assert [Kernel().name, Kernel("6.12", "debug").name] == ["newest", "6.12 debug"]
