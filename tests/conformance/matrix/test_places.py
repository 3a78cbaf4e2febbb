"""The program beside the device, in a process of its own."""

import json

import pytest

from precopy.conformance.matrix import places
from precopy.conformance.matrix.holding import hold
from precopy.conformance.matrix.targets import Target, targets
from precopy.conformance.outcome import Verdict
from precopy.conformance.runner import load, select

CHECKS = load()
OURS = {each.name: each for each in targets() if each.name in ("sim", "vfio-user")}


@pytest.mark.parametrize("name", OURS)
def test_our_own_devices(name: str) -> None:
    found = select(["running-at-first", "arcs-from-running", "a-driver-that-is-unbound"], CHECKS)
    held = hold(OURS[name], None, found)
    assert "STOP_COPY P2P PRE_COPY" in held.about
    assert {each.check.name: each.verdict for each in held.results} == {
        "running-at-first": Verdict.PASS,
        "arcs-from-running": Verdict.PASS,
        "a-driver-that-is-unbound": Verdict.NOT_APPLICABLE,
    }


def test_a_device_that_is_not_there() -> None:
    nowhere = Target("nowhere", ("vfio-user:/nowhere/at/all", "vfio-user:/nowhere/else"))
    held = hold(nowhere, None, [CHECKS["running-at-first"]])
    assert held.refused
    assert [each.verdict for each in held.results] == [Verdict.NOT_RUN]


def test_every_step_is_told() -> None:
    lines: list[str] = []
    ended = places.somewhere(OURS["sim"], None, ["running-at-first"], lines.append)
    assert (ended.status, ended.err, ended.trouble) == (0, "", "")
    told = [json.loads(line) for line in lines]
    steps = [next(iter(each)) for each in told if "alive" not in each]
    assert steps == ["about", "begun", "result"]
    assert "alive" in told[0]


def test_silence_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "SILENCE", 0.2)
    # Its first sign of life takes longer than that.
    ended = places.somewhere(OURS["sim"], None, ["running-at-first"], lambda line: None)
    assert (ended.status, ended.trouble) == (124, "silent for 0.2 s")


def test_a_program_that_fails() -> None:
    ended = places.somewhere(OURS["sim"], None, ["no-such-check"], lambda line: None)
    assert ended.status == 1
    assert "KeyError" in ended.err
