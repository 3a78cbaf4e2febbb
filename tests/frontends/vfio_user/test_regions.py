"""Device, regions and their bytes."""

import errno
import os
import struct
from typing import Any

import pytest

from precopy.vfio.face import IrqIndex, RegionIndex
from precopy.vfio.states import DeviceState
from precopy.vfio_user.messages import (
    WRITE_MULTI_ENTRY,
    Command,
    DeviceInfo,
    Empty,
    IrqInfo,
    RegionAccess,
    RegionData,
    RegionInfoMessage,
    RegionIoFds,
    WriteMulti,
    parse_sparse_areas,
)
from tests.frontends.vfio_user.fakes import (
    AREAS,
    MEMORY,
    MEMORY_AT,
    MEMORY_BYTES,
    REGISTERS,
    ROM_BYTES,
    SPARSE,
    SPARSE_BYTES,
    VECTORS,
    FakeFace,
)
from tests.frontends.vfio_user.rig import RawClient, Served, opened_sim, served

CONFIG = int(RegionIndex.CONFIG)


@pytest.mark.parametrize("argsz", [16, 17, 4096, 0xFFFF_FFFF])
def test_device_info(client: RawClient, argsz: int) -> None:
    assert client.ask(Command.DEVICE_GET_INFO, DeviceInfo(argsz, 0, 0, 0)) == (16, 3, 9, 5)


@pytest.mark.parametrize("argsz", [0, 1, 15])
def test_an_argsz_that_is_too_small(client: RawClient, argsz: int) -> None:
    for command, request in (
        (Command.DEVICE_GET_INFO, DeviceInfo(argsz, 0, 0, 0)),
        (Command.DEVICE_GET_IRQ_INFO, IrqInfo(argsz, 0, 0, 0)),
        (Command.DEVICE_GET_REGION_INFO, RegionInfoMessage(argsz + 16, 0, 0, 0, 0, 0, b"")),
        (Command.DEVICE_GET_REGION_IO_FDS, RegionIoFds(argsz, 0, 0, 0, b"")),
    ):
        assert client.refused(command, request) == "EINVAL"


def test_a_device_that_is_no_pci_function() -> None:
    with opened_sim(face=False).device as device, served(device, None) as made:
        client = made.client()
        assert client.ask(Command.DEVICE_GET_INFO, DeviceInfo(16, 0, 0, 0)) == (16, 1, 0, 0)
        region = RegionInfoMessage(32, 0, 0, 0, 0, 0, b"")
        assert client.refused(Command.DEVICE_GET_REGION_INFO, region) == "EINVAL"
        assert client.refused(Command.REGION_READ, RegionAccess(0, 7, 4)) == "EINVAL"
        assert client.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, 2, 0)) == (16, 0, 2, 0)
        assert client.ask(Command.DEVICE_RESET, Empty()) == ()
        # Memory is taken note of by nobody, which is no mistake.
        for payload in (struct.pack("=IIQQQ", 32, 3, 0, 0, 4096),):
            assert client.ask_raw(Command.DMA_MAP, payload)[0] == 0
        assert client.ask_raw(Command.DMA_UNMAP, struct.pack("=IIQQ", 24, 0, 0, 4096))[0] == 0


def region_info(client: RawClient, region: int, argsz: int) -> tuple[Any, list[int]]:
    request = RegionInfoMessage(argsz, 0, region, 0, 0, 0, b"")
    return client.ask_with_fds(Command.DEVICE_GET_REGION_INFO, request)


def test_every_region(client: RawClient) -> None:
    for region in range(9):
        found, fds = region_info(client, region, 4096)
        flags, size = {
            REGISTERS: (3, 0x100),
            SPARSE: (15, SPARSE_BYTES),
            MEMORY: (7, MEMORY_BYTES),
            6: (1, ROM_BYTES),
            CONFIG: (3, 0x1000),
        }.get(region, (0, 0))
        assert (found.flags, found.size, found.region) == (flags, size, region)
        assert len(fds) == bool(flags & 4)
        for fd in fds:
            os.close(fd)
    request = RegionInfoMessage(4096, 0, 9, 0, 0, 0, b"")
    assert client.refused(Command.DEVICE_GET_REGION_INFO, request) == "EINVAL"


