"""MSIs, into the buffers that the driver leaves."""

import threading
from collections.abc import Iterator

import pytest

from precopy.frontends.virtio_pcidev import Server
from tests.frontends.virtio_pcidev.fake_function import FakeFunction
from tests.frontends.virtio_pcidev.front_end import MMIO_WRITE, FrontEnd


@pytest.fixture
def front_end(server: Server) -> Iterator[FrontEnd]:
    with FrontEnd(server.paths[0]) as front_end:
        yield front_end
        assert server.trouble == []


def test_an_msi_comes_with_a_call(front_end: FrontEnd, function: FakeFunction) -> None:
    front_end.bring_up()
    function.msi(130)
    function.msi(0xFFFFFFFF, address=0xFEE00000_12345678)
    assert front_end.called() == [1, 1]
    assert front_end.interrupts() == [(0xA0000, 130), (0xFEE00000_12345678, 0xFFFFFFFF)]


def test_an_msi_that_a_write_causes_is_there_when_its_kick_is_acknowledged(
    front_end: FrontEnd, function: FakeFunction
) -> None:
    front_end.bring_up()
    function.after_write = lambda function: function.msi(131)
    front_end.post(MMIO_WRITE, 0, b"\1")
    front_end.kick(0)
    assert front_end.called() == [1]
    assert front_end.interrupts() == [(0xA0000, 131)]


def test_msis_wait_for_buffers_in_their_order(front_end: FrontEnd, function: FakeFunction) -> None:
    front_end.bring_up(buffers=2)
    for vector in range(6):
        function.msi(vector)
    assert [data for _, data in front_end.interrupts()] == [0, 1]
    front_end.called()
    front_end.leave_buffers(1)
    assert front_end.called() == [1]
    assert [data for _, data in front_end.interrupts()] == [2]
    front_end.leave_buffers(10)
    assert front_end.called() == [1]
    assert [data for _, data in front_end.interrupts()] == [3, 4, 5]
    function.msi(6)
    assert [data for _, data in front_end.interrupts()] == [6]


def test_the_same_msi_waits_once(front_end: FrontEnd, function: FakeFunction) -> None:
    front_end.bring_up(buffers=1)
    for vector in (1, 2, 3, 2, 3, 1):
        function.msi(vector)
    front_end.leave_buffers(10)
    assert [data for _, data in front_end.interrupts()] == [1, 2, 3, 1]


def test_a_driver_that_does_not_listen_for_long_gets_its_last_call(
    front_end: FrontEnd, function: FakeFunction
) -> None:
    """More calls than the socket has room for: the device never waits, and one is enough."""
    front_end.bring_up(buffers=0)
    for n in range(3000):
        front_end.rings[1].add([], [20])
        front_end.kick(1)
        function.msi(n)
        assert front_end.interrupts() == [(0xA0000, n)]
    calls = front_end.called()
    assert set(calls) == {1}
    assert len(calls) < 3000
    front_end.leave_buffers(1)
    function.msi(7)
    assert front_end.called() == [1]


def test_msis_before_the_queue_is_there_wait_for_it(
    front_end: FrontEnd, function: FakeFunction
) -> None:
    front_end.introduce()
    function.msi(9)
    front_end.share_memory()
    front_end.set_ring(1)
    front_end.enable(1)
    front_end.leave_buffers(1)
    assert front_end.interrupts() == [(0xA0000, 9)]


def test_a_disabled_queue_gets_none(front_end: FrontEnd, function: FakeFunction) -> None:
    front_end.bring_up()
    front_end.enable(1, False)
    function.msi(9)
    assert front_end.interrupts() == []
    front_end.enable(1)
    assert front_end.interrupts() == [(0xA0000, 9)]


def test_msis_of_a_driver_that_went_away_are_forgotten(
    front_end: FrontEnd, function: FakeFunction
) -> None:
    front_end.bring_up(buffers=0)
    function.msi(9)
    front_end.enable(1, False)
    front_end.enable(1)
    front_end.leave_buffers(1)
    assert front_end.interrupts() == []


def test_msis_from_many_threads_beside_accesses(
    server: Server, front_end: FrontEnd, function: FakeFunction
) -> None:
    """Each arrives exactly once; those of a thread in its order."""
    each, threads = 60, 4
    front_end.bring_up(buffers=240)
    start = threading.Barrier(threads + 1)

    def deliver(first: int) -> None:
        start.wait()
        for n in range(each):
            function.msi(first + n)

    running = [threading.Thread(target=deliver, args=(1000 * k,)) for k in range(threads)]
    for thread in running:
        thread.start()
    start.wait()
    got: list[int] = []
    while len(got) < each * threads:
        assert front_end.config_read(0x10, 1) == b"\x10"
        got += [data for _, data in front_end.interrupts()]
    for thread in running:
        thread.join()
    for k in range(threads):
        assert [data for data in got if data // 1000 == k] == list(range(1000 * k, 1000 * k + each))
    assert front_end.interrupts() == []
    # One or more for each look: never none for an MSI.
    assert set(front_end.called()) == {1}
    assert server.counts["pf"].interrupts == each * threads


def test_without_a_front_end_msis_go_nowhere(server: Server, function: FakeFunction) -> None:
    function.msi(1)
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
    assert function.was_reset.wait(30)
    function.msi(2)
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        assert front_end.interrupts() == []
    assert server.trouble == []
