"""The device's side of a split virtqueue, in memory that a driver fills at the same time.

Nothing in it is believed: indexes, addresses and the shape of a chain of descriptors are checked
each time they are read. Source: section 2.7 of the VIRTIO 1.2 specification. Little-endian hosts
that keep the order of stores only (x86), which is what User-Mode Linux runs on.
"""

import struct
from typing import NamedTuple

from precopy.frontends.virtio_pcidev.messages import ProtocolError
from precopy.pci.dma import DmaSpace

#: The most entries of a split virtqueue.
MAX_ENTRIES = 1 << 15

#: The most bytes of one chain: twice the greatest access of User-Mode Linux, 16 MiB.
MAX_CHAIN = 32 << 20

_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
_NEXT, _WRITE = 1, 2

# Places in the available and used rings, in 16-bit words: flags, idx, then the entries.
_IDX, _ENTRIES = 1, 2


class Chain(NamedTuple):
    """A request: memory that the driver has filled, and memory that it wants filled."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


class Queue:
    """Rings of ``entries`` at the addresses ``desc``, ``avail`` and ``used`` of ``memory``.

    ``base`` is the index of the first available entry to take. ProtocolError where the rings are
    not in memory or have no power of two of entries. For one thread at a time.
    """

    __slots__ = ("_avail", "_base", "_desc", "_entries", "_mask", "_memory", "_used", "_used_words")

    def __init__(
        self, memory: DmaSpace, entries: int, *, desc: int, avail: int, used: int, base: int = 0
    ) -> None:
        if not 0 < entries <= MAX_ENTRIES or entries & (entries - 1):
            raise ProtocolError(f"a queue of {entries} entries, not a power of two up to 32768")
        if desc % 16 or avail % 2 or used % 4:
            raise ProtocolError(f"rings at {desc:#x}, {avail:#x}, {used:#x} are not aligned")
        try:
            self._desc = memory.view(desc, _DESC.size * entries)
            # Both rings end with a word for event indexes, which are not offered: left out.
            self._avail = memory.view(avail, 2 * (_ENTRIES + entries)).cast("H")
            self._used = memory.view(used, 2 * _ENTRIES + _USED.size * entries)
        except OSError as error:
            raise ProtocolError(
                f"the rings of a queue are not in memory: {error.strerror}"
            ) from error
        self._used_words = self._used[: 2 * _ENTRIES].cast("H")
        self._memory = memory
        self._entries = entries
        self._mask = entries - 1
        self._base = base & 0xFFFF

    @property
    def base(self) -> int:
        """Index of the next available entry to take."""
        return self._base

    def pop(self) -> Chain | None:
        """The next request, if there is one. ProtocolError for one that can't be."""
        waiting = (self._avail[_IDX] - self._base) & 0xFFFF
        if not waiting:
            return None
        if waiting > self._entries:
            raise ProtocolError(
                f"{waiting} requests are available in a queue of {self._entries} entries"
            )
        head = self._avail[_ENTRIES + (self._base & self._mask)]
        chain = Chain(head, [], [])
        index, left, room = head, self._entries, MAX_CHAIN
        while True:
            if index > self._mask:
                raise ProtocolError(f"descriptor {index} of a queue of {self._entries} entries")
            if not left:
                raise ProtocolError(f"the chain from descriptor {head} has no end")
            left -= 1
            address, length, flags, follows = _DESC.unpack_from(self._desc, _DESC.size * index)
            room -= length
            if room < 0:
                raise ProtocolError(f"the chain from descriptor {head} is over {MAX_CHAIN} bytes")
            if flags & ~(_NEXT | _WRITE):
                raise ProtocolError(f"descriptor {index} has flags {flags:#x}, not offered")
            if flags & _WRITE:
                part = chain.writable
            elif chain.writable:
                raise ProtocolError(f"descriptor {index} is to be read after one to be written")
            else:
                part = chain.readable
            try:
                part += self._memory.views(address, length)
            except OSError as error:
                raise ProtocolError(f"descriptor {index}: {error.strerror}") from error
            if not flags & _NEXT:
                break
            index = follows
        self._base = (self._base + 1) & 0xFFFF
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, with ``written`` bytes put into its writable memory."""
        index = self._used_words[_IDX]
        _USED.pack_into(
            self._used, 2 * _ENTRIES + _USED.size * (index & self._mask), chain.head, written
        )
        # Last, for the driver may look as soon as it has changed.
        self._used_words[_IDX] = (index + 1) & 0xFFFF


def gather(parts: list[memoryview]) -> bytes:
    """All the bytes of a chain's readable memory."""
    return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)


def scatter(parts: list[memoryview], data: bytes) -> None:
    """Put ``data`` into a chain's writable memory. ProtocolError where it has no room."""
    left = len(data)
    at = 0
    for part in parts:
        step = min(left, len(part))
        part[:step] = data[at : at + step]
        at += step
        left -= step
        if not left:
            return
    if left:
        raise ProtocolError(f"{len(data)} bytes are to be answered into room for {at}")