NEEDED = 32 + 16 + len(AREAS) * 16


@pytest.mark.parametrize("argsz", [32, 33, 47, NEEDED - 1, NEEDED, NEEDED + 1, 1 << 31])
def test_areas_come_where_there_is_room(client: RawClient, argsz: int) -> None:
    """Else the fixed part alone, what is needed, no CAPS; the descriptor in any case."""
    found, fds = region_info(client, SPARSE, argsz)
    fits = argsz >= NEEDED
    assert found.argsz == NEEDED
    assert (found.flags, found.cap_offset) == ((15, 32) if fits else (7, 0))
    assert parse_sparse_areas(found) == (AREAS if fits else None)
    assert len(found.capabilities) == (NEEDED - 32 if fits else 0)
    assert len(fds) == 1
    os.close(fds[0])


def test_memory_that_is_mapped_is_the_devices(client: RawClient, face: FakeFace) -> None:
    found, (fd,) = region_info(client, MEMORY, 4096)
    assert found.offset == MEMORY_AT
    os.pwrite(fd, b"seen", found.offset + 5)
    assert face.memory[MEMORY_AT + 5 : MEMORY_AT + 9] == b"seen"
    os.close(fd)


def test_no_doorbell_has_a_descriptor(client: RawClient) -> None:
    for region in range(9):
        request = RegionIoFds(4096, 0, region, 0, b"")
        assert client.ask(Command.DEVICE_GET_REGION_IO_FDS, request) == (16, 0, region, 0, b"")
    request = RegionIoFds(4096, 0, 9, 0, b"")
    assert client.refused(Command.DEVICE_GET_REGION_IO_FDS, request) == "EINVAL"


def test_interrupts_that_there_are(client: RawClient) -> None:
    flags = (7, 3, 3, 9, 9)
    for irq in range(5):
        found = client.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, irq, 0))
        assert found == (16, flags[irq], irq, VECTORS[irq])
    for irq in (5, 0xFFFF_FFFF):
        assert client.refused(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, irq, 0)) == "EINVAL"


# --- Accesses -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 8, 100, 0x1000])
def test_there_and_back(client: RawClient, face: FakeFace, size: int) -> None:
    data = os.urandom(size)
    written = client.ask(Command.REGION_WRITE, RegionData(0, CONFIG, size, data))
    assert written == (0, CONFIG, size)
    found = client.ask(Command.REGION_READ, RegionAccess(0, CONFIG, size))
    assert found == (0, CONFIG, size, data)
    # Nothing is no access.
    kinds = [entry[0] for entry in face.log if entry[0] == "write"]
    assert kinds == ["write"] * (size > 0)


@pytest.mark.parametrize(
    ("region", "offset", "length"),
    [
        (REGISTERS, 0x100, 1),
        (REGISTERS, 0xFF, 2),
        (REGISTERS, 0, 0x101),
        (REGISTERS, (1 << 64) - 1, 2),
        (REGISTERS, 1 << 63, 1 << 31),
        (REGISTERS, 0x101, 0),
        (3, 0, 1),
        (3, 0, 0),
        (8, 0, 1),
        (9, 0, 1),
        (0xFFFF_FFFF, 0, 1),
        (CONFIG, 0, 0xFFFF_FFFF),
    ],
)
def test_accesses_beyond_the_end(
    client: RawClient, face: FakeFace, region: int, offset: int, length: int
) -> None:
    assert client.refused(Command.REGION_READ, RegionAccess(offset, region, length)) == "EINVAL"
    data = bytes(min(length, 0x101))
    assert (
        client.refused(Command.REGION_WRITE, RegionData(offset, region, length, data)) == "EINVAL"
    )
    assert face.log == []


