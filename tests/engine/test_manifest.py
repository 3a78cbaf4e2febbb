"""What a source says of its device, and what a target says to that."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine import manifest, messages
from precopy.pci.memory import GuestMemory, RegionSpec
from precopy.vfio.states import DeviceState
from tests.engine.rig import BLANK, SOURCE, Both, both


def of_source(pair: Both) -> messages.Message:
    """The manifest as the target gets it."""
    payload = messages.encode("manifest", **manifest.describe(pair.source, precopy=True))
    return messages.decode(payload)[1]


def test_a_manifest_that_is_taken() -> None:
    with both() as pair:
        wanted = of_source(pair)
        assert manifest.why_not(pair.target, wanted) is None
        assert wanted["guest"]
        assert pair.source.guest is not None
        assert manifest.regions(wanted) == list(pair.source.guest.memory.specs)


def test_a_device_without_a_guest() -> None:
    with both() as pair:
        wanted = {**of_source(pair), "guest": False, "memory": []}
        assert manifest.why_not(pair.target, wanted) is None


def test_a_guest_where_none_can_be_taken() -> None:
    """A device of the kernel's has no way to take one over."""
    with both() as pair:
        pair.target.adopt_guest = None
        reason = manifest.why_not(pair.target, of_source(pair))
        assert reason == "the source has a guest, which this device can't take over"


def test_a_target_that_is_busy() -> None:
    with both() as pair:
        pair.target.device.set_state(DeviceState.STOP)
        reason = manifest.why_not(pair.target, of_source(pair))
        assert reason == "this device is in STOP, not RUNNING: another migration?"


@pytest.mark.parametrize(("source", "target"), [(9, 8), (20, 4), (8, 7)])
def test_a_smaller_card(source: int, target: int) -> None:
    with both(f"sim:mlx5?qps=4&log_max_qp={source}", f"sim:mlx5?log_max_qp={target}") as pair:
        reason = manifest.why_not(pair.target, of_source(pair))
        assert reason == f"this device lacks log_max_qp>={source}"


def test_a_larger_card() -> None:
    with both("sim:mlx5?qps=4&log_max_qp=4", BLANK) as pair:
        assert manifest.why_not(pair.target, of_source(pair)) is None


PAGE = 4096
numbers = st.integers(0, 16).map(lambda n: n * PAGE) | st.integers(0, (1 << 64) - 1)
specs = st.lists(st.builds(RegionSpec, numbers, numbers), max_size=6)


@pytest.fixture(scope="module")
def idle() -> Iterator[Both]:
    with both() as pair:
        yield pair


@given(wanted=specs)
def test_whatever_is_taken_can_be_mapped(idle: Both, wanted: list[RegionSpec]) -> None:
    """The target's own look at the memory is at least as strict as the memory is."""
    limit = 64 * PAGE
    said = {**of_source(idle), "memory": [list(spec) for spec in wanted]}
    reason = manifest.why_not(idle.target, said, limit)
    if reason is not None:
        assert "\n" not in reason
        return
    assert wanted
    memory = GuestMemory(wanted)
    assert memory.size <= limit
    assert sorted(memory.specs) == sorted(wanted)
    memory.close()


def test_the_details_are_for_people() -> None:
    with both(SOURCE) as pair:
        wanted = {**of_source(pair), "details": {"any": "thing"}, "serial": "x", "firmware": "y"}
        assert manifest.why_not(pair.target, wanted) is None
