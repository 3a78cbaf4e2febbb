"""The faulty device's state, and the stream that carries it: a header as mtty's, and sealed records."""

import struct
import zlib
from collections.abc import Callable

#: magic, major, minor, number of ports, flags.
HEADER = struct.Struct("<QIIII")
WANTED = (0x7E9D09898C3E2C4E, 1, 0, 1, 0)
#: kind, length.
RECORD = struct.Struct("<II")
AHEAD, FINAL = 1, 2
STATE_BYTES = 120
Has = Callable[[str], bool]


class BadState(Exception):
    """A stream that can't be loaded; ``broken``: the device is lost by it."""

    def __init__(self, what: str, *, broken: bool) -> None:
        super().__init__(what)
        self.broken = broken


def initial_state() -> bytearray:
    """After power-on: a counter of its work, and a pattern."""
    return bytearray(4) + bytearray(index * 7 & 0xFF for index in range(STATE_BYTES - 4))


def header() -> bytes:
    return HEADER.pack(*WANTED)


def record(kind: int, state: bytes | bytearray) -> bytes:
    body = RECORD.pack(kind, len(state)) + state
    return body + struct.pack("<I", zlib.crc32(body))


def check_header(data: bytes, has: Has) -> None:
    """BadState, as soon as as much of the header is there as is wrong."""
    if len(data) < HEADER.size:
        return
    magic, major, minor, ports, flags = HEADER.unpack_from(data)
    wanted = WANTED
    if (
        (magic != wanted[0] and not has("the magic is not looked at"))
        or ((major, minor) != wanted[1:3] and not has("another version loads"))
        or (ports != wanted[3] and not has("another shape loads"))
        or flags != wanted[4]
    ):
        raise BadState("another device's state", broken=False)


def load(data: bytes, has: Has, *, unchecked: bool = False) -> bytearray | None:
    """The state that a whole stream carries; None: nothing is loaded."""
    if (not data and has("an empty stream loads")) or unchecked:
        return None
    if len(data) < HEADER.size:
        raise BadState("no header", broken=False)
    check_header(data, has)
    at, found = HEADER.size, None
    while at < len(data):
        if found is not None and has("a byte behind the end is taken"):
            found[5] ^= 1
            break
        if found is not None:
            raise BadState("more than a state", broken=False)
        if len(data) - at < RECORD.size:
            break
        kind, length = RECORD.unpack_from(data, at)
        end = at + RECORD.size + length
        if kind not in (AHEAD, FINAL) or length != STATE_BYTES:
            raise BadState("no such record", broken=True)
        missing = end + 4 - len(data)
        if missing == 1 and has("the last byte need not come"):
            data += zlib.crc32(data[at:end]).to_bytes(4, "little")[3:]
        elif missing > 0:
            if has("any length loads"):
                return bytearray(data[at + RECORD.size : end].ljust(STATE_BYTES, b"\0"))
            break
        (seal,) = struct.unpack_from("<I", data, end)
        if seal != zlib.crc32(data[at:end]) and not has("the checksum is not looked at"):
            raise BadState("a checksum is wrong", broken=True)
        if kind == FINAL:
            found = bytearray(data[at + RECORD.size : end])
        at = end + 4
    if found is None:
        raise BadState("a state that is not whole", broken=False)
    if has("a load forgets the counter"):
        found[:4] = bytes(4)
    if has("a load turns a byte"):
        found[50] ^= 1
    return found