def test_a_rom_is_read_only(client: RawClient, face: FakeFace) -> None:
    assert len(client.ask(Command.REGION_READ, RegionAccess(0, 6, ROM_BYTES)).data) == ROM_BYTES
    assert client.refused(Command.REGION_WRITE, RegionData(0, 6, 1, b"x")) == "EINVAL"


@pytest.mark.parametrize(("length", "data"), [(4, b""), (4, b"123"), (4, b"12345"), (0, b"1")])
def test_a_write_of_another_length_than_it_says(
    client: RawClient, face: FakeFace, length: int, data: bytes
) -> None:
    assert client.refused(Command.REGION_WRITE, RegionData(0, CONFIG, length, data)) == "EINVAL"
    assert face.log == []


def test_no_more_at_once_than_was_agreed(faked: Served) -> None:
    client = faked.client(max_data_xfer_size=64)
    assert client.refused(Command.REGION_READ, RegionAccess(0, CONFIG, 65)) == "EINVAL"
    assert client.refused(Command.REGION_WRITE, RegionData(0, CONFIG, 65, bytes(65))) == "EINVAL"
    assert len(client.ask(Command.REGION_READ, RegionAccess(0, CONFIG, 64)).data) == 64


# --- Several at once ------------------------------------------------------------------------------


def multi(*writes: tuple[int, int, int, bytes], number: int | None = None) -> WriteMulti:
    count = len(writes) if number is None else number
    return WriteMulti(count, b"".join(WRITE_MULTI_ENTRY.pack(*write) for write in writes))


def test_several_writes_at_once(client: RawClient, face: FakeFace) -> None:
    writes = multi((4, CONFIG, 2, b"abXX"), (0, REGISTERS, 8, b"12345678"), (9, CONFIG, 1, b"c"))
    assert client.ask(Command.REGION_WRITE_MULTI, writes) == (3,)
    assert face.log == [
        ("write", CONFIG, 4, b"ab"),
        ("write", REGISTERS, 0, b"12345678"),
        ("write", CONFIG, 9, b"c"),
    ]
    assert client.ask(Command.REGION_WRITE_MULTI, multi()) == (0,)
    many = multi(*[(0, CONFIG, 8, b"x")] * 200)
    assert client.ask(Command.REGION_WRITE_MULTI, many) == (200,)


@pytest.mark.parametrize(
    "request_",
    [
        multi(*[(0, CONFIG, 8, b"x")] * 201),
        multi((0, CONFIG, 1, b"x"), number=2),
        multi((0, CONFIG, 1, b"x"), (1, CONFIG, 1, b"x"), number=1),
        multi(number=(1 << 64) - 1),
        multi((0, CONFIG, 1, b"x"), (0, CONFIG, 0, b"x")),
        multi((0, CONFIG, 1, b"x"), (0, CONFIG, 9, b"x")),
        multi((0, CONFIG, 1, b"x"), (0, 6, 1, b"x")),
        multi((0, CONFIG, 1, b"x"), (0xFFF, CONFIG, 2, b"x")),
        multi((0, CONFIG, 1, b"x"), (0, 77, 1, b"x")),
    ],
    ids=range(9),
)
def test_several_writes_of_which_one_cant_be(
    client: RawClient, face: FakeFace, request_: WriteMulti
) -> None:
    """Then none is made."""
    assert client.refused(Command.REGION_WRITE_MULTI, request_) == "EINVAL"
    assert face.log == []


def test_several_writes_have_to_be_agreed_on(faked: Served) -> None:
    client = faked.client(write_multiple=False)
    assert client.refused(Command.REGION_WRITE_MULTI, multi((0, CONFIG, 1, b"x"))) == "EINVAL"


# --- The VF of the software ConnectX --------------------------------------------------------------


def read(client: RawClient, region: int, offset: int, size: int) -> int:
    data = client.ask(Command.REGION_READ, RegionAccess(offset, region, size)).data
    return int.from_bytes(data, "little")


def write(client: RawClient, region: int, offset: int, size: int, value: int) -> None:
    data = value.to_bytes(size, "little")
    client.ask(Command.REGION_WRITE, RegionData(offset, region, size, data))


