"""Front ends that break the protocol: their connection ends, with a line; the next one is served."""

import os
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from precopy.frontends.virtio_pcidev import Server
from precopy.frontends.virtio_pcidev.messages import Request
from tests.frontends.virtio_pcidev.fake_function import FakeFunction
from tests.frontends.virtio_pcidev.front_end import (
    ACCESS,
    CFG_READ,
    CFG_WRITE,
    ENTRIES,
    HEADER,
    MMIO_READ,
    MMIO_WRITE,
    NEXT,
    SIZE,
    START,
    FrontEnd,
    Refused,
)
from tests.frontends.virtio_pcidev.test_server import count_fds

Break = Callable[[FrontEnd], object]


@pytest.fixture
def watched(server: Server) -> Iterator[Server]:
    """A server that must have as many descriptors open afterwards, and still serve."""
    before = count_fds(server)
    yield server
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        assert front_end.config_read(0x33, 1) == b"\x33"
    assert count_fds(server) == before


def refused(server: Server, text: str, prepare: Break, break_: Break) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        prepare(front_end)
        front_end.until_refused(break_)
    assert len(server.trouble) == 1
    assert text in server.trouble[0]
    assert "\n" not in server.trouble[0]


def nothing(front_end: FrontEnd) -> None:
    pass


def raw(request: int, flags: int, size: int) -> Break:
    return lambda front_end: front_end.send(HEADER.pack(request, flags, size))


def table(*regions: tuple[int, int, int, int], fds: int = 1) -> Break:
    payload = struct.pack("<II", len(regions), 0) + b"".join(
        struct.pack("<QQQQ", *region) for region in regions
    )
    return lambda front_end: front_end.tell(5, payload, [front_end.memory.fd] * fds)


@pytest.mark.parametrize(
    ("break_", "text"),
    [
        (raw(1, 0, 0), "GET_FEATURES has flags 0x0"),
        (raw(1, 2, 0), "GET_FEATURES has flags 0x2"),
        (raw(1, 5, 0), "GET_FEATURES has flags 0x5"),
        (raw(1, 1, 8), "GET_FEATURES comes with 8 bytes, not 0 to 0"),
        (raw(2, 1, 0xFFFFFFFF), "SET_FEATURES comes with 4294967295 bytes"),
        (raw(5, 1, 8 + 9 * 32), "SET_MEM_TABLE comes with 296 bytes, not 8 to 264"),
        (raw(12, 1, 8), "request 12 is none that is spoken here"),
        (raw(0xFFFFFFFF, 1, 0), "request 4294967295 is none"),
        (lambda f: f.tell(2, bytes(8)), "features 0x0 are chosen, all of 0x140000000"),
        (lambda f: f.tell(2, b"\xff" * 8), "features 0xffffffffffffffff are chosen"),
        (lambda f: f.tell(16, bytes(8)), "protocol features 0x0 are chosen, all of 0x4028"),
        (lambda f: f.tell(21), "SET_SLAVE_REQ_FD comes with 0 file descriptors, not 1"),
        (
            lambda f: f.tell(21, fds=[f.calls.fileno()] * 2),
            "SET_SLAVE_REQ_FD comes with 2 file descriptors, not 1",
        ),
        (lambda f: f.tell(21, fds=[f.memory.fd]), "the channel for calls is no socket"),
        (
            lambda f: f.ask(1, fds=[f.memory.fd]),
            "GET_FEATURES comes with 1 file descriptors, not 0",
        ),
        (
            lambda f: f.ask(1, fds=[f.memory.fd] * 9),
            "GET_FEATURES comes with 9 file descriptors, not 0",
        ),
        (lambda f: f.ask(1, fds=[f.memory.fd] * 100), "more file descriptors come than any"),
        (table((0, 4096, 0, 0), fds=0), "SET_MEM_TABLE comes with 0 file descriptors, not 1"),
        (table((0, 4096, 0, 0), fds=2), "SET_MEM_TABLE comes with 2 file descriptors, not 1"),
        (
            table((0, 4096, 0, 0), (8192, 4096, 0, 0), fds=1),
            "SET_MEM_TABLE comes with 1 file descriptors, not 2",
        ),
        (
            lambda f: f.tell(5, f.table() + bytes(8), [f.memory.fd]),
            "a memory table of 1 regions does not fit 48 bytes",
        ),
        (
            table((0, 8192, 0, 0), (4096, 4096, 0, 0), fds=2),
            "DMA range 0x1000+0x1000 overlaps another",
        ),
        (table(((1 << 64) - 4096, 8192, 0, 0)), "overlaps another"),
        (table((0, 0, 0, 0)), "region 0x0+0x0 at 0x0 of a file of 0xc04000 bytes"),
        (table((0, SIZE, 0, START + 1)), "at 0x804001 of a file of 0xc04000 bytes"),
        (table((0, 1 << 63, 0, 0)), "of a file of 0xc04000 bytes"),
        (table((0, 4096, 0, (1 << 64) - 4096)), "of a file of 0xc04000 bytes"),
        (lambda f: f.tell(5, f.table(), [f.calls.fileno()]), "its memory is no file"),
        (lambda f: f.enable(0), "queue 0 is enabled before its memory and rings are known"),
        (lambda f: f.enable(2), "SET_VRING_ENABLE for queue 2 of 2"),
        (lambda f: f.kick(0x80000000), "VRING_KICK for queue 2147483648 of 2"),
        (lambda f: f.tell(8, struct.pack("<II", 2, 16)), "SET_VRING_NUM for queue 2 of 2"),
        (
            lambda f: f.tell(9, struct.pack("<IIQQQQ", 7, 0, 0, 0, 0, 0)),
            "SET_VRING_ADDR for queue 7 of 2",
        ),
    ],
)
def test_messages(watched: Server, break_: Break, text: str) -> None:
    refused(watched, text, nothing, break_)


