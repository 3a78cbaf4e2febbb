"""``sim:mlx5?...``: what each parameter does, and one clear line for each that is wrong."""

import errno
import os
from collections.abc import Iterator

import pytest

from precopy.backends import DeviceNameError, open_device
from precopy.backends.sim import PARAMETERS, SimDevice, open_sim, parse
from precopy.guest import layout
from precopy.mlx5_abi.records import RecordHeader, size_record
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import Feature

SMALL = "log_max_qp=8"


@pytest.fixture
def opened() -> Iterator[list[Opened]]:
    """What is put here is closed when the test is over."""
    kept: list[Opened] = []
    yield kept
    for each in kept:
        each.close()


def open_it(opened: list[Opened], query: str, *, target: bool = False) -> Opened:
    opened.append(open_sim(f"sim:mlx5?{SMALL}&{query}".rstrip("&"), target=target))
    return opened[-1]


# --- Names that are wrong -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sim:", "sim:?", "sim:mlx4", "sim:mlx5x", "sim:MLX5?qps=1"])
def test_models_that_there_are_not(name: str) -> None:
    for target in (False, True):
        with pytest.raises(DeviceNameError, match=r"there is no simulated .*write sim:mlx5$"):
            open_device(name, target=target)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("qps=x", "qps: .*'x'"),
        ("qps=", "qps: .*''"),
        ("qps=1.5", r"qps: .*'1\.5'"),
        ("qps=-1", "qps: 0 to 131072"),
        ("qps=131073", "qps: 0 to 131072"),
        ("active=-2", "active: -1 to 131072"),
        ("rate=-1", "rate: 0 to 1048576"),
        ("rate=1048577", "rate: 0 to 1048576"),
        ("rate=fast", "rate: .*'fast'"),
        ("size=31", "size: 32 to 65536"),
        ("size=65537", "size: 32 to 65536"),
        ("size=4K", "size: .*'4K'"),
        ("mix=", "mix: mix must be 1 to 8 letters of siwr: ''"),
        ("mix=six", "mix: mix must be 1 to 8 letters of siwr: 'six'"),
        ("mix=siwrsiwrs", "mix: mix must be 1 to 8 letters"),
        ("guest=yes", "guest: a switch is 0 or 1"),
        ("state=1T", "state: a size is a number with K, M or G behind it"),
        ("state=-1", "state: a size is a number with K, M or G behind it"),
        ("state=", "state: a size is a number with K, M or G behind it"),
        ("chunks=on", "chunks: a switch is 0 or 1"),
        ("migration_state=2", "migration_state: a switch is 0 or 1"),
        ("migratable=", "migratable: a switch is 0 or 1"),
        ("multi_load=true", "multi_load: a switch is 0 or 1"),
        ("page_track=-1", "page_track: a switch is 0 or 1"),
        ("image_version=new", "image_version: .*'new'"),
        ("log_max_qp=3", "log_max_qp: 4 to 20"),
        ("log_max_qp=21", "log_max_qp: 4 to 20"),
        ("fault=SAVE_VHCA_STATE", "fault: fault 'SAVE_VHCA_STATE' is not OPCODE:NTH:STATUS"),
        ("fault=SAVE:1:1", "fault: fault 'SAVE:1:1' is not OPCODE:NTH:STATUS"),
        ("fault=ALLOC_PD:0:1", "fault: fault 'ALLOC_PD:0:1' is not"),
        ("fault=ALLOC_PD:1:0x101", "fault: fault 'ALLOC_PD:1:0x101' is not"),
        ("fw=28", "fw: a firmware version is three numbers, as 28.43.1014"),
        ("seed=", "seed: '' is no number"),
        ("seed=-1", "seed: 0 to 4294967295"),
        ("seed=4294967296", "seed: 0 to 4294967295"),
        ("state=17G", "state: 17G is more than 16G"),
        ("state=99999999999G", "state: 99999999999G is more than 16G"),
        ("image_version=65536", "image_version: 1 to 65535"),
        ("reinit_pages=0", "reinit_pages: 1 to"),
        ("first_session=-1", "first_session: 0 to"),
        ("size=64&size=65", "parameter 'size' is given twice"),
        ("nonsense=1", "unknown parameter 'nonsense'; there are active, ahead, chunks, "),
        ("QPS=1", "unknown parameter 'QPS'"),
        ("qps", "bad query field: 'qps'"),
        ("qps=1&&size=64", "bad query field: ''"),
    ],
)
def test_one_clear_line_for_a_wrong_parameter(query: str, text: str) -> None:
    """Source or target, with a guest or without."""
    name = f"sim:mlx5?{query}"
    for target in (False, True):
        for more in ("", "&guest=0"):
            if more and query.startswith("guest"):
                continue
            with pytest.raises(DeviceNameError, match=text) as caught:
                open_device(name + more, target=target)
            line = str(caught.value)
            assert line.startswith(f"{name}{more}: ")
            assert "\n" not in line


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("qps=4&active=5", "active must be 0 to 4, not 5"),
        (f"{SMALL}&qps=128", "the guest can't use the VF: CREATE_QP failed: LIM"),
        ("fault=CREATE_EQ:1:0x3", "the guest can't use the VF: CREATE_EQ failed: BAD_PARAM"),
    ],
)
def test_parameters_that_do_not_go_together(query: str, text: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(DeviceNameError, match=text):
        open_device(f"sim:mlx5?{query}")
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_parameter_has_a_default_that_it_takes_and_says_what_it_is() -> None:
    for name in ("sim:mlx5", "sim:mlx5?"):
        found = parse(name)
        assert found.keys() == PARAMETERS.keys()
        assert (found["qps"], found["state"], found["guest"]) == (16, 0, True)
    for key, option in PARAMETERS.items():
        option.parse(option.default)
        assert option.help, key


def test_numbers_as_people_write_them() -> None:
    assert parse("sim:mlx5?qps=0x10&seed=0b11")["qps"] == 16
    for text, size in (("1", 4096), ("4096", 4096), ("4097", 8192), ("0", 0), ("8K", 8192)):
        assert parse(f"sim:mlx5?state={text}")["state"] == size
    for text in ("2M", "2MB", "2MiB", "2048K"):
        assert parse(f"sim:mlx5?state={text}")["state"] == 2 << 20


# --- What they do ---------------------------------------------------------------------------------


def test_a_source_has_a_guest_and_a_target_takes_one(opened: list[Opened]) -> None:
    source = open_it(opened, "")
    assert source.guest is not None
    assert source.adopt_guest is None
    target = open_it(opened, "", target=True)
    assert target.guest is None
    assert target.adopt_guest is not None
    guest = target.adopt_guest(source.guest.memory.specs)
    assert guest is target.guest
    assert guest.memory.specs == source.guest.memory.specs
    for query in ("guest=0", "qps=0"):
        assert open_it(opened, query).guest is None


@pytest.mark.parametrize(
    ("query", "config"),
    [
        ("", layout.WorkloadConfig(pairs=16, active=16, rate=2000, size=256, mix="siwr", seed=1)),
        (
            "qps=100&rate=7&size=64&mix=rw&seed=9",
            layout.WorkloadConfig(pairs=100, active=64, rate=7, size=64, mix="rw", seed=9),
        ),
        ("qps=100&active=100", layout.WorkloadConfig(pairs=100, active=100)),
        ("qps=5&active=0", layout.WorkloadConfig(pairs=5, active=0)),
    ],
)
def test_the_guest(opened: list[Opened], query: str, config: layout.WorkloadConfig) -> None:
    guest = open_it(opened, query).guest
    assert guest is not None
    view = guest.memory.regions[0].view
    assert layout.Control(*layout.CONTROL.unpack_from(view, 0)).config() == config


def test_who_it_is(opened: list[Opened]) -> None:
    device = open_it(opened, "fw=1.2.3&serial=AB12&chunks=0&migration_state=0").device
    who = device.identity
    assert (who.vendor_id, who.device_id, who.driver) == (0x15B3, 0x101E, "mlx5")
    assert (who.firmware, who.serial) == ("1.2.3", "AB12")
    assert (who.details["chunk mode"], who.details["REINIT"]) == ("no", "no")
    assert device.name == f"sim:mlx5?{SMALL}&fw=1.2.3&serial=AB12&chunks=0&migration_state=0"
    assert device.migration_flags == MigrationFlags(7)
    details = open_it(opened, "").device.identity.details
    assert (details["chunk mode"], details["REINIT"]) == ("yes", "yes")


def test_room_for_queue_pairs(opened: list[Opened]) -> None:
    small, large = (open_sim(f"sim:mlx5?guest=0&log_max_qp={log}") for log in (8, 10))
    opened += [small, large]
    needs = [each.device.identity.needs for each in (small, large)]
    offers = [each.device.identity.offers or frozenset() for each in (small, large)]
    assert needs[0] <= offers[1]
    assert not needs[1] <= offers[0]


@pytest.mark.parametrize(
    ("query", "text"), [("migratable=0", "is not migratable"), ("multi_load=0", "too old")]
)
def test_a_vf_that_can_not_be_migrated(opened: list[Opened], query: str, text: str) -> None:
    device = open_it(opened, f"guest=0&{query}").device
    with pytest.raises(OSError, match=text) as caught:
        _ = device.migration_flags
    assert caught.value.errno == errno.ENOTTY


def test_whether_it_logs_dma(opened: list[Opened]) -> None:
    assert open_it(opened, "guest=0").device.probe(Feature.DMA_LOGGING_START)
    assert not open_it(opened, "guest=0&page_track=0").device.probe(Feature.DMA_LOGGING_START)


def stream_of(opened: list[Opened], query: str) -> bytes:
    file = open_it(opened, f"guest=0&{query}").device.set_state(DeviceState.STOP_COPY)
    assert file is not None
    stream, buffer = b"", bytearray(1 << 20)
    while count := file.readinto(buffer):
        stream += buffer[:count]
    return stream


def test_bulk_state_is_there_and_follows_from_the_seed(opened: list[Opened]) -> None:
    assert len(stream_of(opened, "")) < 1 << 16
    device = open_it(opened, "guest=0&state=3M").device
    assert 3 << 20 <= device.data_size() < 4 << 20
    first, again, other = (
        stream_of(opened, f"state=3M&seed={seed}&first_session=1") for seed in (1, 1, 2)
    )
    assert len(first) > 3 << 20
    assert first == again
    assert first != other


def test_a_target_is_blank_and_has_room_for_any_state(opened: list[Opened]) -> None:
    stream = stream_of(opened, "state=3M")
    target = open_it(opened, "", target=True)
    assert target.device.data_size() < 1 << 16
    file = target.device.set_state(DeviceState.RESUMING)
    assert file is not None
    view = memoryview(stream)
    while view:
        view = view[file.write(view) :]
    target.device.set_state(DeviceState.STOP)
    assert target.device.data_size() > 3 << 20


def test_images_newer_than_the_card(opened: list[Opened]) -> None:
    stream = stream_of(opened, "image_version=2")
    for version, taken in ((1, False), (2, True), (3, True)):
        target = open_it(opened, f"image_version={version}", target=True)
        file = target.device.set_state(DeviceState.RESUMING)
        assert file is not None
        if taken:
            assert file.write(stream) == len(stream)
        else:
            with pytest.raises(OSError, match="EINVAL"):
                file.write(stream)


def test_a_fault_comes_when_it_should(opened: list[Opened]) -> None:
    device = open_it(opened, "guest=0&fault=SUSPEND_VHCA:2:0x6").device
    device.set_state(DeviceState.RUNNING_P2P)
    with pytest.raises(OSError, match="SUSPEND_VHCA: RES_BUSY") as caught:
        device.set_state(DeviceState.STOP)
    assert caught.value.errno == errno.EBUSY
    device.set_state(DeviceState.STOP)


def test_a_card_that_does_not_even_answer_what_it_is() -> None:
    with pytest.raises(OSError, match="firmware refused QUERY_HCA_CAP: BAD_PARAM") as caught:
        open_device("sim:mlx5?fault=QUERY_HCA_CAP:1:0x3")
    assert caught.value.errno == errno.EINVAL


def test_its_stream_is_counted_in_records(opened: list[Opened]) -> None:
    source = open_it(opened, "guest=0")
    assert source.count_records is not None
    count = source.count_records()
    assert count(size_record(1)) == 1
    assert count(RecordHeader(3, 0, 0).pack() + b"abc" + size_record(2)) == 3
    assert source.count_records()(b"") == 0


def test_closing_closes_card_and_guest() -> None:
    before = len(os.listdir("/proc/self/fd"))
    opened = open_sim(f"sim:mlx5?{SMALL}")
    device = opened.device
    assert isinstance(device, SimDevice)
    opened.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(OSError, match="is closed"):
        _ = device.state
    with pytest.raises(OSError, match="the adapter is gone"):
        device.adapter.pf.execute(b"")
