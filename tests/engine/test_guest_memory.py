"""A guest whose memory is written while it moves: every page is right where it arrives."""

from typing import cast

import pytest

from precopy.engine.outcome import Cancelled, Failed, InDoubt
from precopy.engine.policy import GiveUp, Policy
from precopy.engine.progress import Snapshot
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.engine.target import Received
from precopy.guest import MemoryCheck, WorkloadGuest
from precopy.vfio.device import VfioDevice
from precopy.vfio.states import MigrationFlags
from tests.engine.relay import SOURCE as SOURCE_SIDE
from tests.engine.relay import Point, Then
from tests.engine.rig import SOURCE, both, works

PAGES = 4096


@pytest.mark.parametrize("precopy", [True, False])
def test_memory_that_is_written_arrives(precopy: bool) -> None:
    with both(f"{SOURCE}&memory=16M&writes=20000&fill=75&zeros=10") as pair:
        pair.move(Options(precopy=precopy))
        assert isinstance(pair.at_target, Received), pair.at_target
        assert isinstance(pair.at_source, Report)
        there, here = pair.target.guest, pair.source.guest
        assert isinstance(there, WorkloadGuest)
        assert isinstance(here, WorkloadGuest)
        # A quarter was never touched, and does not travel; pages of zeroes cost the target nothing.
        moved = pair.at_source.memory
        assert moved is not None
        assert moved.sent_bytes + moved.zero_bytes >= 12 << 20
        used = sum(extent.length for extent in there.memory.extents())
        assert 10 << 20 <= used < 14 << 20
        assert here.check_memory() == MemoryCheck(PAGES, 0, None)
        assert there.check_memory() == MemoryCheck(PAGES, 0, None)
        there.write(1000)
        assert works(pair.target)
        counts = there.counts()
        assert (counts.memory_wrong, counts.memory_pages) == (0, PAGES)


@pytest.mark.parametrize("kind", ["final", "run"])
def test_a_guest_that_was_slowed_down_has_all_its_time_again(kind: str) -> None:
    """Where it stays, and where it may be started again by hand."""
    shares = []
    policy = Policy(downtime_limit=0.0, max_rounds=0, give_up=GiveUp.SLOW)
    with both(f"{SOURCE}&memory=1M&writes=1000") as pair:
        guest = pair.source.guest
        assert isinstance(guest, WorkloadGuest)
        pair.move(
            Options(policy=policy),
            at=Point(SOURCE_SIDE, kind),
            then=Then.CUT,
            progress=lambda now: shares.append(guest.share),
        )
        assert isinstance(pair.at_source, InDoubt if kind == "run" else Failed)
        assert min(shares) == 0.01
        assert guest.share == 1.0


class _NoPrecopy:
    """A device that can be moved while it stands still only; its guest's memory goes before."""

    def __init__(self, real: VfioDevice) -> None:
        self._real = real

    @property
    def migration_flags(self) -> MigrationFlags:
        return self._real.migration_flags & ~MigrationFlags.PRE_COPY

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_a_guest_that_was_slowed_down_though_its_device_was_not_touched() -> None:
    options = Options(policy=Policy(downtime_limit=0.0, max_rounds=0, give_up=GiveUp.SLOW))
    with both(f"{SOURCE}&memory=1M&writes=1000") as pair:
        guest, device = pair.source.guest, pair.source.device
        assert isinstance(guest, WorkloadGuest)

        def progress(now: Snapshot) -> None:
            if guest.share < 1:
                options.cancel.set()

        pair.source.device = cast(VfioDevice, _NoPrecopy(device))
        pair.move(options, progress=progress)
        pair.source.device = device
        assert isinstance(pair.at_source, Cancelled)
        assert "nothing has changed" in str(pair.at_source)
        assert guest.share == 1.0
        assert works(pair.source)