def test_a_channel_that_is_no_unix_socket(watched: Server) -> None:
    with socket.socket(socket.AF_INET) as other:
        refused(
            watched,
            "the channel for calls is no unix socket",
            nothing,
            lambda front_end: front_end.tell(21, fds=[other.fileno()]),
        )


def test_memory_that_cannot_be_written(watched: Server, tmp_path: Path) -> None:
    path = tmp_path / "memory"
    path.write_bytes(bytes(START + SIZE))
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        refused(
            watched,
            "region 0x804000+0x400000 can't be mapped",
            nothing,
            lambda front_end: front_end.tell(5, front_end.table(), [handle]),
        )
    finally:
        os.close(handle)


def with_memory(front_end: FrontEnd) -> None:
    front_end.introduce()
    front_end.share_memory()


def rings(entries: int = ENTRIES, **addresses: int) -> Break:
    def set_up(front_end: FrontEnd) -> None:
        front_end.set_ring(0, entries, **addresses)
        front_end.enable(0)

    return set_up


@pytest.mark.parametrize(
    ("break_", "text"),
    [
        (rings(entries=0), "a queue of 0 entries"),
        (rings(entries=100), "a queue of 100 entries"),
        (rings(entries=1 << 16), "a queue of 65536 entries"),
        (rings(desc=START + SIZE), "address 0xc04000 is in no region"),
        (rings(desc=START + SIZE - 16), "the rings of a queue are not in memory"),
        (rings(avail=START + SIZE - 16), "the rings of a queue are not in memory"),
        (rings(used=START + SIZE - 16), "the rings of a queue are not in memory"),
        (rings(used=START - 4), "address 0x803ffc is in no region"),
        (rings(avail=START + 1), "are not aligned"),
    ],
)
def test_rings(watched: Server, break_: Break, text: str) -> None:
    refused(watched, text, with_memory, break_)


def access(*parts: bytes, room: int = 0) -> Break:
    def ask(front_end: FrontEnd) -> None:
        front_end.rings[0].add(list(parts), [room] if room else [])
        front_end.kick(0)

    return ask


def jump(front_end: FrontEnd) -> None:
    for _ in range(ENTRIES + 1):
        front_end.rings[0].publish(0)
    front_end.kick(0)


def loop(front_end: FrontEnd) -> None:
    front_end.rings[0].describe(0, START, 4, NEXT, 0)
    front_end.rings[0].publish(0)
    front_end.kick(0)


def shrink(front_end: FrontEnd) -> None:
    """Rings that no longer are in the memory, while the queue runs."""
    payload = struct.pack("<IIQQQQ", 1, 0, START, 4096, START, START)
    front_end.tell(5, payload, [front_end.memory.fd])


def resize(front_end: FrontEnd) -> None:
    front_end.tell(8, struct.pack("<II", 0, 128))


@pytest.mark.parametrize(
    ("break_", "text"),
    [
        (access(b"", room=4), "an access of 0 bytes, shorter than its header"),
        (access(ACCESS.pack(CFG_READ, 0, 0, 4, 0)[:15], room=4), "an access of 15 bytes"),
        (access(ACCESS.pack(CFG_READ, 0, 0, 4, 0)), "a read of 4 bytes with room for 0"),
        (access(ACCESS.pack(CFG_READ, 0, 0, 4, 0), room=3), "a read of 4 bytes with room for 3"),
        (access(ACCESS.pack(CFG_READ, 0, 0, 3, 0), room=8), "a read of 3 bytes of config space"),
        (access(ACCESS.pack(MMIO_READ, 0, 0, 1 << 25, 0), room=8), "an access to 33554432 bytes"),
        (access(ACCESS.pack(MMIO_READ, 0, 0, 9, 0), room=8), "a read of 9 bytes with room for 8"),
        (access(ACCESS.pack(CFG_WRITE, 0, 0, 4, 0) + b"123"), "a write of 4 bytes comes with 3"),
        (access(ACCESS.pack(MMIO_WRITE, 0, 0, 5, 0), b"1234"), "a write of 5 bytes comes with 4"),
        (access(ACCESS.pack(5, 0, 0, 4, 0)), "a write of 1 bytes comes with 0"),
        (access(ACCESS.pack(0, 0, 0, 4, 0)), "operation 0 is none of virtio-pcidev"),
        (access(ACCESS.pack(7, 0, 0, 4, 0) + b"1234"), "operation 7 is none of virtio-pcidev"),
        (jump, "257 requests are available in a queue of 256 entries"),
        (loop, "the chain from descriptor 0 has no end"),
        (shrink, "is in no region"),
        (resize, "queue 0 is changed while it is enabled"),
    ],
)
def test_queues(watched: Server, break_: Break, text: str) -> None:
    refused(watched, text, FrontEnd.bring_up, break_)


