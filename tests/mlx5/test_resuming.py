"""The loader: segmentation, bad records, cuts."""

import errno
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precopy.mlx5_abi.records import RecordHeader, size_record
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.mlx5.conftest import MakeRig

IMAGES = (b"initial" * 9, b"middle", b"final" * 5)


def record(data: bytes, flags: int = 0, tag: int = 0) -> bytes:
    return RecordHeader(len(data), flags, tag).pack() + data


def feed(file: MigrationFile, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


STREAM = size_record(100) + b"".join(map(record, IMAGES))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_any_segmentation_loads_the_same(make_rig: MakeRig, cuts: list[int]) -> None:
    rig = make_rig()
    file = rig.device.set_state(DeviceState.RESUMING)
    assert file is not None
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        feed(file, STREAM[start:end])
    rig.device.set_state(DeviceState.STOP)
    assert rig.firmware.loaded == list(IMAGES)


def test_a_stream_cut_at_every_offset_is_never_a_device(make_rig: MakeRig) -> None:
    for end in range(len(STREAM)):
        rig = make_rig()
        file = rig.device.set_state(DeviceState.RESUMING)
        assert file is not None
        feed(file, STREAM[:end])
        loaded = len(rig.firmware.loaded)
        whole = len(size_record(0)) + sum(16 + len(i) for i in IMAGES[:loaded])
        if loaded and end == whole:
            # Between two images only the firmware knows whether the last has come.
            continue
        with pytest.raises(OSError, match="not complete") as caught:
            rig.device.set_state(DeviceState.STOP)
        assert caught.value.errno == errno.EINVAL, end
        assert rig.device.state is DeviceState.RESUMING


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (record(b"x", tag=9), errno.EOPNOTSUPP),
        (RecordHeader(1 << 32, 0, 0).pack(), errno.ENOMEM),
        (RecordHeader(1 << 62, 0, 0).pack(), errno.ENOMEM),
    ],
)
def test_refused_and_sticky(make_rig: MakeRig, data: bytes, code: int) -> None:
    rig = make_rig()
    file = rig.device.set_state(DeviceState.RESUMING)
    assert file is not None
    with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
        feed(file, data)
    assert caught.value.errno == code
    with pytest.raises(OSError, match="ENODEV") as again:
        file.write(b"x")
    assert again.value.errno == errno.ENODEV


def test_an_optional_record_that_nobody_knows_is_passed_over(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(DeviceState.RESUMING)
    assert file is not None
    feed(file, record(b"?" * 50, flags=1, tag=77) + STREAM)
    rig.device.set_state(DeviceState.STOP)
    assert rig.firmware.loaded == list(IMAGES)
