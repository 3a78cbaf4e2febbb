"""Arcs, their commands, resets and detach."""

import errno
import select

import pytest

from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import size_record
from precopy.vfio.device import PrecopyInfo
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import Feature, FeatureFlags, PrecopyInfoFlags
from tests.mlx5.conftest import MakeRig, read_all, read_some, records

E, S, R, SC, RES, RP, PC, PCP = DeviceState


def test_probe_asks_what_the_kernels_driver_asks(make_rig: MakeRig) -> None:
    rig = make_rig()
    assert rig.device.migration_flags == MigrationFlags(7)
    assert rig.device.caps.vhca_id == 0x77
    assert rig.device.probe(Feature.MIG_DATA_SIZE, FeatureFlags.GET)
    assert not rig.device.probe(Feature.MIG_DATA_SIZE, FeatureFlags.SET)
    assert not rig.device.probe(Feature.DMA_LOGGING_START)
    assert not rig.device.probe(99)


@pytest.mark.parametrize("lacking", [{"migratable": False}, {"multi_load": False}])
def test_a_vf_that_cant_be_migrated_says_why(make_rig: MakeRig, lacking: dict[str, bool]) -> None:
    device = make_rig(**lacking).device
    assert device.features() == {}
    for call in (lambda: device.migration_flags, lambda: device.state, device.data_size):
        with pytest.raises(OSError, match=r"can't be migrated: .*(migratable|too old)") as caught:
            call()
        assert caught.value.errno == errno.ENOTTY


#: Every single arc: how to get there, the arc's end, the commands that it takes.
ARCS = [
    (R, RP, ["SUSPEND 0"]),
    (RP, S, ["SUSPEND 1"]),
    (S, RP, ["RESUME 0"]),
    (RP, R, ["RESUME 1"]),
    (PC, PCP, ["SUSPEND 0"]),
    (PCP, PC, ["RESUME 1"]),
    (R, PC, ["ALLOC_PD", "QUERY inc=0", "CREATE_MKEY 3", "CREATE_MKEY 3", "SAVE inc=0 track=1"]),
    (RP, PCP, ["ALLOC_PD", "QUERY inc=0", "CREATE_MKEY 3", "CREATE_MKEY 3", "SAVE inc=0 track=1"]),
    (PCP, SC, ["SUSPEND 1", "QUERY inc=1", "SAVE inc=1 track=0"]),
    (S, SC, ["ALLOC_PD", "QUERY inc=0", "CREATE_MKEY 3", "SAVE inc=0 track=0"]),
    (SC, S, ["DESTROY_MKEY 3", "DEALLOC_PD"]),
    (
        PC,
        R,
        [
            "QUERY inc=1",
            "CREATE_MKEY 1",
            "SAVE inc=0 track=0",
            "DESTROY_MKEY 3",
            "DESTROY_MKEY 3",
            "DESTROY_MKEY 1",
            "DEALLOC_PD",
        ],
    ),
    (S, RES, ["ALLOC_PD"]),
]


@pytest.mark.parametrize(("start", "end", "commands"), ARCS)
def test_arc(make_rig: MakeRig, start: DeviceState, end: DeviceState, commands: list[str]) -> None:
    rig = make_rig(incremental_size=100)
    rig.device.set_state(start)
    rig.firmware.take_log()
    rig.device.set_state(end)
    assert rig.device.state is end
    assert rig.firmware.take_log() == commands