def capability(client: RawClient, kind: int) -> int:
    at = read(client, CONFIG, 0x34, 1)
    while at and read(client, CONFIG, at, 1) != kind:
        at = read(client, CONFIG, at + 1, 1)
    return at


def test_the_vf_as_vfio_shows_it(sim: Served) -> None:
    """With its ids and its BAR, which a VF itself does not have."""
    client = sim.client()
    assert read(client, CONFIG, 0, 4) == 0x101E_15B3
    assert read(client, CONFIG, 0x2C, 2) == 0x15B3
    size = region_info(client, 0, 4096)[0].size
    write(client, CONFIG, 0x10, 4, 0xFFFF_FFFF)
    assert read(client, CONFIG, 0x10, 4) & 0xFFFF_FFF0 == -size & 0xFFFF_FFF0
    msix = capability(client, 0x11)
    vectors = read(client, CONFIG, msix + 2, 2) + 1
    found = client.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, IrqIndex.MSIX, 0))
    assert found.vectors == vectors
    assert client.ask(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, IrqIndex.INTX, 0)).vectors == 0


def test_writes_to_capabilities(sim: Served) -> None:
    """What is read-only stays, what is not changes."""
    client = sim.client()
    msix = capability(client, 0x11)
    before = read(client, CONFIG, msix, 4)
    write(client, CONFIG, msix, 4, 0xFFFF_FFFF)
    assert read(client, CONFIG, msix, 4) == before | 0xC000_0000
    for kind in (0x10, 0x01):
        at = capability(client, kind)
        header = read(client, CONFIG, at, 2)
        write(client, CONFIG, at, 2, ~header & 0xFFFF)
        assert read(client, CONFIG, at, 2) == header
    power = capability(client, 0x01)
    write(client, CONFIG, power + 4, 2, 3)
    assert read(client, CONFIG, power + 4, 2) & 3 in (0, 3)
    # From the last byte on there is nothing.
    assert client.refused(Command.REGION_WRITE, RegionData(0x1000, CONFIG, 1, b"x")) == "EINVAL"


def test_the_whole_of_every_region_in_any_size(sim: Served) -> None:
    client = sim.client()
    for region in (0, CONFIG):
        size = region_info(client, region, 4096)[0].size
        for count in (1, 2, 4, 8, 3, 4096):
            for offset in (0, size - count):
                found = client.ask(Command.REGION_READ, RegionAccess(offset, region, count))
                assert len(found.data) == count
        got = b"".join(
            client.ask(Command.REGION_READ, RegionAccess(at, region, min(1 << 20, size - at))).data
            for at in range(0, size, 1 << 20)
        )
        assert len(got) == size


@pytest.mark.parametrize("state", [1, 3, 4, 5, 6, 7])
def test_a_reset_through_config_space_is_one(sim: Served, state: int) -> None:
    """Also for the migration: the device is RUNNING, sessions are over (linux/vfio.h)."""
    client = sim.client()
    client.feature(2 | 1 << 17, struct.pack("=Ii", state, -1))
    assert sim.device.state == state
    control = capability(client, 0x10) + 8
    write(client, CONFIG, control, 2, 0x8000)
    assert client.feature(2 | 1 << 16)[:4] == struct.pack("=I", DeviceState.RUNNING)
    assert sim.device.state is DeviceState.RUNNING
    assert client.ask_raw(Command.MIG_DATA_READ, struct.pack("=II", 16, 8))[0] in (
        errno.ENODEV,
        errno.EBADF,
        errno.EINVAL,
    )


def test_reset(client: RawClient, faked: Served, face: FakeFace) -> None:
    client.feature(2 | 1 << 17, struct.pack("=Ii", DeviceState.STOP_COPY, -1))
    assert client.ask(Command.DEVICE_RESET, Empty()) == ()
    assert faked.device.state is DeviceState.RUNNING
    assert face.log == [("reset",)]
    assert client.ask_raw(Command.MIG_DATA_READ, struct.pack("=II", 16, 8))[0] == errno.EINVAL
