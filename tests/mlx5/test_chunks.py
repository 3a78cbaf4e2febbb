"""Chunk mode: the final state in pieces through two buffers, saved ahead of the reader."""

import errno
import select
import threading
from collections import deque

import pytest

from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import size_record
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.mlx5.conftest import MakeRig, Rig, read_all, read_some, records

E, S, R, SC, RES, RP, PC, PCP = DeviceState

MIB = 1 << 20


def final(rig: Rig, *next_required: int) -> MigrationFile:
    """STOP_COPY of a chunk of 10000 bytes, then some of these sizes; 8 MiB are set aside for each."""
    rig.firmware.next_required = deque(next_required)
    file = rig.device.set_state(SC)
    assert file is not None
    return file


@pytest.fixture
def rig(make_rig: MakeRig) -> Rig:
    return make_rig(chunk_mode=True, total=1 << 30)


@pytest.mark.parametrize(
    ("required", "total", "pages"),
    [
        (10_000, 1 << 40, 2048),
        (10_000, 8 * MIB, 2048),
        (10_000, 100_000, 25),
        (10 * MIB, 1 << 30, 2560),
        (10 * MIB + 1, 1 << 30, 2561),
        (1, 1, 1),
    ],
)
def test_what_is_set_aside(make_rig: MakeRig, required: int, total: int, pages: int) -> None:
    """Two buffers of max(required, min(8 MiB, total)), and as large a one for the initial image."""
    rig = make_rig(chunk_mode=True, full_size=required, total=total)
    rig.device.set_state(SC)
    assert rig.firmware.take_log()[2:] == [
        "ALLOC_PD",
        "QUERY inc=0",
        f"CREATE_MKEY {pages}",
        f"CREATE_MKEY {pages}",
        "SAVE inc=0 track=0",
    ]
    rig.device.set_state(R)
    rig.firmware.take_log()
    file = rig.device.set_state(PC)
    assert file is not None
    assert rig.firmware.take_log()[2:] == [f"CREATE_MKEY {pages}"] * 3 + ["SAVE inc=0 track=1"]
    assert read_some(file, 24) == size_record(pages * 4096)


def test_the_next_chunk_is_saved_ahead_and_the_one_behind_it_waits(rig: Rig) -> None:
    file = final(rig, 20_000, 30_000, 40_000)
    assert len(rig.worker.work) == 1, "the second chunk is saved though nothing has been read"
    rig.firmware.take_log()
    rig.worker.run()
    assert rig.firmware.take_log() == ["SAVE inc=1 track=0"]
    # Two are unread: the third waits until one of them has been read to its end.
    assert not rig.worker.work
    assert len(read_some(file, 24 + 16 + 10_000 - 1)) == 24 + 16 + 10_000 - 1
    assert not rig.worker.work
    read_some(file, 1)
    assert len(rig.worker.work) == 1
    rig.worker.run()
    # Again two are unread; a read over the end of one and into the next counts once.
    assert not rig.worker.work
    read_some(file, 16 + 20_000 + 16 + 29_999)
    assert len(rig.worker.work) == 1
    rig.worker.run()
    assert not rig.worker.work
    read_some(file, 1)
    assert not rig.worker.work, "the last chunk has been saved"
    assert records(read_all(file)) == [(0, rig.firmware.images[3])]
    assert [read_some(file) for _ in range(3)] == [b""] * 3
    # All went through the two buffers that were set aside.
    assert [line for line in rig.firmware.take_log() if "MKEY" in line] == []


def test_two_read_in_one_go_start_one_save(rig: Rig) -> None:
    file = final(rig, 20_000, 30_000)
    rig.worker.run()
    assert len(read_some(file)) == 24 + 16 + 10_000 + 16 + 20_000
    assert len(rig.worker.work) == 1
    rig.worker.run()
    assert records(read_all(file)) == [(0, rig.firmware.images[2])]


@pytest.mark.parametrize("piece", [1, 17, 4096, 1 << 20])
def test_the_stream_is_that_of_the_saves_however_it_is_read(rig: Rig, piece: int) -> None:
    file = final(rig, *([700] * 9))
    file.set_nonblocking(True)
    stream = b""
    while True:
        try:
            data = read_some(file, piece)
        except BlockingIOError:
            rig.worker.run()
            continue
        if not data:
            break
        stream += data
    assert [data for _, data in records(stream)[1:]] == rig.firmware.images
    assert [len(image) for image in rig.firmware.images] == [10_000, *[700] * 9]


def test_the_final_state_may_begin_with_nothing_read(make_rig: MakeRig) -> None:
    rig = make_rig(chunk_mode=True, total=1 << 30, incremental_size=300, incremental_total=9_000)
    file = rig.device.set_state(PC)
    assert file is not None
    rig.firmware.next_required = deque([400, 500])
    assert rig.device.set_state(SC) is None
    assert len(rig.worker.work) == 1
    # The initial image, in front of them, keeps no chunk from being saved.
    rig.worker.run()
    assert read_some(file, 24 + 16 + 10_000)
    assert not rig.worker.work
    stream = read_some(file, 316)
    rig.worker.run()
    stream += read_all(file)
    assert [data for _, data in records(stream)] == rig.firmware.images[1:]
    assert [len(image) for image in rig.firmware.images] == [10_000, 300, 400, 500]


