"""Checks of the conformance suite in real kernels, one of which goes down."""

import pytest

from precopy.conformance.matrix.holding import hold
from precopy.conformance.matrix.targets import Kernel, targets
from precopy.conformance.outcome import Verdict
from precopy.conformance.runner import load

CHECKS = load()
TARGETS = {each.name: each for each in targets()}


@pytest.mark.parametrize("version", ["newest", pytest.param("6.12", marks=pytest.mark.older)])
def test_mtty(version: str) -> None:
    names = ("running-at-first", "poll-when-the-session-is-over", "function-level-reset")
    held = hold(TARGETS["mtty"], Kernel(version), [CHECKS[name] for name in names])
    assert [each.told for each in held.results] == ["pass", "known", "not applicable"]
    assert "STOP_COPY P2P PRE_COPY" in held.about
    assert version == "newest" or held.release.startswith("6.12.")


def test_a_kernel_goes_down_and_the_others_go_on() -> None:
    names = ("a-wrong-magic", "running-at-first")
    held = hold(TARGETS["mlx5 bulk"], Kernel(), [CHECKS[name] for name in names])
    down, after = held.results
    assert (down.verdict, after.verdict) == (Verdict.KERNEL_DOWN, Verdict.PASS)
    assert down.came.startswith("Kernel panic")
    assert down.known is not None


def test_a_driver_that_offers_no_migration() -> None:
    held = hold(TARGETS["mlx5 no-migratable"], Kernel(), [CHECKS["running-at-first"]])
    assert held.refused
    assert [each.verdict for each in held.results] == [Verdict.NOT_APPLICABLE]