def test_combination_arcs_take_every_step(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.device.set_state(RES)
    assert rig.firmware.take_log() == ["SUSPEND 0", "SUSPEND 1", "ALLOC_PD"]


def test_initial_middle_and_final_image(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(PC)
    assert file is not None
    info = file.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes) == (24 + 16 + 10_000, 0)
    stream = read_some(file, 100)
    assert file.precopy_info().initial_bytes == 10_040 - 100
    stream += read_some(file)
    with pytest.raises(OSError, match="ENOMSG"):
        read_some(file)
    assert file.poll(select.POLLIN, 0) == 0
    info = file.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes) == (0, 0)
    for increment in (300, 5000):
        rig.firmware.incremental_size = increment
        rig.firmware.take_log()
        info = file.precopy_info()
        assert (info.initial_bytes, info.dirty_bytes) == (0, increment + 16)
        assert rig.firmware.take_log()[-1] == "SAVE inc=1 track=1"
        assert file.poll(select.POLLIN, 0) == select.POLLIN
        stream += read_some(file)
    rig.firmware.incremental_size = 77
    assert rig.device.set_state(SC) is None
    stream += read_all(file)
    assert read_some(file) == b""
    assert stream.startswith(size_record(3 * 4096))
    lengths = [(tag, len(payload)) for tag, payload in records(stream)]
    assert lengths == [(1, 8), (0, 10_000), (0, 300), (0, 5000), (0, 77)]
    # Byte by byte the images are what the firmware wrote, in the order of the saves.
    assert [payload for _, payload in records(stream)[1:]] == rig.firmware.images


def test_stop_copy_with_nothing_read_before(make_rig: MakeRig) -> None:
    rig = make_rig(incremental_size=50)
    file = rig.device.set_state(PC)
    assert file is not None
    rig.device.set_state(SC)
    lengths = [(tag, len(payload)) for tag, payload in records(read_all(file, 13))]
    assert lengths == [(1, 8), (0, 10_000), (0, 50)]


def test_a_final_state_larger_than_its_buffer_gets_a_larger_one(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(PC)
    assert file is not None
    rig.firmware.incremental_size = 50_000
    rig.device.set_state(SC)
    # Set aside for 10 % growth: 3 pages; 13 are needed. The old one is freed.
    assert "CREATE_MKEY 13" in rig.firmware.log
    assert "DESTROY_MKEY 3" in rig.firmware.log
    assert [len(payload) for _, payload in records(read_all(file))] == [8, 10_000, 50_000]


def test_a_card_without_chunk_mode_gets_room_for_ten_per_cent_of_growth(make_rig: MakeRig) -> None:
    rig = make_rig(full_size=10 * 4096)
    rig.device.set_state(PC)
    assert rig.firmware.take_log()[2:4] == ["CREATE_MKEY 11"] * 2
    rig.device.set_state(S)
    rig.firmware.take_log()
    # Stopped it does not grow.
    rig.device.set_state(SC)
    assert rig.firmware.take_log()[2] == "CREATE_MKEY 10"


@pytest.mark.parametrize("full", [(1 << 32) - 4096, (1 << 32) - 1])
def test_no_buffer_is_larger_than_a_save_can_be(make_rig: MakeRig, full: int) -> None:
    rig = make_rig(full_size=full)
    rig.firmware.at[rig.firmware.commands + 5] = lambda: 0x1  # the save itself, of 4 GiB
    rig.device.set_state(PC)
    assert rig.firmware.take_log()[2:4] == [f"CREATE_MKEY {(1 << 20) - 1}"] * 2


def test_no_increment_while_unread_and_none_in_precopy_p2p(make_rig: MakeRig) -> None:
    rig = make_rig(incremental_size=50)
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file, 24 + 16 + 10_000 - 1)
    rig.firmware.take_log()
    assert file.precopy_info().initial_bytes == 1
    assert rig.firmware.take_log() == ["QUERY inc=1"]
    read_some(file)
    rig.device.set_state(PCP)
    rig.firmware.take_log()
    info = file.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes) == (0, 0)
    assert rig.firmware.take_log() == []


def test_reinit(make_rig: MakeRig) -> None:
    rig = make_rig(migration_state=True)
    rig.device.enable_precopy_info_v2()
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    rig.firmware.state, rig.firmware.incremental_size = 4, 600
    info = file.precopy_info()
    assert info.flags == PrecopyInfoFlags.REINIT
    assert (info.initial_bytes, info.dirty_bytes) == (616, 0)
    rig.firmware.state, rig.firmware.incremental_size = 3, 40
    assert read_some(file, 16)
    info = file.precopy_info()
    assert (info.flags, info.initial_bytes, info.dirty_bytes) == (0, 600, 0)
    read_some(file)
    info = file.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes) == (0, 56)


