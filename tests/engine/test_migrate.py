"""Two simulated devices, the engine between them, faults on either side."""

import socket
import threading
from collections.abc import Iterator

import pytest

from precopy.backends import open_device
from precopy.engine.channel import Channel
from precopy.engine.outcome import Cancelled, Failed, InDoubt, MigrationError, Refused
from precopy.engine.report import Report
from precopy.engine.source import Options, migrate
from precopy.engine.target import receive
from precopy.guest import WorkloadGuest
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState

SOURCE = "sim:mlx5?qps=8&log_max_qp=8"


class Pair:
    def __init__(self, source: str, target: str) -> None:
        self.source = open_device(source)
        self.target = open_device(target, target=True)
        self.at_target: MigrationError | None = None

    def move(self, options: Options | None = None) -> Report:
        """The migration; what the target says of it is in ``at_target``."""
        one, other = socket.socketpair()

        def serve() -> None:
            channel = Channel(other)
            try:
                receive(self.target, channel)
            except MigrationError as error:
                self.at_target = error
            finally:
                channel.close()

        thread = threading.Thread(target=serve)
        thread.start()
        channel = Channel(one)
        try:
            return migrate(self.source, channel, options)
        finally:
            channel.close()
            thread.join()

    def works_at(self, opened: Opened) -> bool:
        assert isinstance(opened.guest, WorkloadGuest)
        opened.guest.step(100)
        return opened.device.state is DeviceState.RUNNING and not opened.guest.settle(5).faults

    def close(self) -> None:
        self.source.close()
        self.target.close()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.close()


def make(pairs: list[Pair], source: str = SOURCE, target: str = "sim:mlx5?log_max_qp=8") -> Pair:
    pairs.append(Pair(source, target))
    guest = pairs[-1].source.guest
    assert guest is not None
    guest.start()
    return pairs[-1]


@pytest.mark.parametrize("precopy", [True, False])
@pytest.mark.parametrize("chunks", [0, 1])
def test_the_guest_goes_on_at_the_target(pairs: list[Pair], precopy: bool, chunks: int) -> None:
    pair = make(pairs, f"{SOURCE}&chunks={chunks}&state=20M")
    report = pair.move(Options(precopy=precopy))
    assert pair.at_target is None
    assert pair.works_at(pair.target)
    assert pair.source.device.state is DeviceState.STOP
    assert report.device_bytes > 20 << 20
    assert report.images[-1].kind == "final"
    assert (report.images[0].kind == "initial") == precopy
    assert report.downtime == pytest.approx(sum(report.stages.values()))


@pytest.mark.parametrize(
    ("source", "target", "kind", "text"),
    [
        ("", "&log_max_qp=4", Refused, "lacks log_max_qp>=8"),
        ("", "&multi_load=0", Refused, "too old for PRE_COPY"),
        ("&image_version=2", "", Failed, "syndrome 0x5a21"),
        ("&fault=SAVE_VHCA_STATE:1:0x1", "", Failed, "can't be read"),
        ("&fault=SUSPEND_VHCA:1:0x1", "", Failed, "SUSPEND_VHCA"),
        ("&fault=SUSPEND_VHCA:2:0x1", "", Failed, "SUSPEND_VHCA"),
        ("", "&fault=LOAD_VHCA_STATE:1:0x3", Failed, "LOAD_VHCA_STATE"),
        ("", "&fault=LOAD_VHCA_STATE:2:0x3", Failed, "LOAD_VHCA_STATE"),
    ],
)
def test_before_the_handover_the_source_keeps_the_device(
    pairs: list[Pair], source: str, target: str, kind: type[MigrationError], text: str
) -> None:
    name = "sim:mlx5?" + (
        target.removeprefix("&") if "log_max" in target else "log_max_qp=8" + target
    )
    pair = make(pairs, SOURCE + source, name)
    with pytest.raises(kind, match=text):
        pair.move()
    assert pair.works_at(pair.source)


def test_a_card_that_cannot_be_migrated_is_not_touched(pairs: list[Pair]) -> None:
    pair = make(pairs, SOURCE + "&migratable=0")
    with pytest.raises(Failed, match="nothing has changed"):
        pair.move()


def test_cancelled_before_the_handover(pairs: list[Pair]) -> None:
    pair = make(pairs)
    options = Options()
    options.cancel.set()
    with pytest.raises(Cancelled):
        pair.move(options)
    assert pair.works_at(pair.source)
    assert isinstance(pair.at_target, Failed)


def test_after_the_handover_nothing_runs_at_the_source(pairs: list[Pair]) -> None:
    pair = make(pairs, target="sim:mlx5?log_max_qp=8&fault=RESUME_VHCA:1:0x1")
    with pytest.raises(InDoubt, match="in doubt"):
        pair.move()
    assert pair.source.device.state is DeviceState.STOP_COPY
