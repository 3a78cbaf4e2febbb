"""A front end as User-Mode Linux is one: memory, two virtqueues, and a driver of the device."""

import array
import mmap
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

HEADER = struct.Struct("<III")
ACCESS = struct.Struct("<BBHIQ")
DESC = struct.Struct("<QIHH")
NEXT, WRITE = 1, 2
ENTRIES = 256

#: Where the memory of the guest starts, in its file too: what is below is the kernel's image.
START = 0x804000
SIZE = 4 << 20
#: The driver's buffers: a page for each descriptor of each queue.
_BUFFERS = START + 0x10000
PAGE = 4096

CFG_READ, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET, MSI = 1, 2, 3, 4, 5, 7


class Refused(Exception):
    """The device has ended the connection."""


class Memory:
    """The guest's, in a file that the device maps too."""

    def __init__(self, start: int = START, size: int = SIZE) -> None:
        self.start, self.size = start, size
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, start + size)
        self._map = mmap.mmap(self.fd, start + size)
        self.bytes = memoryview(self._map)

    def read(self, address: int, length: int) -> bytes:
        return bytes(self.bytes[address : address + length])

    def write(self, address: int, data: bytes) -> None:
        self.bytes[address : address + len(data)] = data

    def u16(self, address: int) -> int:
        return int.from_bytes(self.bytes[address : address + 2], "little")

    def close(self) -> None:
        self.bytes.release()
        self._map.close()
        os.close(self.fd)


class Ring:
    """The driver's side of a queue. Each descriptor has a page of its own."""

    def __init__(self, memory: Memory, number: int) -> None:
        self.memory = memory
        self.desc = memory.start + number * 0x8000
        self.avail = self.desc + 16 * ENTRIES
        self.used = self.avail + 0x1000
        self._pages = _BUFFERS + number * ENTRIES * PAGE
        self._free = list(range(ENTRIES - 1, -1, -1))
        self._chains: dict[int, list[tuple[int, int, bool]]] = {}
        self._seen = 0

    @property
    def in_flight(self) -> int:
        return len(self._chains)

    def describe(self, index: int, address: int, length: int, flags: int, follows: int) -> None:
        self.memory.write(self.desc + 16 * index, DESC.pack(address, length, flags, follows))

    def publish(self, head: int) -> None:
        at = self.memory.u16(self.avail + 2)
        self.memory.write(self.avail + 4 + 2 * (at % ENTRIES), struct.pack("<H", head))
        self.memory.write(self.avail + 2, struct.pack("<H", (at + 1) & 0xFFFF))

    def add(self, filled: Sequence[bytes], room: Sequence[int] = ()) -> int:
        """Make a chain of ``filled`` parts and room of so many bytes; its head."""
        parts = [(data, len(data), False) for data in filled] + [(b"", n, True) for n in room]
        indexes = [self._free.pop() for _ in parts]
        chain = []
        for place, (index, (data, length, writable)) in enumerate(
            zip(indexes, parts, strict=True), 1
        ):
            last = place == len(parts)
            address = self._pages + PAGE * index
            self.memory.write(address, data)
            flags = (WRITE if writable else 0) | (0 if last else NEXT)
            self.describe(index, address, length, flags, 0 if last else indexes[place])
            chain.append((index, length, writable))
        self._chains[indexes[0]] = chain
        self.publish(indexes[0])
        return indexes[0]

    def take(self) -> tuple[int, bytes] | None:
        """The next chain that the device has used: its head and what was put into it."""
        if self.memory.u16(self.used + 2) == self._seen:
            return None
        at = self.used + 4 + 8 * (self._seen % ENTRIES)
        head, written = struct.unpack("<II", self.memory.read(at, 8))
        self._seen = (self._seen + 1) & 0xFFFF
        data = b""
        for index, length, writable in self._chains.pop(head):
            self._free.append(index)
            if writable:
                data += self.memory.read(self._pages + PAGE * index, length)
        assert written <= len(data)
        return head, data[:written]


