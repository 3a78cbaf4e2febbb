"""The checks, tested: a right device passes all of them, and each way to be wrong is found."""

import pytest

from precopy.conformance.check import Check, Context, Failed, NotApplicable
from precopy.conformance.checks import common, discovery, resets, threads
from precopy.conformance.runner import load
from precopy.vfio.states import MigrationFlags
from tests.conformance import conftest
from tests.conformance.deviations import ALL, BARE, DEVIATIONS, OF_A_BARE_DEVICE
from tests.conformance.faulty import FaultyDevice
from tests.conformance.faulty_faces import FaultyFace, FaultyRaw, FaultyWorkload

CHECKS = load()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device in this process that does not answer at once never does."""
    monkeypatch.setattr(common, "PATIENCE", 0.2)
    monkeypatch.setattr(discovery, "WATCHED", 0.02)
    monkeypatch.setattr(resets, "FLR_SECONDS", 0.1)
    monkeypatch.setattr(threads, "PATIENCE", 0.4)


def _context(device: FaultyDevice) -> Context:
    context = Context(
        device, raw=FaultyRaw(device), workload=FaultyWorkload(device), face=FaultyFace(device)
    )

    def reopen() -> FaultyDevice:
        context.device.close()
        kept = device.log if device.has("closing the device keeps the log") else None
        return FaultyDevice(device.deviation, device.migration_flags, kept)

    context.reopen = reopen
    return context


def verdict(check: Check, deviation: str = "", flags: MigrationFlags = ALL) -> str:
    """ "passed", "not applicable", or what failed."""
    context = _context(FaultyDevice(deviation, flags))
    try:
        check.run(context)
    except NotApplicable:
        return "not applicable"
    except (Failed, OSError) as failed:
        return f"failed: {failed}"
    finally:
        context.close()
    return "passed"


#: What no device in one process, without descriptors and addresses, can be asked.
BEYOND = {
    "a-buffer-that-is-partly-there",
    "a-driver-that-is-unbound",
    "a-structure-that-is-too-short",
    "descriptor-flags",
    "info-ignores-what-was-there",
    "info-to-a-bad-pointer",
    "no-seeking",
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_right_device_passes(name: str) -> None:
    expected = {"not applicable"} if name in BEYOND else {"passed"}
    if name == "states-not-claimed":
        expected = {"not applicable"}
    assert verdict(CHECKS[name]) in expected


@pytest.mark.parametrize("name", CHECKS)
def test_a_right_device_without_precopy_passes(name: str) -> None:
    assert verdict(CHECKS[name], flags=BARE) in {"passed", "not applicable"}


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_a_deviation_is_found(deviation: str) -> None:
    """By a check of the requirement that it breaks."""
    flags = BARE if deviation in OF_A_BARE_DEVICE else ALL
    asked = [each for each in CHECKS.values() if DEVIATIONS[deviation] in each.requirements]
    conftest.tried.add(deviation)
    verdicts = {}
    for each in asked:
        verdicts[each.name] = verdict(each, deviation, flags)
        if verdicts[each.name].startswith("failed"):
            conftest.found.add(deviation)
            return
    pytest.fail(f"nobody found it: {verdicts}")


def test_every_requirement_has_a_check() -> None:
    asked = {number for each in CHECKS.values() for number in each.requirements}
    assert asked == set(range(1, 95))


def test_every_check_says_what_has_to_hold() -> None:
    for each in CHECKS.values():
        assert each.text.endswith("."), each.name
