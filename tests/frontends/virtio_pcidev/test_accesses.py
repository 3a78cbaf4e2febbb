"""What the driver asks of a function: config space, BARs, and in which order."""

from collections.abc import Iterator

import pytest

from precopy.frontends.virtio_pcidev import Server
from tests.frontends.virtio_pcidev.fake_function import FakeFunction
from tests.frontends.virtio_pcidev.front_end import (
    ACCESS,
    CFG_WRITE,
    MMIO_MEMSET,
    MMIO_READ,
    MMIO_WRITE,
    FrontEnd,
)


@pytest.fixture
def front_end(server: Server) -> Iterator[FrontEnd]:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        yield front_end
        assert server.trouble == []


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_config_space(front_end: FrontEnd, function: FakeFunction, size: int) -> None:
    assert front_end.config_read(0x40, size) == bytes(range(0x40, 0x40 + size))
    assert front_end.config_read(4096 - size, size) == bytes(range(256 - size, 256))
    data = bytes(range(1, 1 + size))
    front_end.config_write(0x80, data)
    assert function.config[0x80 : 0x80 + size] == data
    assert function.config[0x80 + size] == 0x80 + size
    assert ("config_write", 0x80, data) in function.done


def test_config_space_ends(front_end: FrontEnd, function: FakeFunction) -> None:
    before = bytes(function.config)
    assert front_end.config_read(4094, 4) == b"\xff" * 4
    front_end.config_write(4096, b"\1")
    assert function.config == before
    assert function.done == []


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 9, 64, 1000, 4096])
@pytest.mark.parametrize("bar", [0, 2])
def test_bars(front_end: FrontEnd, function: FakeFunction, bar: int, size: int) -> None:
    data = bytes((7 * n + bar) & 0xFF for n in range(size))
    front_end.bar_write(bar, 4096 - size, data)
    assert function.bars[bar][4096 - size :] == data
    assert front_end.bar_read(bar, 4096 - size, size) == data
    assert function.done == [
        ("bar_write", bar, 4096 - size, data),
        ("bar_read", bar, 4096 - size, size),
    ]


def test_a_read_over_several_buffers(front_end: FrontEnd) -> None:
    assert front_end.bar_read(0, 0, 3 * 4096 + 5) == bytes(4096) + b"\xff" * (2 * 4096 + 5)


def test_a_bar_that_is_not_there_reads_as_ones(front_end: FrontEnd, function: FakeFunction) -> None:
    front_end.bar_write(200, 0, b"12345678")
    assert front_end.bar_read(200, 0, 8) == b"\xff" * 8
    assert front_end.bar_read(5, 0, 4) == b"\xff" * 4
    assert function.done == []


def test_memset(front_end: FrontEnd, function: FakeFunction) -> None:
    front_end.rings[0].add([ACCESS.pack(MMIO_MEMSET, 2, 0, 100, 8) + b"\xab"])
    front_end.kick(0)
    assert function.done == [("bar_write", 2, 8, b"\xab" * 100)]


@pytest.mark.parametrize(("bar", "size"), [(2, 4), (0, 100), (0, 3)])
def test_memset_as_the_kernel_sends_it(
    front_end: FrontEnd, function: FakeFunction, bar: int, size: int
) -> None:
    """memset_io() comes with the operation of a write to config space, and padding."""
    front_end.rings[0].add([ACCESS.pack(CFG_WRITE, bar, 0, size, 8) + b"\xab" + b"\xee" * 7])
    front_end.kick(0)
    assert function.done == [("bar_write", bar, 8, b"\xab" * size)]


def test_accesses_take_effect_in_the_order_in_which_they_were_queued(
    front_end: FrontEnd, function: FakeFunction
) -> None:
    ring = front_end.rings[0]
    reads = []
    for n in range(20):
        front_end.post(MMIO_WRITE, 16, bytes([n]))
        reads.append(ring.add([ACCESS.pack(MMIO_READ, 0, 0, 1, 16)], [1]))
    assert function.done == []
    front_end.kick(0)
    taken = [ring.take() for _ in range(40)]
    assert taken[1::2] == [(head, bytes([n])) for n, head in enumerate(reads)]
    assert ring.take() is None
    assert [each[0] for each in function.done] == ["bar_write", "bar_read"] * 20


def test_a_kick_is_acknowledged_when_its_writes_have_taken_effect(
    front_end: FrontEnd, function: FakeFunction
) -> None:
    for n in range(1, 200):
        front_end.post(MMIO_WRITE, 0, n.to_bytes(4, "little"))
        front_end.kick(0)
        assert function.bars[0][:4] == n.to_bytes(4, "little")
        front_end.reclaim()


def test_posted_writes_are_called_for_now_and_then(front_end: FrontEnd) -> None:
    """So that the driver, which has 20 buffers for them, can take those that are done."""
    outstanding = most = calls = 0
    for n in range(100):
        front_end.post(MMIO_WRITE, 0, n.to_bytes(4, "little"))
        front_end.kick(0)
        outstanding += 1
        most = max(most, outstanding)
        if front_end.called():
            calls += 1
            outstanding -= front_end.reclaim()
            assert outstanding == 0
    assert most < 20
    assert 5 <= calls <= 20


def test_a_driver_that_does_not_listen_is_not_called_again_and_again(front_end: FrontEnd) -> None:
    """With its interrupts off it would find the socket full, and a device waiting for it."""
    for n in range(2000):
        front_end.post(MMIO_WRITE, 0, n.to_bytes(4, "little"))
        front_end.kick(0)
        front_end.reclaim()
    assert front_end.called() == [0]
    for n in range(20):
        front_end.post(MMIO_WRITE, 0, n.to_bytes(4, "little"))
        front_end.kick(0)
    assert front_end.called() == [0]


def test_reads_are_not_called_for(front_end: FrontEnd) -> None:
    for _ in range(50):
        front_end.config_read(0, 4)
    assert front_end.called() == []


def test_what_was_queued_before_the_queue_was_enabled_is_carried_out_then(
    server: Server, function: FakeFunction
) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.introduce()
        front_end.share_memory()
        front_end.set_ring(0)
        front_end.post(MMIO_WRITE, 4, b"\1")
        front_end.kick(0)
        assert function.done == []
        front_end.enable(0)
        assert function.done == [("bar_write", 0, 4, b"\1")]
        front_end.enable(0)
        assert len(function.done) == 1
        front_end.enable(0, False)
        front_end.post(MMIO_WRITE, 4, b"\2")
        front_end.kick(0)
        assert len(function.done) == 1
        front_end.enable(0)
        assert function.done[1:] == [("bar_write", 0, 4, b"\2")]
    assert server.trouble == []


def test_what_is_served_is_counted(server: Server, front_end: FrontEnd) -> None:
    counts = server.counts["pf"]
    before = counts.accesses, counts.requests
    for _ in range(10):
        front_end.config_read(0, 4)
    front_end.ask(1)
    assert (counts.accesses - before[0], counts.requests - before[1]) == (10, 11)