def test_a_buffer_for_interrupts_that_is_too_small(watched: Server, function: FakeFunction) -> None:
    """Found by the thread that delivers, whose business it is not."""

    def deliver(front_end: FrontEnd) -> None:
        front_end.rings[1].add([], [19])
        front_end.kick(1)
        function.msi(1)
        function.msi(2)

    text = "20 bytes are to be answered into room for 19"
    refused(watched, text, lambda front_end: front_end.bring_up(buffers=0), deliver)


def test_interrupts_that_wait_find_a_buffer_too_small(
    watched: Server, function: FakeFunction
) -> None:
    def leave(front_end: FrontEnd) -> None:
        function.msi(1)
        front_end.rings[1].add([b"not for writing"])
        front_end.kick(1)

    text = "20 bytes are to be answered into room for 0"
    refused(watched, text, lambda front_end: front_end.bring_up(buffers=0), leave)


MESSAGE = st.tuples(
    st.one_of(st.sampled_from(list(Request)).map(int), st.integers(0, 50)),
    st.sampled_from([1, 1, 1, 9, 9, 9, 0, 5]),
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from([0, 8, 40, 72]).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
        st.tuples(st.integers(0, 2), st.integers(0, 300)).map(lambda v: struct.pack("<II", *v)),
        st.just(struct.pack("<IIQQQQ", 1, 0, START, SIZE, START, START)),
    ),
    st.sampled_from([0, 0, 0, 1, 1, 2, 9]),
)


def look_for_life(server: Server, before: int) -> None:
    with FrontEnd(server.paths[0]) as front_end:
        front_end.bring_up()
        assert front_end.config_read(0x33, 1) == b"\x33"
    assert count_fds(server) == before
    assert not [line for line in server.trouble if "defect" in line or "\n" in line]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(MESSAGE, max_size=12), st.booleans(), st.binary(max_size=40))
def test_any_messages(
    messages: list[tuple[int, int, bytes, int]], set_up: bool, rest: bytes
) -> None:
    with tempfile.TemporaryDirectory() as directory, Server([FakeFunction()], Path(directory)) as s:
        before = count_fds(s)
        with FrontEnd(s.paths[0]) as front_end:
            if set_up:
                front_end.bring_up()
            try:
                for request, flags, payload, fds in messages:
                    handle = front_end.calls if request == 21 else front_end.memory
                    number = handle.fd if hasattr(handle, "fd") else handle.fileno()
                    front_end.send(
                        HEADER.pack(request, flags, len(payload)) + payload, [number] * fds
                    )
                front_end.send(rest)
            except Refused:
                pass
            else:
                front_end.socket.shutdown(socket.SHUT_WR)
                front_end.until_refused()
        look_for_life(s, before)


WORD = st.one_of(
    st.integers(0, ENTRIES + 1), st.sampled_from([0x7FFF, 0xFFFF]), st.integers(0, 0xFFFF)
)
DESCRIPTOR = st.tuples(
    st.one_of(st.integers(START, START + SIZE), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 64), st.integers(0, 0xFFFFFFFF)),
    st.one_of(st.sampled_from([0, NEXT, 2, NEXT | 2]), WORD),
    st.integers(0, 8) | WORD,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(DESCRIPTOR, min_size=9, max_size=9),
    st.lists(st.integers(0, 8) | WORD, max_size=20),
    st.one_of(st.integers(0, 20), WORD),
    st.sampled_from([0, 1]),
    st.binary(min_size=32, max_size=32),
)
def test_any_content_of_the_rings(
    descriptors: list[tuple[int, int, int, int]],
    heads: list[int],
    index: int,
    number: int,
    content: bytes,
) -> None:
    function = FakeFunction()
    with tempfile.TemporaryDirectory() as directory, Server([function], Path(directory)) as s:
        before = count_fds(s)
        with FrontEnd(s.paths[0]) as front_end:
            front_end.bring_up(buffers=0)
            ring, memory = front_end.rings[number], front_end.memory
            memory.write(START + SIZE - 64, content + content)
            for place, descriptor in enumerate(descriptors):
                ring.describe(place, *descriptor)
            memory.write(ring.avail + 4, struct.pack(f"<{len(heads)}H", *heads))
            memory.write(ring.avail + 2, struct.pack("<H", index))
            function.msi(1)
            try:
                front_end.kick(number)
                front_end.kick(number)
            except Refused:
                assert len(s.trouble) == 1
            function.msi(2)
        look_for_life(s, before)
