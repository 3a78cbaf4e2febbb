"""The loader: segmentation, bad records, cuts."""

import errno
import itertools
import select

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precopy.mlx5_abi.commands import Opcode, VhcaMigrationState
from precopy.mlx5_abi.records import MAX_IMAGE_SIZE, RecordHeader, size_record
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.mlx5.conftest import MakeRig, Rig

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
        (RecordHeader((1 << 64) - 1, 1, 77).pack(), errno.ENOMEM),
        # An image of nothing, also where a buffer is there already.
        (record(b""), errno.EINVAL),
        (STREAM + record(b""), errno.EINVAL),
        # A size record too short to hold a size.
        (record(b"1234567", flags=1, tag=1), errno.EINVAL),
        (record(b"", flags=1, tag=1), errno.EINVAL),
    ],
)
def test_refused_and_sticky(make_rig: MakeRig, data: bytes, code: int) -> None:
    rig = make_rig()
    file = rig.device.set_state(DeviceState.RESUMING)
    assert file is not None
    with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
        feed(file, data)
    assert caught.value.errno == code
    for more in (b"x", b"", STREAM):
        with pytest.raises(OSError, match="ENODEV") as again:
            file.write(more)
        assert again.value.errno == errno.ENODEV
    # What was loaded before is no device, and only a reset leads out.
    for state in (DeviceState.STOP, DeviceState.RUNNING):
        with pytest.raises(OSError, match="the session has failed"):
            rig.device.set_state(state)
        assert rig.device.state is DeviceState.RESUMING
    rig.device.reset()
    assert rig.device.state is DeviceState.RUNNING
    rig.firmware.loaded.clear()
    again_file = rig.device.set_state(DeviceState.RESUMING)
    assert again_file is not None
    feed(again_file, STREAM)
    rig.device.set_state(DeviceState.STOP)
    assert rig.firmware.loaded == list(IMAGES)


