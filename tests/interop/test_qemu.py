"""QEMU and precopy move the same device, in one lab kernel. ``make qemu-test`` installs what it needs."""

import pytest

from tests.interop.conftest import ROUNDS
from tests.interop.figures import PRECOPY, QEMU, QEMU_ACK, Comparison

# The first test waits for all the runs.
pytestmark = pytest.mark.timeout(900)

ENGINES = (QEMU, QEMU_ACK, PRECOPY)


@pytest.mark.parametrize("engine", ENGINES)
def test_registers_arrive(comparison: Comparison, engine: str) -> None:
    """No two runs have the same values, and the target's registers were empty."""
    runs = comparison.of(engine)
    assert len(runs) == ROUNDS
    assert [run.found for run in runs] == [run.wanted for run in runs]


@pytest.mark.parametrize("engine", [QEMU, QEMU_ACK])
def test_the_guest_works_on_and_finds_its_device_as_it_left_it(
    comparison: Comparison, engine: str
) -> None:
    for run in comparison.of(engine):
        before, after = run.ticks
        assert after > before > 0
        assert run.disagreements == 0


def test_precopy_brings_the_scratch_register(comparison: Comparison) -> None:
    assert all(run.ticks[0] == run.ticks[1] for run in comparison.of(PRECOPY))


def test_both_move_the_same_bytes_in_the_same_images(comparison: Comparison) -> None:
    sizes = {tuple(run.images) for run in comparison.runs}
    assert len(sizes) == 1
    initial, final = sizes.pop()
    assert initial > 0
    assert final > 0


@pytest.mark.parametrize("engine", ENGINES)
def test_stages_add_up_to_the_pause(comparison: Comparison, engine: str) -> None:
    for run in comparison.of(engine):
        assert all(seconds >= 0 for seconds in run.stages.values())
        assert sum(run.stages.values()) == pytest.approx(run.downtime)
        assert 0 < run.downtime < run.total


@pytest.mark.parametrize("engine", [QEMU, QEMU_ACK])
def test_the_device_s_part_lies_within_the_pause(comparison: Comparison, engine: str) -> None:
    for run in comparison.of(engine):
        assert all(seconds > 0 for seconds in run.device.values())
        assert sum(run.device.values()) < run.downtime


def test_state_saved_by_qemu_is_loaded_by_precopy(comparison: Comparison) -> None:
    exchange = comparison.exchange
    assert exchange.found_of_qemu == exchange.wanted_of_qemu
    assert exchange.saved_again == exchange.by_qemu


def test_state_saved_by_precopy_is_loaded_by_qemu(comparison: Comparison) -> None:
    """The guest's own check as well: its memory is QEMU's, its device's state is precopy's."""
    exchange = comparison.exchange
    assert exchange.found_of_precopy == exchange.wanted_of_precopy != exchange.wanted_of_qemu
    assert exchange.disagreements == 0