class FrontEnd:
    """Connects to ``path``. Every wait ends after ``patience`` seconds."""

    def __init__(self, path: Path, patience: float = 30.0) -> None:
        self.memory = Memory()
        self.rings = (Ring(self.memory, 0), Ring(self.memory, 1))
        self.calls, self._calls_far = socket.socketpair()
        self.calls.setblocking(False)
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience)
        self.socket.connect(str(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for each in (self.socket, self.calls, self._calls_far):
            each.close()
        self.memory.close()

    def until_refused(self, action: Callable[["FrontEnd"], object] | None = None) -> None:
        """Do ``action`` and read on until the device ends the connection, as it must."""
        try:
            if action is not None:
                action(self)
            while True:
                self.receive(1)
        except Refused:
            pass

    def move(self, memory: Memory) -> Memory:
        """Go on with ``memory`` instead, which has the same content; what was used before."""
        old, self.memory = self.memory, memory
        for ring in self.rings:
            ring.memory = memory
        return old

    # Messages.

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self.socket.sendmsg([data], ancillary)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Refused from error

    def receive(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            try:
                more = self.socket.recv(count - len(data))
            except ConnectionResetError as error:
                raise Refused from error
            if not more:
                raise Refused
            data += more
        return data

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """A request that is answered with a payload."""
        self.send(HEADER.pack(request, 1, len(payload)) + payload, fds)
        return self._answer(request)

    def tell(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """A request that is acknowledged."""
        self.send(HEADER.pack(request, 9, len(payload)) + payload, fds)
        assert self._answer(request) == bytes(8)

    def _answer(self, request: int) -> bytes:
        answered, flags, size = HEADER.unpack(self.receive(HEADER.size))
        assert (answered, flags) == (request, 5)
        return self.receive(size)

    # Bring-up, in the order of User-Mode Linux.

    def introduce(self) -> None:
        self.send(HEADER.pack(3, 1, 0))  # SET_OWNER: no acknowledgement has been agreed on yet
        features = self.ask(1)
        assert features == struct.pack("<Q", 1 << 32 | 1 << 30)
        protocol = self.ask(15)
        assert protocol == struct.pack("<Q", 1 << 3 | 1 << 5 | 1 << 14)
        self.tell(16, protocol)
        self.tell(21, fds=[self._calls_far.fileno()])
        self.tell(2, features)

    def table(self, memory: Memory | None = None) -> bytes:
        memory = memory or self.memory
        return struct.pack("<IIQQQQ", 1, 0, memory.start, memory.size, memory.start, memory.start)

    def share_memory(self) -> None:
        self.tell(5, self.table(), [self.memory.fd])

    def set_ring(self, number: int, entries: int = ENTRIES, **addresses: int) -> None:
        ring = self.rings[number]
        where = {"desc": ring.desc, "used": ring.used, "avail": ring.avail, **addresses}
        self.tell(8, struct.pack("<II", number, entries))
        self.tell(10, struct.pack("<II", number, 0))
        rings = (where["desc"], where["used"], where["avail"], (1 << 64) - 1)
        self.tell(9, struct.pack("<IIQQQQ", number, 0, *rings))

    def enable(self, number: int, on: bool = True) -> None:
        self.tell(18, struct.pack("<II", number, on))

    def kick(self, number: int) -> None:
        self.tell(35, struct.pack("<II", number, 0))

    def set_up(self) -> None:
        """All that comes before the first kick."""
        self.introduce()
        self.share_memory()
        for number in (0, 1):
            self.set_ring(number)
        for number in (0, 1):
            self.enable(number)

    def bring_up(self, buffers: int = 10) -> None:
        """As after the driver's probe, with ``buffers`` for interrupts."""
        self.set_up()
        self.leave_buffers(buffers)

    def leave_buffers(self, count: int) -> None:
        for _ in range(count):
            self.rings[1].add([], [20])
        if count:
            self.kick(1)

    # The driver.

    def read(self, op: int, offset: int, size: int, bar: int = 0) -> bytes:
        """Read, and require the answer to be there as soon as the kick is acknowledged."""
        room = [min(PAGE, size - at) for at in range(0, size, PAGE)]
        head = self.rings[0].add([ACCESS.pack(op, bar, 0, size, offset)], room)
        self.kick(0)
        while True:
            used = self.rings[0].take()
            assert used is not None, "the kick was acknowledged before it was carried out"
            if used[0] == head:
                return used[1]

    def post(self, op: int, offset: int, data: bytes, bar: int = 0, *, apart: bool = False) -> None:
        """Put a write into the queue, its data in descriptors of their own if ``apart``."""
        header = ACCESS.pack(op, bar, 0, len(data), offset)
        pieces = [data[at : at + PAGE] for at in range(0, len(data), PAGE)] if apart else []
        self.rings[0].add([header, *pieces] if apart else [header + data])

    def config_read(self, offset: int, size: int) -> bytes:
        return self.read(CFG_READ, offset, size)

    def config_write(self, offset: int, data: bytes) -> None:
        # The kernel sends the whole structure, whatever the size of the access.
        self.rings[0].add(
            [ACCESS.pack(CFG_WRITE, 0, 0, len(data), offset) + data.ljust(8, b"\xee")]
        )
        self.kick(0)

    def bar_read(self, bar: int, offset: int, size: int) -> bytes:
        return self.read(MMIO_READ, offset, size, bar)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        self.post(MMIO_WRITE, offset, data, bar, apart=len(data) > 8)
        self.kick(0)

    def reclaim(self) -> int:
        """Take back the command queue's buffers that are done; how many."""
        count = 0
        while self.rings[0].take() is not None:
            count += 1
        return count

    def called(self) -> list[int]:
        """The queues that the device has called for since the last look."""
        data = b""
        while True:
            try:
                more = self.calls.recv(65536)
            except BlockingIOError:
                break
            if not more:
                break
            data += more
        queues = []
        for at in range(0, len(data), 20):
            request, flags, size, queue, _ = struct.unpack_from("<IIIII", data, at)
            assert (request, flags, size) == (4, 1, 8)
            queues.append(queue)
        return queues

    def interrupts(self) -> list[tuple[int, int]]:
        """Address and data of the MSIs in the interrupt queue's used buffers."""
        found = []
        while (used := self.rings[1].take()) is not None:
            op, bar, reserved, size, address, data = struct.unpack("<BBHIQI", used[1])
            assert (op, bar, reserved, size) == (MSI, 0, 0, 4)
            found.append((address, data))
        return found
