"""Buffers and the pool in which they wait."""

import errno

import pytest

from precopy.mlx5.buffers import BufferPool, DataBuffer, Direction, pages_for
from precopy.mlx5.commands import Commands
from precopy.mlx5_abi.commands import Opcode
from tests.mlx5.fake_firmware import FakeFirmware

FROM, TO = Direction.FROM_DEVICE, Direction.TO_DEVICE


@pytest.fixture
def firmware() -> FakeFirmware:
    return FakeFirmware()


@pytest.fixture
def pool(firmware: FakeFirmware) -> BufferPool:
    return BufferPool(Commands(firmware))


def test_pages() -> None:
    assert [pages_for(size) for size in (0, 1, 4096, 4097, 8192)] == [0, 1, 1, 2, 2]


def test_a_buffer_is_memory_that_the_firmware_reaches_by_its_key(
    firmware: FakeFirmware, pool: BufferPool
) -> None:
    buffer = pool.new(3, FROM)
    assert (buffer.size, len(buffer.view)) == (12288, 12288)
    address, length = firmware.keys[buffer.mkey >> 8]
    assert length == 12288
    firmware.dma.write(address + 5000, b"from the device")
    assert bytes(buffer.view[5000:5015]) == b"from the device"
    buffer.free()
    assert not firmware.keys
    assert not firmware.dma.mapped


def test_the_first_large_enough_buffer_is_taken_and_smaller_ones_before_it_are_freed(
    firmware: FakeFirmware, pool: BufferPool
) -> None:
    small, other, large, larger = (
        pool.new(pages, way) for pages, way in ((1, FROM), (9, TO), (4, FROM), (8, FROM))
    )
    for buffer in (small, other, large, larger):
        pool.put(buffer)
    firmware.take_log()
    assert pool.get(4, FROM) is large
    assert firmware.take_log() == ["DESTROY_MKEY 1"]
    # Those behind it, and those of the other direction, wait on.
    assert pool.get(9, TO) is other
    assert pool.get(1, FROM) is larger
    for buffer in (large, larger, other):
        buffer.free()


def test_a_new_buffer_where_none_waits_that_is_large_enough(
    firmware: FakeFirmware, pool: BufferPool
) -> None:
    for pages in (1, 2):
        pool.put(pool.new(pages, FROM))
    firmware.take_log()
    # The new one is there before the old ones go: a failure leaves what there was to be freed.
    assert pool.get(3, FROM).pages == 3
    assert firmware.take_log() == ["CREATE_MKEY 3", "DESTROY_MKEY 2", "DESTROY_MKEY 1"]


def test_a_buffer_that_waits_is_an_ordinary_one(pool: BufferPool) -> None:
    buffer = pool.new(1, FROM)
    buffer.chunk, buffer.initial = 2, True
    pool.put(buffer)
    assert (buffer.chunk, buffer.initial) == (0, False)


def test_no_buffer_without_a_page(pool: BufferPool) -> None:
    for pages in (0, -1):
        with pytest.raises(OSError, match="at least one page") as caught:
            pool.new(pages, FROM)
        assert caught.value.errno == errno.EINVAL


def test_no_room_is_enomem(firmware: FakeFirmware, pool: BufferPool) -> None:
    for pages in (1 << 48, 1 << 60):
        with pytest.raises(OSError, match="no room for a buffer") as caught:
            pool.new(pages, FROM)
        assert caught.value.errno == errno.ENOMEM
    assert not firmware.dma.mapped


def test_a_key_that_is_refused_leaves_nothing_mapped(
    firmware: FakeFirmware, pool: BufferPool
) -> None:
    firmware.fail(Opcode.CREATE_MKEY, 1, 8)
    with pytest.raises(OSError, match="CREATE_MKEY"):
        pool.new(1, FROM)
    assert not firmware.dma.mapped


def test_closing_frees_all_of_it_and_the_domain_at_last_once(
    firmware: FakeFirmware, pool: BufferPool
) -> None:
    reserved, waiting, queued = (pool.new(1, FROM) for _ in range(3))
    pool.put(waiting)
    firmware.take_log()
    for _ in range(2):
        pool.close([reserved], [queued])
    assert firmware.take_log() == [*["DESTROY_MKEY 1"] * 3, "DEALLOC_PD"]
    assert not firmware.dma.mapped


@pytest.mark.parametrize("opcode", [Opcode.DESTROY_MKEY, Opcode.DEALLOC_PD])
def test_firmware_that_keeps_a_key_does_not_keep_the_rest(
    firmware: FakeFirmware, pool: BufferPool, opcode: Opcode
) -> None:
    buffers = [pool.new(1, FROM) for _ in range(2)]
    firmware.fail(opcode, 1, 1)
    pool.close(buffers, [])
    assert len(firmware.keys) == (opcode is Opcode.DESTROY_MKEY)
    assert len(firmware.pds) == (opcode is Opcode.DEALLOC_PD)
    assert not firmware.dma.mapped


def test_a_detached_vf_is_asked_nothing(firmware: FakeFirmware) -> None:
    commands = Commands(firmware)
    pool = BufferPool(commands)
    buffer = pool.new(1, FROM)
    commands.detached = True
    firmware.take_log()
    pool.close([buffer], [])
    assert firmware.take_log() == []
    assert not firmware.dma.mapped


def test_buffers_of_several_files_do_not_meet(firmware: FakeFirmware) -> None:
    commands = Commands(firmware)
    buffers = [DataBuffer(commands, BufferPool(commands).pd, 1, FROM) for _ in range(4)]
    assert len({firmware.keys[buffer.mkey >> 8] for buffer in buffers}) == 4
    for buffer in buffers:
        buffer.free()
