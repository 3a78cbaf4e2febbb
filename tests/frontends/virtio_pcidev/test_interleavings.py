"""Whatever a driver queues, kicks and takes back, in any order: each read gets its own answer."""

import tempfile
from collections import deque
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from precopy.frontends.virtio_pcidev import Server
from tests.frontends.virtio_pcidev.fake_function import BAR_SIZE, FakeFunction
from tests.frontends.virtio_pcidev.front_end import (
    ACCESS,
    CFG_READ,
    CFG_WRITE,
    MMIO_READ,
    MMIO_WRITE,
    PAGE,
    FrontEnd,
)

BARS = st.sampled_from([0, 2])
OFFSETS = st.integers(0, 32)


class Driver(RuleBasedStateMachine):
    """A driver, and what the function's memory must be for all that it has kicked."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.function = FakeFunction()
        self.server = Server([self.function], Path(self.directory.name))
        self.front_end = FrontEnd(self.server.paths[0])
        self.front_end.bring_up(buffers=0)
        self.memory = {0: bytearray(BAR_SIZE), 2: bytearray(BAR_SIZE), -1: bytearray(4096)}
        self.memory[-1][:] = self.function.config
        #: What is queued: head, where, offset, and what is written, or how much is read.
        self.queued: list[tuple[int, int, int, bytes | int]] = []
        #: What is done and has not been taken back: head and answer.
        self.done: deque[tuple[int, bytes]] = deque()
        self.buffers = 0
        self.waiting: dict[int, None] = {}
        self.delivered: deque[int] = deque()

    def teardown(self) -> None:
        self.front_end.close()
        self.server.close()
        self.directory.cleanup()
        assert self.server.trouble == []

    def _has_room(self) -> bool:
        return self.front_end.rings[0].in_flight < 40

    @precondition(_has_room)
    @rule(bar=BARS, offset=OFFSETS, data=st.binary(min_size=1, max_size=24), apart=st.booleans())
    def write(self, bar: int, offset: int, data: bytes, apart: bool) -> None:
        header = ACCESS.pack(MMIO_WRITE, bar, 0, len(data), offset)
        head = self.front_end.rings[0].add([header, data] if apart else [header + data])
        self.queued.append((head, bar, offset, data))

    @precondition(_has_room)
    @rule(bar=BARS, offset=OFFSETS, size=st.integers(1, 24) | st.just(PAGE + 3))
    def read(self, bar: int, offset: int, size: int) -> None:
        room = [size] if size <= PAGE else [PAGE, size - PAGE]
        header = ACCESS.pack(MMIO_READ, bar, 0, size, offset)
        head = self.front_end.rings[0].add([header], room)
        self.queued.append((head, bar, offset, size))

    @precondition(_has_room)
    @rule(offset=OFFSETS, size=st.sampled_from([1, 2, 4, 8]))
    def config_read(self, offset: int, size: int) -> None:
        head = self.front_end.rings[0].add([ACCESS.pack(CFG_READ, 0, 0, size, offset)], [8])
        self.queued.append((head, -1, offset, size))

    @precondition(_has_room)
    @rule(offset=OFFSETS, data=st.sampled_from([b"1", b"12", b"1234", b"12345678"]))
    def config_write(self, offset: int, data: bytes) -> None:
        header = ACCESS.pack(CFG_WRITE, 0, 0, len(data), offset)
        head = self.front_end.rings[0].add([header + data.ljust(8, b"?")])
        self.queued.append((head, -1, offset, data))

    @rule()
    def kick(self) -> None:
        self.front_end.kick(0)
        for head, where, offset, what in self.queued:
            memory = self.memory[where]
            if isinstance(what, bytes):
                memory[offset : offset + len(what)] = what
                self.done.append((head, b""))
            else:
                answer = bytes(memory[offset : offset + what]).ljust(what, b"\xff")
                self.done.append((head, answer))
        self.queued.clear()

    @rule(count=st.integers(1, 20))
    def take(self, count: int) -> None:
        for _ in range(min(count, len(self.done))):
            assert self.front_end.rings[0].take() == self.done.popleft()
        if not self.done:
            assert self.front_end.rings[0].take() is None

    @rule(vector=st.integers(0, 5))
    def msi(self, vector: int) -> None:
        self.function.msi(vector)
        self.waiting[vector] = None
        self._deliver()

    @precondition(lambda self: self.front_end.rings[1].in_flight < 100)
    @rule(count=st.integers(1, 4))
    def leave_buffers(self, count: int) -> None:
        self.front_end.leave_buffers(count)
        self.buffers += count
        self._deliver()

    def _deliver(self) -> None:
        while self.buffers and self.waiting:
            vector = next(iter(self.waiting))
            del self.waiting[vector]
            self.delivered.append(vector)
            self.buffers -= 1

    @rule()
    def take_interrupts(self) -> None:
        new = bool(self.delivered)
        assert self.front_end.interrupts() == [(0xA0000, vector) for vector in self.delivered]
        self.delivered.clear()
        if new:
            assert 1 in self.front_end.called()

    @invariant()
    def nothing_went_wrong(self) -> None:
        assert self.server.trouble == []


Driver.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestDriver = Driver.TestCase