def test_reinit_with_bytes_unread_counts_them(make_rig: MakeRig) -> None:
    rig = make_rig(migration_state=True, incremental_size=600, state=4)
    rig.device.enable_precopy_info_v2()
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file, 40)
    info = file.precopy_info()
    assert info.initial_bytes == 10_000 + 616
    rig.firmware.incremental_size = rig.firmware.state = 0
    assert file.precopy_info().initial_bytes == 10_000 + 616


def test_without_infov2_reinit_is_not_told(make_rig: MakeRig) -> None:
    rig = make_rig(migration_state=True, incremental_size=600, state=4)
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    info = file.precopy_info()
    assert (info.flags, info.initial_bytes, info.dirty_bytes) == (0, 0, 616)


def test_reinit_is_told_only_by_firmware_that_has_the_capability(make_rig: MakeRig) -> None:
    rig = make_rig(migration_state=False, incremental_size=600, state=4)
    rig.device.enable_precopy_info_v2()
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    info = file.precopy_info()
    assert (info.flags, info.initial_bytes, info.dirty_bytes) == (0, 0, 616)


def test_a_new_initial_state_of_nothing_is_none(make_rig: MakeRig) -> None:
    """REINIT with initial_bytes 0 would be no news, and linux/vfio.h wants more than 0."""
    rig = make_rig(migration_state=True, state=4)
    rig.device.enable_precopy_info_v2()
    file = rig.device.set_state(PC)
    assert file is not None
    assert file.precopy_info() == PrecopyInfo(10_040, 0)
    read_some(file)
    assert file.precopy_info() == PrecopyInfo(0, 0)


def test_a_save_of_reinit_that_is_refused_leaves_the_final_image(make_rig: MakeRig) -> None:
    rig = make_rig(migration_state=True, incremental_size=600, state=4)
    rig.device.enable_precopy_info_v2()
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 9)
    assert file.precopy_info() == PrecopyInfo(616, 0, PrecopyInfoFlags.REINIT)
    with pytest.raises(OSError, match="ENOMSG"):
        read_some(file)
    assert file.precopy_info() == PrecopyInfo(0, 0)
    rig.device.set_state(SC)
    assert [len(payload) for _, payload in records(read_all(file))] == [10_000]


@pytest.mark.parametrize("opcode", [Opcode.QUERY_VHCA_MIGRATION_STATE, Opcode.CREATE_MKEY])
def test_a_question_that_fails(make_rig: MakeRig, opcode: Opcode) -> None:
    """A query that fails changes nothing; an image for which there is no room ends the session."""
    rig = make_rig(incremental_size=50_000)
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    rig.firmware.fail(opcode, 1, 8)
    with pytest.raises(OSError, match="ENOMEM"):
        file.precopy_info()
    if opcode is Opcode.QUERY_VHCA_MIGRATION_STATE:
        assert file.precopy_info() == PrecopyInfo(0, 50_016)
    else:
        with pytest.raises(OSError, match="ENODEV"):
            file.precopy_info()
    rig.device.set_state(R)
    assert rig.device.state is R


def test_data_size(make_rig: MakeRig) -> None:
    assert make_rig(full_size=123).device.data_size() == 123
    assert make_rig(full_size=123, total=1 << 33, chunk_mode=True).device.data_size() == 1 << 33