def test_a_chunk_larger_than_its_buffer_gets_a_larger_one(make_rig: MakeRig) -> None:
    rig = make_rig(chunk_mode=True, total=10_000)
    rig.device.set_state(S)
    rig.firmware.take_log()
    file = final(rig, 50_000, 10_000, 50_000, 90_000)
    while rig.worker.work:
        rig.worker.run()
        read_some(file)
    assert read_some(file) == b""
    made = [line for line in rig.firmware.take_log() if "MKEY" in line]
    # Chunk 2 outgrows its 3 pages at first use; chunk 1 only with the last save.
    assert made == [
        *["CREATE_MKEY 3"] * 2,
        *("CREATE_MKEY 13", "DESTROY_MKEY 3"),
        *("CREATE_MKEY 22", "DESTROY_MKEY 3"),
    ]
    assert len(rig.firmware.keys) == 2


@pytest.mark.parametrize("status", [1, 3, 9])
def test_an_error_in_a_later_chunk_ends_the_stream_at_once(rig: Rig, status: int) -> None:
    """As in the kernel's driver (7.3): not even the chunk that is whole can be read any more."""
    file = final(rig, 20_000, 30_000)
    read_some(file, 100)
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, status)
    rig.worker.run()
    for _ in range(2):
        with pytest.raises(OSError, match="ENODEV") as caught:
            read_some(file)
        assert caught.value.errno == errno.ENODEV
    assert file.poll(select.POLLIN, 0) == select.POLLIN | select.POLLRDHUP
    assert not rig.worker.work
    assert rig.device.state is SC
    rig.device.set_state(R)
    assert rig.device.state is R


def test_no_room_for_a_larger_chunk_ends_the_stream(make_rig: MakeRig) -> None:
    rig = make_rig(chunk_mode=True, total=10_000)
    file = final(rig, 50_000)
    rig.firmware.fail(Opcode.CREATE_MKEY, 1, 8)
    rig.worker.run()
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)
    rig.device.set_state(R)
    assert not rig.firmware.keys


def test_a_reader_waits_for_the_next_chunk(rig: Rig) -> None:
    file = final(rig, 20_000)
    read_some(file)
    file.set_nonblocking(True)
    assert file.poll(select.POLLIN, 0) == 0
    with pytest.raises(BlockingIOError) as caught:
        read_some(file)
    assert caught.value.errno == errno.EAGAIN
    file.set_nonblocking(False)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(read_some(file)))
    reader.start()
    rig.worker.run()
    reader.join()
    assert records(got[0]) == [(0, rig.firmware.images[1])]


@pytest.mark.parametrize("end", ["STOP", "reset", "detach", "close", "error"])
def test_a_reader_that_waits_is_woken_when_the_session_ends(rig: Rig, end: str) -> None:
    file = final(rig, 20_000)
    read_some(file)
    codes: list[int | None] = []

    def read() -> None:
        try:
            read_some(file)
        except OSError as error:
            codes.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    if end == "STOP":
        rig.device.set_state(S)
    elif end == "error":
        rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 1)
        rig.worker.run()
    else:
        getattr(rig.device, end)()
    reader.join()
    assert codes == [errno.ENODEV]


def test_a_chunk_that_was_to_be_saved_is_not_once_the_session_is_over(rig: Rig) -> None:
    final(rig, 20_000)
    rig.device.set_state(R)
    rig.device.set_state(PC)
    rig.firmware.take_log()
    assert len(rig.worker.work) == 1
    rig.worker.run()
    assert rig.firmware.take_log() == []
    assert rig.device.state is PC


def test_after_precopy_error_the_first_chunk_is_full_and_the_others_follow_it(rig: Rig) -> None:
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 9)
    file = rig.device.set_state(PC)
    assert file is not None
    rig.firmware.take_log()
    rig.firmware.next_required = deque([20_000])
    rig.device.set_state(SC)
    rig.worker.run()
    assert [line for line in rig.firmware.take_log() if line[:4] in ("QUER", "SAVE")] == [
        "QUERY inc=0",
        "SAVE inc=0 track=0",
        "SAVE inc=1 track=0",
    ]
    assert [len(data) for _, data in records(read_all(file))] == [8, 10_000, 20_000]


def test_a_file_closed_early_does_not_keep_the_device_from_going_on(rig: Rig) -> None:
    file = rig.device.set_state(PC)
    assert file is not None
    file.close()
    file.close()
    for call in (lambda: read_some(file), file.precopy_info):
        with pytest.raises(OSError, match="EBADF"):
            call()
    rig.firmware.incremental_size = 500
    rig.firmware.next_required = deque([300])
    rig.device.set_state(SC)
    rig.worker.run()
    rig.device.set_state(R)
    assert not rig.firmware.keys


def test_next_required_of_a_firmware_without_chunk_mode_means_nothing(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = final(rig, 20_000)
    assert not rig.worker.work
    assert [len(data) for _, data in records(read_all(file))] == [8, 10_000]