def test_an_optional_record_that_nobody_knows_is_passed_over(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(DeviceState.RESUMING)
    assert file is not None
    feed(file, record(b"?" * 50, flags=1, tag=77) + STREAM)
    rig.device.set_state(DeviceState.STOP)
    assert rig.firmware.loaded == list(IMAGES)


def resuming(rig: Rig) -> MigrationFile:
    file = rig.device.set_state(DeviceState.RESUMING)
    assert file is not None
    rig.firmware.take_log()
    return file


def test_the_buffer_is_made_once_for_the_size_announced(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    feed(file, size_record(5 * 4096) + record(b"a" * 10) + record(b"b" * 5 * 4096) + record(b"c"))
    assert rig.firmware.take_log() == ["CREATE_MKEY 5", "LOAD 10", "LOAD 20480", "LOAD 1"]


#: The last image of a session is larger than any before it.
GROWS = size_record(5 * 4096) + record(b"a" * 10) + record(b"b" * 9000) + record(b"c" * 5 * 4096)


def test_room_for_a_final_image_that_is_larger_is_there_before_it_comes(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    final = len(GROWS) - len(record(b"c" * 5 * 4096))
    feed(file, GROWS[:final])
    assert rig.firmware.take_log() == ["CREATE_MKEY 5", "LOAD 10", "LOAD 9000"]
    # While the device stands still: nothing but the load.
    feed(file, GROWS[final:])
    assert rig.firmware.take_log() == ["LOAD 20480"]


def test_without_room_made_ahead_it_is_made_as_images_come(make_rig: MakeRig) -> None:
    rig = make_rig(ahead=False)
    file = resuming(rig)
    final = len(GROWS) - len(record(b"c" * 5 * 4096))
    feed(file, GROWS[:final])
    assert rig.firmware.take_log() == [
        *("CREATE_MKEY 1", "LOAD 10", "DESTROY_MKEY 1"),
        *("CREATE_MKEY 3", "LOAD 9000"),
    ]
    feed(file, GROWS[final:])
    assert rig.firmware.take_log() == ["DESTROY_MKEY 3", "CREATE_MKEY 5", "LOAD 20480"]
    rig.device.set_state(DeviceState.STOP)
    assert [len(image) for image in rig.firmware.loaded] == [10, 9000, 20480]


def test_a_size_record_is_checked_also_where_it_is_not_used(make_rig: MakeRig) -> None:
    rig = make_rig(ahead=False)
    file = resuming(rig)
    with pytest.raises(OSError, match="has only 7 bytes"):
        feed(file, record(b"1234567", flags=1, tag=1))


def test_a_larger_image_gets_a_larger_buffer_in_place_of_the_old(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    feed(file, record(b"a" * 10) + record(b"b" * 4097) + record(b"c" * 4096))
    assert rig.firmware.take_log() == [
        *("CREATE_MKEY 1", "LOAD 10", "DESTROY_MKEY 1"),
        *("CREATE_MKEY 2", "LOAD 4097", "LOAD 4096"),
    ]


@pytest.mark.parametrize("announced", [MAX_IMAGE_SIZE, 1 << 40, (1 << 64) - 1])
def test_an_absurd_announcement_costs_addresses_only(make_rig: MakeRig, announced: int) -> None:
    rig = make_rig()
    file = resuming(rig)
    feed(file, size_record(announced) + record(b"image"))
    assert rig.firmware.take_log() == [f"CREATE_MKEY {1 << 20}", "LOAD 5"]


def test_the_largest_image_there_can_be_is_begun(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    feed(file, record(b"x") + RecordHeader(MAX_IMAGE_SIZE, 0, 0).pack() + b"its first bytes")
    with pytest.raises(OSError, match="ends inside a record, at offset 48"):
        rig.device.set_state(DeviceState.STOP)


def test_optional_records_of_any_size_are_passed_over(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    feed(file, record(b"", flags=1, tag=9) + record(b"z" * 100_000, flags=1, tag=1 << 31) + STREAM)
    # One without data ends with its header.
    feed(file, record(b"", flags=1, tag=9))
    rig.device.set_state(DeviceState.STOP)
    assert rig.firmware.loaded == list(IMAGES)


def test_a_longer_size_record_is_read_as_far_as_it_is_known(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    size = (3 * 4096).to_bytes(8, "little")
    feed(file, record(size + b"something newer", flags=1, tag=1) + record(b"image"))
    assert rig.firmware.take_log()[0] == "CREATE_MKEY 3"


def test_an_image_that_the_firmware_refuses_is_named(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    rig.firmware.fail(Opcode.LOAD_VHCA_STATE, 2, 3)
    # Whole records before the bad one in the same write do not make it a success.
    with pytest.raises(
        OSError, match=r"image 1 \(6 bytes at offset 119\) was not loaded: .*LOAD_VHCA_STATE"
    ) as caught:
        file.write(STREAM)
    assert caught.value.errno == errno.EINVAL
    assert rig.firmware.loaded == [IMAGES[0]]
    with pytest.raises(OSError, match="ENODEV"):
        file.write(STREAM)


def test_a_buffer_that_can_not_be_had_ends_the_session(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    rig.firmware.fail(Opcode.CREATE_MKEY, 1, 8)
    with pytest.raises(OSError, match="ENOMEM"):
        file.write(STREAM)
    with pytest.raises(OSError, match="ENODEV"):
        file.write(STREAM)


def test_a_final_image_that_has_not_come_is_waited_for(make_rig: MakeRig) -> None:
    rig = make_rig(migration_state=True, state=VhcaMigrationState.DIRTY)
    file = resuming(rig)
    feed(file, size_record(9) + record(b"initial"))
    with pytest.raises(OSError, match="final image has not come") as caught:
        rig.device.set_state(DeviceState.STOP)
    assert caught.value.errno == errno.EINVAL
    # The session goes on.
    feed(file, record(b"final"))
    rig.firmware.state = VhcaMigrationState.READY
    rig.device.set_state(DeviceState.STOP)
    assert rig.firmware.loaded == [b"initial", b"final"]


def test_what_a_resuming_file_is_not_for(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    assert file.poll(select.POLLOUT, 0) == select.POLLOUT
    file.set_nonblocking(True)
    assert file.fileno() is None
    for call, code in (
        (lambda: file.readinto(bytearray(1)), errno.EBADF),
        (file.precopy_info, errno.ENOTTY),
    ):
        with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
            call()
        assert caught.value.errno == code
    file.close()
    with pytest.raises(OSError, match="EBADF"):
        file.write(STREAM)


def test_nothing_written_is_no_device(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = resuming(rig)
    assert file.write(b"") == 0
    with pytest.raises(OSError, match="no image has come"):
        rig.device.set_state(DeviceState.STOP)