# --- Faults ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "opcode", "stays"),
    [
        (R, RP, Opcode.SUSPEND_VHCA, R),
        (R, S, Opcode.SUSPEND_VHCA, R),
        (S, R, Opcode.RESUME_VHCA, S),
        (R, PC, Opcode.ALLOC_PD, R),
        (R, PC, Opcode.QUERY_VHCA_MIGRATION_STATE, R),
        (R, PC, Opcode.CREATE_MKEY, R),
        (S, SC, Opcode.ALLOC_PD, S),
        (S, SC, Opcode.QUERY_VHCA_MIGRATION_STATE, S),
        (S, SC, Opcode.CREATE_MKEY, S),
        (S, RES, Opcode.ALLOC_PD, S),
        (PC, SC, Opcode.SUSPEND_VHCA, PC),
        (PCP, SC, Opcode.SUSPEND_VHCA, PCP),
        (PCP, SC, Opcode.QUERY_VHCA_MIGRATION_STATE, PCP),
        (PC, R, Opcode.QUERY_VHCA_MIGRATION_STATE, PC),
    ],
)
@pytest.mark.parametrize(("status", "code"), [(3, errno.EINVAL), (1, errno.EIO), (8, errno.ENOMEM)])
def test_a_failed_arc_keeps_the_state_and_takes_nothing(
    make_rig: MakeRig,
    start: DeviceState,
    end: DeviceState,
    opcode: Opcode,
    stays: DeviceState,
    status: int,
    code: int,
) -> None:
    rig = make_rig(incremental_size=10)
    rig.device.set_state(start)
    held = (len(rig.firmware.keys), len(rig.firmware.pds))
    rig.firmware.fail(opcode, 1, status)
    with pytest.raises(OSError, match=rf"vf: \w+ -> \w+: firmware refused {opcode.name}") as caught:
        rig.device.set_state(end)
    assert caught.value.errno == code
    assert rig.device.state is stays
    assert (len(rig.firmware.keys), len(rig.firmware.pds)) == held


def test_a_half_done_arc_is_undone(make_rig: MakeRig) -> None:
    rig = make_rig(incremental_size=10)
    file = rig.device.set_state(PC)
    assert file is not None
    rig.device.set_state(PCP)
    rig.firmware.take_log()
    rig.firmware.fail(Opcode.QUERY_VHCA_MIGRATION_STATE, 1, 3)
    with pytest.raises(OSError, match="EINVAL"):
        rig.device.set_state(SC)
    assert rig.firmware.take_log() == ["SUSPEND 1", "QUERY_VHCA_MIGRATION_STATE!", "RESUME 0"]
    assert rig.device.state is PCP
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)
    # And the device can be brought back to work: the kernel's driver needs a reset here.
    rig.device.set_state(R)
    assert rig.device.state is R


def test_a_half_done_arc_that_cant_be_undone_is_error(make_rig: MakeRig) -> None:
    rig = make_rig(incremental_size=10)
    rig.device.set_state(PCP)
    rig.firmware.fail(Opcode.QUERY_VHCA_MIGRATION_STATE, 1, 3)
    rig.firmware.fail(Opcode.RESUME_VHCA, 1, 1)
    with pytest.raises(OSError, match="EINVAL"):
        rig.device.set_state(SC)
    assert rig.device.state is E
    with pytest.raises(OSError, match="reset it"):
        rig.device.set_state(R)
    rig.device.reset()
    assert rig.device.state is R
    assert len(rig.resets) == 1


def test_precopy_error_falls_back_to_a_full_final_image(make_rig: MakeRig) -> None:
    rig = make_rig(incremental_size=300)
    file = rig.device.set_state(PC)
    assert file is not None
    stream = read_some(file)
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 9)
    file.precopy_info()
    with pytest.raises(OSError, match="ENOMSG"):
        read_some(file)
    rig.firmware.take_log()
    info = file.precopy_info()
    assert (info.initial_bytes, info.dirty_bytes) == (0, 0)
    assert rig.firmware.take_log() == []
    rig.device.set_state(SC)
    assert rig.firmware.take_log()[-2:] == ["QUERY inc=0", "SAVE inc=0 track=0"]
    stream += read_all(file)
    assert [len(payload) for _, payload in records(stream)] == [8, 10_000, 10_000]


