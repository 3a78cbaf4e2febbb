"""The virtio-pcidev device: accesses of the driver to a PCI function, and interrupts to the driver.

Accesses come on queue 0: a header (operation, BAR, size, address), the data of a write behind it, and
room for the answer to a read. A write has no answer, it is posted. On queue 1 the driver leaves
buffers for interrupts. Source: linux/include/uapi/linux/virtio_pcidev.h.
"""

import contextlib
import fcntl
import socket
import struct
import termios
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from precopy.frontends.virtio_pcidev import messages
from precopy.frontends.virtio_pcidev.messages import ProtocolError
from precopy.frontends.virtio_pcidev.queue import Chain, Queue, gather, scatter
from precopy.pci.function import PciFunction

#: Operation, BAR, reserved, size and address of an access or an interrupt.
ACCESS = struct.Struct("<BBHIQ")

CFG_READ, CFG_WRITE, MMIO_READ, MMIO_WRITE, MMIO_MEMSET, MSI = 1, 2, 3, 4, 5, 7

#: Which queue is which.
COMMANDS, INTERRUPTS = 0, 1

#: Bytes of the greatest access: the kernel maps no more of a BAR at a time.
MAX_ACCESS = 16 << 20

CONFIG_SIZE = 4096
_CONFIG_ACCESSES = (1, 2, 4, 8)

_MSI = struct.Struct("<BBHIQI")
_MSI_DATA = 4


@dataclass(slots=True)
class Counts:
    """What has passed between a front end and a function since the server started."""

    connections: int = 0
    #: vhost-user messages.
    requests: int = 0
    #: Accesses to config space and BARs.
    accesses: int = 0
    #: Interrupts that the driver has been given.
    interrupts: int = 0


