"""Two simulated devices, the engine between them, faults on either side."""

import errno
from collections.abc import Callable

import pytest

from precopy.engine.outcome import (
    Cancelled,
    ExitStatus,
    Failed,
    InDoubt,
    MigrationError,
    Refused,
    Stopped,
)
from precopy.engine.policy import GiveUp, Policy
from precopy.engine.progress import Snapshot
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.engine.target import Received
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.engine.rig import BLANK, SOURCE, as_before, both, files, works


@pytest.mark.parametrize("precopy", [True, False])
@pytest.mark.parametrize("chunks", [0, 1])
def test_the_guest_goes_on_at_the_target(precopy: bool, chunks: int) -> None:
    with both(f"{SOURCE}&chunks={chunks}&state=20M") as pair:
        pair.move(Options(precopy=precopy))
        assert isinstance(pair.at_target, Received)
        assert works(pair.target)
        assert pair.source.device.state is DeviceState.STOP
        report = pair.at_source
        assert isinstance(report, Report)
        assert report.device_bytes == pair.at_target.device_bytes > 20 << 20
        assert report.images[-1].kind == "final"
        assert (report.images[0].kind == "initial") == precopy
        assert report.downtime == pytest.approx(sum(report.stages.values()))


@pytest.mark.parametrize(
    ("source", "target", "kind", "text"),
    [
        ("", "sim:mlx5?log_max_qp=4", Refused, "lacks log_max_qp>=8"),
        ("", f"{BLANK}&multi_load=0", Refused, "too old for PRE_COPY"),
        ("&image_version=2", BLANK, Failed, "syndrome 0x5a21"),
        ("&fault=SAVE_VHCA_STATE:1:0x1", BLANK, Failed, "can't be read"),
        ("&fault=SUSPEND_VHCA:1:0x1", BLANK, Failed, "SUSPEND_VHCA"),
        ("&fault=SUSPEND_VHCA:2:0x1", BLANK, Failed, "SUSPEND_VHCA"),
        ("", f"{BLANK}&fault=SUSPEND_VHCA:1:0x1", Failed, "SUSPEND_VHCA"),
        ("", f"{BLANK}&fault=LOAD_VHCA_STATE:1:0x3", Failed, "LOAD_VHCA_STATE"),
        ("", f"{BLANK}&fault=LOAD_VHCA_STATE:2:0x3", Failed, "LOAD_VHCA_STATE"),
    ],
)
def test_before_the_handover_the_source_keeps_the_device(
    source: str, target: str, kind: type[MigrationError], text: str
) -> None:
    with both(SOURCE + source, target) as pair:
        before = files()
        pair.move()
        assert type(pair.at_source) is kind
        assert text in str(pair.at_source)
        assert isinstance(pair.at_target, MigrationError)
        assert works(pair.source)
        assert files() == before
        assert pair.target.guest is None


def test_a_card_that_cannot_be_migrated_is_not_touched() -> None:
    with both(SOURCE + "&migratable=0") as pair:
        pair.move()
        assert type(pair.at_source) is Failed
        assert str(pair.at_source).endswith("; nothing has changed, the device is where it was")
        # The target hears why no manifest comes.
        assert "the source gave up: sim:mlx5" in str(pair.at_target)
        assert as_before(pair.target)


def test_cancelled_before_it_began() -> None:
    with both() as pair:
        options = Options()
        options.cancel.set()
        pair.move(options)
        assert type(pair.at_source) is Cancelled
        assert works(pair.source)
        assert isinstance(pair.at_target, Failed)


def test_a_limit_that_can_not_be_met() -> None:
    policy = Policy(downtime_limit=0.0, max_rounds=0, give_up=GiveUp.CANCEL)
    with both() as pair:
        pair.move(Options(policy=policy))
        assert type(pair.at_source) is Cancelled
        assert "over the limit of 0 ms, after 0 rounds" in str(pair.at_source)
        assert works(pair.source)


def test_a_target_that_can_not_run_gives_the_device_back() -> None:
    """Its device never left STOP, so nothing is in doubt."""
    with both(target=f"{BLANK}&fault=RESUME_VHCA:1:0x1") as pair:
        pair.move()
        assert type(pair.at_source) is Failed
        assert "the target failed: it can't run here" in str(pair.at_source)
        assert str(pair.at_source).endswith("; the device runs at the source")
        assert works(pair.source)
        assert type(pair.at_target) is Failed
        assert str(pair.at_target).endswith("; nothing runs here")
        assert as_before(pair.target)


def test_a_target_that_can_not_run_any_more_is_in_doubt() -> None:
    """Its device has left STOP: what it did there, nobody here knows."""
    with both(target=f"{BLANK}&fault=RESUME_VHCA:2:0x1") as pair:
        pair.move()
        assert type(pair.at_source) is InDoubt
        assert "it stands in RUNNING_P2P" in str(pair.at_source)
        assert pair.source.device.state is DeviceState.STOP_COPY
        assert type(pair.at_target) is Stopped
        assert pair.at_target.status is ExitStatus.STOPPED
        assert "nothing runs at the source" in str(pair.at_target)


def test_a_source_that_can_not_go_back() -> None:
    with both(SOURCE + "&fault=SUSPEND_VHCA:2:0x1,RESUME_VHCA:1:0x1") as pair:
        pair.move()
        assert type(pair.at_source) is Stopped
        line = str(pair.at_source)
        assert "SUSPEND_VHCA" in line
        assert "then the device could not be resumed here" in line
        assert "It stands in RUNNING_P2P" in line
        assert isinstance(pair.at_target, Failed)


def test_nobody_listens_to_the_progress_any_more() -> None:
    """A closed pipe or a full disk is no reason to fail."""
    told: list[str] = []

    def tell(now: Snapshot) -> None:
        told.append(now.phase)
        if len(told) == 3:
            raise BrokenPipeError(32, "Broken pipe")

    with both() as pair:
        pair.move(progress=tell)
        assert isinstance(pair.at_source, Report)
        assert len(told) == 3
        assert works(pair.target)


@pytest.mark.parametrize(
    "target", [BLANK, f"{BLANK}&fault=LOAD_VHCA_STATE:1:0x3", f"{BLANK}&fault=RESUME_VHCA:2:0x1"]
)
def test_every_data_fd_is_closed(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it ends: a kernel's is a file descriptor, and its session would stay."""
    with both(target=target) as pair:
        handed_out: list[MigrationFile] = []
        for device in (pair.source.device, pair.target.device):

            def set_state(
                new: int, go: Callable[[int], MigrationFile | None] = device.set_state
            ) -> MigrationFile | None:
                file = go(new)
                if file is not None:
                    handed_out.append(file)
                return file

            monkeypatch.setattr(device, "set_state", set_state)
        pair.move()
        resuming, saving = sorted(handed_out, key=lambda file: type(file).__name__)
        with pytest.raises(OSError, match="closed") as caught:
            saving.readinto(bytearray(1))
        assert caught.value.errno == errno.EBADF
        with pytest.raises(OSError, match="closed") as caught:
            resuming.write(b"x")
        assert caught.value.errno == errno.EBADF