@pytest.mark.parametrize("first", [True, False])
def test_after_precopy_error_the_cleanup_is_sized_by_a_full_query(
    make_rig: MakeRig, first: bool
) -> None:
    """Where not even the first save went through, firmware has nothing to be incremental to."""
    rig = make_rig(incremental_size=300)
    if first:
        rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 9)
    file = rig.device.set_state(PC)
    assert file is not None
    if not first:
        read_some(file)
        rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 9)
        file.precopy_info()
    rig.firmware.take_log()
    rig.device.set_state(R)
    commands = [line for line in rig.firmware.take_log() if "MKEY" not in line]
    assert commands == ["QUERY inc=0", "SAVE inc=0 track=0", "DEALLOC_PD"]


def test_a_cleanup_that_fails_can_be_tried_again(make_rig: MakeRig) -> None:
    """The kernel's driver stays in PRE_COPY without a session: only a reset helps there."""
    rig = make_rig(incremental_size=300)
    file = rig.device.set_state(PC)
    assert file is not None
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 1)
    with pytest.raises(OSError, match="try again, or reset") as caught:
        rig.device.set_state(S)
    assert caught.value.errno == errno.EIO
    assert rig.device.state is PC
    for call in (lambda: read_some(file), file.precopy_info, lambda: rig.device.set_state(SC)):
        with pytest.raises(OSError, match="ENODEV"):
            call()
    rig.device.set_state(S)
    assert rig.device.state is S


@pytest.mark.parametrize("status", [1, 3, 8])
def test_another_status_of_a_save_ends_the_session(make_rig: MakeRig, status: int) -> None:
    rig = make_rig(incremental_size=300)
    file = rig.device.set_state(PC)
    assert file is not None
    read_some(file)
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, status)
    file.precopy_info()
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)
    assert file.poll(select.POLLIN, 0) == select.POLLIN | select.POLLRDHUP
    with pytest.raises(OSError, match="ENODEV"):
        rig.device.set_state(SC)
    rig.device.set_state(R)
    assert rig.device.state is R


def test_a_failed_final_save_is_told_to_the_reader(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, 9)
    file = rig.device.set_state(SC)
    assert file is not None
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)
    rig.device.set_state(R)
    assert rig.device.state is R


@pytest.mark.parametrize("size", [0, 3 * 4096 + 1])
def test_an_image_size_that_cant_be_ends_the_session(make_rig: MakeRig, size: int) -> None:
    rig = make_rig(claimed_size=size)
    file = rig.device.set_state(SC)
    assert file is not None
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)


# --- Resets and detach ----------------------------------------------------------------------------


@pytest.mark.parametrize("state", [R, RP, S, SC, RES, PC, PCP])
def test_reset_from_every_state(make_rig: MakeRig, state: DeviceState) -> None:
    rig = make_rig()
    file = rig.device.set_state(state)
    rig.device.reset()
    assert rig.device.state is R
    assert rig.resets == [None]
    if file is not None:
        with pytest.raises(OSError, match="ENODEV"):
            file.write(b"x") if state is RES else read_some(file)


def test_detach(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(PC)
    assert file is not None
    rig.device.detach()
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)
    for call in (lambda: rig.device.set_state(R), rig.device.data_size):
        with pytest.raises(OSError, match="ENOTCONN"):
            call()


def test_close_ends_the_session(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(PC)
    assert file is not None
    rig.device.close()
    rig.device.close()
    with pytest.raises(OSError, match="ENODEV"):
        read_some(file)
    with pytest.raises(OSError, match="closed"):
        rig.device.set_state(S)


def test_an_old_file_stays_dead_in_a_new_session(make_rig: MakeRig) -> None:
    rig = make_rig()
    old = rig.device.set_state(PC)
    assert old is not None
    rig.device.set_state(R)
    new = rig.device.set_state(PC)
    assert new is not None
    with pytest.raises(OSError, match="ENODEV"):
        read_some(old)
    with pytest.raises(OSError, match="ENODEV"):
        old.precopy_info()
    assert new.precopy_info().initial_bytes


def test_precopy_info_outside_precopy(make_rig: MakeRig) -> None:
    rig = make_rig()
    file = rig.device.set_state(PC)
    assert file is not None
    rig.device.set_state(SC)
    with pytest.raises(OSError, match="EINVAL"):
        file.precopy_info()