class Accesses:
    """Carries out what the driver asks of ``function``. ProtocolError for what it can't ask."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self._bars = len(function.bar_sizes)

    def serve(self, chain: Chain) -> int:
        """Carry out one access; the number of bytes that were put into the chain."""
        message = gather(chain.readable)
        if len(message) < ACCESS.size:
            raise ProtocolError(f"an access of {len(message)} bytes, shorter than its header")
        fields: tuple[int, int, int, int, int] = ACCESS.unpack_from(message)
        op, bar, _, size, address = fields
        if size > MAX_ACCESS:
            raise ProtocolError(f"an access to {size} bytes, more than {MAX_ACCESS}")
        read = _READS.get(op)
        if read is not None:
            room = sum(map(len, chain.writable))
            if size > room:
                raise ProtocolError(f"a read of {size} bytes with room for {room}")
            answer = read(self, bar, address, size)
            if len(answer) != size:
                raise ValueError(f"{len(answer)} bytes were read where {size} were asked for")
            scatter(chain.writable, answer)
            return size
        write = _WRITES.get(op)
        if write is None:
            raise ProtocolError(f"operation {op} is none of virtio-pcidev")
        write(self, bar, address, size, message[ACCESS.size :])
        return 0

    def _config_read(self, bar: int, offset: int, size: int) -> bytes:
        if size not in _CONFIG_ACCESSES:
            raise ProtocolError(f"a read of {size} bytes of config space, not 1, 2, 4 or 8")
        if offset + size > CONFIG_SIZE:
            return b"\xff" * size
        return self._function.config_read(offset, size)

    def _config_write(self, bar: int, offset: int, size: int, data: bytes) -> None:
        # The kernel's memset_io() on a BAR comes as a write of config space (seen in 7.3). With a
        # BAR, or of another size, it can't be one.
        if bar or size not in _CONFIG_ACCESSES:
            self._bar_set(bar, offset, size, data)
        elif offset + size <= CONFIG_SIZE:
            self._function.config_write(offset, _exactly(size, data))

    def _bar_read(self, bar: int, offset: int, size: int) -> bytes:
        if bar >= self._bars:
            return b"\xff" * size
        return self._function.bar_read(bar, offset, size)

    def _bar_write(self, bar: int, offset: int, size: int, data: bytes) -> None:
        data = _exactly(size, data)
        if bar < self._bars:
            self._function.bar_write(bar, offset, data)

    def _bar_set(self, bar: int, offset: int, size: int, data: bytes) -> None:
        self._bar_write(bar, offset, size, _exactly(1, data) * size)


#: What reads and what writes, by operation. Not bound: a cycle would keep a guest's memory mapped.
_READS: Mapping[int, Callable[[Accesses, int, int, int], bytes]] = {
    CFG_READ: Accesses._config_read,
    MMIO_READ: Accesses._bar_read,
}
_WRITES: Mapping[int, Callable[[Accesses, int, int, int, bytes], None]] = {
    CFG_WRITE: Accesses._config_write,
    MMIO_WRITE: Accesses._bar_write,
    MMIO_MEMSET: Accesses._bar_set,
}


def _exactly(size: int, data: bytes) -> bytes:
    """The first ``size`` bytes; more may have come, for the driver sends whole structures."""
    if len(data) < size:
        raise ProtocolError(f"a write of {size} bytes comes with {len(data)}")
    return data[:size]


class Caller:
    """Tells the front end of used buffers, on the socket that it gave for that. Takes over ``fd``.

    Never waits, for a front end that does not read may be waiting for us. Nothing is lost by that
    as long as COMMANDS is only called when all has been read: then a socket without room holds a
    call for INTERRUPTS that is still to be read, and one is enough.
    """

    _MESSAGES = tuple(messages.pack_call(queue) for queue in (COMMANDS, INTERRUPTS))

    def __init__(self, fd: int) -> None:
        try:
            self._socket = socket.socket(fileno=fd)
        except OSError as error:
            raise ProtocolError(f"the channel for calls is no socket: {error.strerror}") from error
        if self._socket.family != socket.AF_UNIX:
            self._socket.detach()
            raise ProtocolError("the channel for calls is no unix socket")

    def call(self, queue: int) -> None:
        # BlockingIOError: no room. Any other: the front end is gone, as its connection will tell.
        with contextlib.suppress(OSError):
            self._socket.send(self._MESSAGES[queue], socket.MSG_DONTWAIT)

    @property
    def is_idle(self) -> bool:
        """Whether all that was told has been read."""
        return not any(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))

    def close(self) -> None:
        self._socket.close()


class Interrupts:
    """Delivers MSIs into the buffers of the interrupt queue, from any thread.

    What finds no buffer waits; the same MSI twice is then one, as in an interrupt controller.
    ``fail`` is told, with one line, of a queue that can't be.
    """

    def __init__(self, counts: Counts, fail: Callable[[str], None]) -> None:
        self._counts = counts
        self._fail = fail
        # Held while nothing but memory and the caller's socket is touched: a function may deliver
        # with locks of its own held.
        self._lock = threading.Lock()
        self._queue: Queue | None = None
        self._caller: Caller | None = None
        self._waiting: dict[tuple[int, int], None] = {}

    def deliver(self, address: int, data: int) -> None:
        """Write ``data`` (32 bits) to ``address``, as the function does for an MSI."""
        try:
            with self._lock:
                self._waiting[address, data] = None
                self._flush()
        except ProtocolError as error:
            self._fail(str(error))

    def flush(self) -> None:
        """Deliver what waits, as far as there are buffers. ProtocolError for a bad queue."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        queue = self._queue
        if queue is None:
            return
        delivered = 0
        try:
            while self._waiting:
                chain = queue.pop()
                if chain is None:
                    break
                address, data = next(iter(self._waiting))
                message = _MSI.pack(MSI, 0, 0, _MSI_DATA, address, data)
                scatter(chain.writable, message)
                del self._waiting[address, data]
                queue.push(chain, len(message))
                delivered += 1
        except ProtocolError:
            self._queue = None
            raise
        if delivered:
            self._counts.interrupts += delivered
            if self._caller is not None:
                self._caller.call(INTERRUPTS)

    def set_queue(self, queue: Queue | None) -> None:
        """Use ``queue`` from now on; None: there is none, and nobody waits for interrupts."""
        with self._lock:
            self._queue = queue
            if queue is None:
                self._waiting.clear()
            self._flush()

    def set_caller(self, caller: Caller) -> None:
        """Tell of used buffers through ``caller``; the one before is closed."""
        with self._lock:
            old, self._caller = self._caller, caller
        if old is not None:
            old.close()

    def call_for_commands(self) -> bool:
        """Tell of used buffers of the command queue, unless the front end has yet to hear of some."""
        with self._lock:
            caller = self._caller
            if caller is None or not caller.is_idle:
                return False
            caller.call(COMMANDS)
            return True

    def close(self) -> None:
        """Deliver nothing more; a second call does nothing."""
        with self._lock:
            self._queue = None
            self._waiting.clear()
            caller, self._caller = self._caller, None
        if caller is not None:
            caller.close()
