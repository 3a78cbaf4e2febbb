"""Connections: bring-up, memory, their end, the next one; and the server's own end."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from precopy.frontends.virtio_pcidev import Server
from tests.frontends.virtio_pcidev.fake_function import FakeFunction
from tests.frontends.virtio_pcidev.front_end import (
    HEADER,
    MMIO_WRITE,
    SIZE,
    START,
    FrontEnd,
    Memory,
    Refused,
    Ring,
)


def count_fds(server: Server) -> int:
    """With one connection to each function open, so that those before have been cleaned up."""
    front_ends = [FrontEnd(path) for path in server.paths]
    try:
        for front_end in front_ends:
            front_end.ask(1)
        return len(os.listdir("/proc/self/fd"))
    finally:
        for front_end in front_ends:
            front_end.close()


def test_several_functions_are_served_beside_each_other(tmp_path: Path) -> None:
    functions = [FakeFunction("pf"), FakeFunction("vf0"), FakeFunction("vf1")]
    for number, function in enumerate(functions):
        function.config[0] = number
    with Server(functions, tmp_path) as server:
        assert [path.name for path in server.paths] == ["pf.sock", "vf0.sock", "vf1.sock"]
        front_ends = [FrontEnd(path) for path in server.paths]
        for front_end in front_ends:
            front_end.bring_up()
        for _ in range(3):
            assert [front_end.config_read(0, 1)[0] for front_end in front_ends] == [0, 1, 2]
        functions[1].msi(5)
        assert [front_end.interrupts() for front_end in front_ends] == [[], [(0xA0000, 5)], []]
        for front_end in front_ends:
            front_end.close()
        assert server.trouble == []


def test_the_kernel_is_told_of_each_function(tmp_path: Path) -> None:
    with Server([FakeFunction("pf"), FakeFunction("vf0")], tmp_path) as server:
        assert server.kernel_arguments == (
            f"virtio_uml.device={tmp_path}/pf.sock:1234",
            f"virtio_uml.device={tmp_path}/vf0.sock:1234",
        )


def test_only_the_owner_may_connect(server: Server) -> None:
    assert stat.S_IMODE(server.paths[0].stat().st_mode) == 0o600


def test_the_function_reaches_the_memory_that_was_shared(
    server: Server, function: FakeFunction
) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.introduce()
        with pytest.raises(OSError, match="EFAULT"):
            function.dma.check(START, 1)
        front_end.share_memory()
        function.dma.write(START + SIZE - 4, b"done")
        assert front_end.memory.read(START + SIZE - 4, 4) == b"done"
        with pytest.raises(OSError, match="EFAULT"):
            function.dma.check(START + SIZE - 1, 2)
        with pytest.raises(OSError, match="EFAULT"):
            function.dma.check(START - 1, 1)


def test_answers_and_interrupts_are_no_dma_of_the_function(
    server: Server, function: FakeFunction
) -> None:
    told: list[tuple[int, int]] = []
    function.dma.listen(lambda address, length: told.append((address, length)))
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        front_end.config_read(0, 4)
        function.msi(1)
    assert told == []


def test_memory_that_starts_inside_a_page_of_its_file(
    server: Server, function: FakeFunction
) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.introduce()
        where = HEADER.pack(1, 0, 0)[:8] + b"".join(
            n.to_bytes(8, "little") for n in (0x1000, 0x100, 0x1000, START + 0x123)
        )
        front_end.tell(5, where, [front_end.memory.fd])
        function.dma.write(0x1000, b"here")
        assert front_end.memory.read(START + 0x123, 4) == b"here"


def test_rings_are_found_by_the_front_ends_own_addresses(
    server: Server, function: FakeFunction
) -> None:
    user = 0x7F0000000000
    with FrontEnd(server.paths[0]) as front_end:
        front_end.introduce()
        table = bytearray(front_end.table())
        table[24:32] = user.to_bytes(8, "little")
        front_end.tell(5, bytes(table), [front_end.memory.fd])
        ring = front_end.rings[0]
        front_end.set_ring(
            0,
            desc=ring.desc - START + user,
            used=ring.used - START + user,
            avail=ring.avail - START + user,
        )
        front_end.enable(0)
        assert front_end.config_read(0x12, 1) == b"\x12"


def test_the_memory_table_is_replaced_while_queues_run(
    server: Server, function: FakeFunction
) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up(buffers=0)
        function.msi(4)
        front_end.config_read(0, 4)
        # The same content elsewhere, and more of it; the rings stay where they are.
        other = Memory(size=2 * SIZE)
        other.write(START, front_end.memory.read(START, SIZE))
        front_end.tell(5, front_end.table(other), [other.fd])
        old = front_end.move(other)
        before = old.read(START, SIZE)
        assert front_end.config_read(4, 4) == bytes([4, 5, 6, 7])
        front_end.leave_buffers(1)
        assert front_end.interrupts() == [(0xA0000, 4)]
        function.dma.write(START + 2 * SIZE - 1, b"!")
        assert other.read(START + 2 * SIZE - 1, 1) == b"!"
        assert old.read(START, SIZE) == before
        old.close()
    assert server.trouble == []


def test_a_guest_that_ends_leaves_a_function_as_after_power_on(
    server: Server, function: FakeFunction
) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        assert function.deliver is not None
        assert function.resets == 0
    with FrontEnd(server.paths[0]) as front_end:
        front_end.introduce()
        assert function.resets == 1
        with pytest.raises(OSError, match="EFAULT"):
            function.dma.check(START, 1)


def test_guests_come_and_go_and_leave_nothing_open(server: Server, function: FakeFunction) -> None:
    before = count_fds(server)
    for number in range(1, 6):
        with FrontEnd(server.paths[0]) as front_end:
            front_end.bring_up()
            front_end.config_write(0x20, bytes([number]))
            assert front_end.config_read(0x20, 1) == bytes([number])
            function.msi(number)
            assert front_end.interrupts() == [(0xA0000, number)]
    assert count_fds(server) == before
    assert server.trouble == []
    assert server.counts["pf"].connections == 7


def test_a_driver_that_is_bound_again_sets_everything_up_again(
    server: Server, function: FakeFunction
) -> None:
    before = count_fds(server)
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        for number in (1, 0):
            front_end.enable(number, False)
        front_end.ask(1)
        front_end.rings = (Ring(front_end.memory, 0), Ring(front_end.memory, 1))
        for ring in front_end.rings:
            front_end.memory.write(ring.desc, bytes(0x8000))
        front_end.bring_up()
        function.msi(3)
        assert front_end.called() == [1]
        assert front_end.interrupts() == [(0xA0000, 3)]
        assert front_end.config_read(1, 1) == b"\1"
    assert count_fds(server) == before
    assert server.trouble == []


def test_a_queue_is_stopped_and_goes_on_where_it_was(
    server: Server, function: FakeFunction
) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        for _ in range(5):
            front_end.config_read(0, 1)
        assert front_end.ask(11, bytes(8)) == (0).to_bytes(4, "little") + (5).to_bytes(4, "little")
        front_end.post(MMIO_WRITE, 0, b"\7")
        front_end.kick(0)
        assert function.bars[0][0] == 0
        front_end.enable(0)
        assert function.bars[0][0] == 7


@pytest.mark.parametrize("sent", [1, 11, 12, 19])
def test_a_connection_that_ends_inside_a_message(
    server: Server, function: FakeFunction, sent: int
) -> None:
    before = count_fds(server)
    kick = HEADER.pack(35, 9, 8) + bytes(8)
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        front_end.send(kick[:sent])
        front_end.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(Refused):
            front_end.receive(1)
    assert server.trouble == ["pf: the connection ended in the middle of a message"]
    assert count_fds(server) == before


def test_a_message_may_come_in_pieces(server: Server) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        for byte in HEADER.pack(35, 9, 8) + bytes(8):
            front_end.send(bytes([byte]))
        front_end._answer(35)
        several = HEADER.pack(1, 1, 0) * 3
        front_end.send(several)
        for _ in range(3):
            front_end._answer(1)
    assert server.trouble == []


def test_the_server_ends_beside_a_guest(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    functions = [FakeFunction("pf"), FakeFunction("vf0"), FakeFunction("vf1")]
    server = Server(functions, tmp_path)
    front_end = FrontEnd(server.paths[0])
    front_end.bring_up()
    half_way = FrontEnd(server.paths[1])
    half_way.introduce()
    server.close()
    with pytest.raises(Refused):
        front_end.kick(0)
    with pytest.raises(Refused):
        half_way.kick(0)
    front_end.close()
    half_way.close()
    assert functions[0].resets == 1
    assert not any(path.exists() for path in server.paths)
    server.close()
    assert server.trouble == []
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_defect_of_a_function_is_told_and_the_next_guest_served(
    server: Server, function: FakeFunction
) -> None:
    def stumble(function: FakeFunction) -> None:
        raise ZeroDivisionError("over\nnothing")

    before = count_fds(server)
    function.after_write = stumble
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        front_end.post(MMIO_WRITE, 0, b"\1")
        with pytest.raises(Refused):
            front_end.kick(0)
    assert len(server.trouble) == 1
    assert server.trouble[0].startswith("pf: defect at test_server.py:")
    assert server.trouble[0].endswith(": ZeroDivisionError: over nothing")
    function.after_write = None
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        assert front_end.config_read(3, 1) == b"\3"
    assert count_fds(server) == before


def test_a_read_of_a_wrong_length_is_a_defect(server: Server, function: FakeFunction) -> None:
    function.config = bytearray(2)
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        with pytest.raises(Refused):
            front_end.config_read(0, 4)
    assert "ValueError: 2 bytes were read where 4 were asked for" in server.trouble[0]


def test_memory_that_the_function_has_already_is_refused(
    server: Server, function: FakeFunction
) -> None:
    taken = bytearray(1)
    function.dma.map(START + 5, memoryview(taken))
    with FrontEnd(server.paths[0]) as front_end:
        front_end.introduce()
        with pytest.raises(Refused):
            front_end.share_memory()
    assert len(server.trouble) == 1
    assert "memory table: DMA range 0x804000+0x400000 overlaps another" in server.trouble[0]
    assert function.dma.read(START + 5, 1) == b"\0"


def test_places_where_it_cannot_listen(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    pf, vf = FakeFunction("pf"), FakeFunction("vf0")
    with pytest.raises(FileNotFoundError, match=r"can't listen at .*nowhere/pf.sock"):
        Server([pf], tmp_path / "nowhere")
    (tmp_path / "vf0.sock").touch()
    with pytest.raises(OSError, match=r"vf0.sock: remove it, or use another directory.*EADDRINUSE"):
        Server([pf, vf], tmp_path)
    assert not (tmp_path / "pf.sock").exists()
    assert (tmp_path / "vf0.sock").exists()
    with pytest.raises(OSError, match="at most 107 bytes: use a shorter directory"):
        Server([FakeFunction("x" * 120)], tmp_path)
    with pytest.raises(OSError, match="functions of the same name: pf, pf"):
        Server([pf, pf], tmp_path)
    for name in ("a:b", "a b", 'a"b'):
        with pytest.raises(OSError, match="command line can't name it"):
            Server([FakeFunction(name)], tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before
