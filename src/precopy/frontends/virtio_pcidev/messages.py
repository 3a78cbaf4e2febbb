"""The vhost-user protocol's messages, without any I/O.

Those that User-Mode Linux sends to a device, and the one that a device sends to it. A message is a
header of 12 bytes (request, flags, size of the payload) and the payload; file descriptors come with
the header's first byte. Source: QEMU's specification of vhost-user, and linux/arch/um/drivers.
"""

import enum
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class ProtocolError(Exception):
    """The peer broke the protocol; the text is one line that says how."""


class Request(enum.IntEnum):
    """What a front end asks."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    SET_VRING_ENABLE = 18
    SET_SLAVE_REQ_FD = 21
    VRING_KICK = 35


#: Bits of GET_FEATURES: VIRTIO_F_VERSION_1, and that GET_PROTOCOL_FEATURES may be asked.
VERSION_1 = 1 << 32
PROTOCOL_FEATURES = 1 << 30

#: Bits of GET_PROTOCOL_FEATURES.
REPLY_ACK = 1 << 3
SLAVE_REQ = 1 << 5
INBAND_NOTIFICATIONS = 1 << 14

#: More regions of memory than this can't come with one message.
MAX_REGIONS = 8

HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")

_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8

#: VHOST_USER_SLAVE_VRING_CALL, which goes the other way.
_SLAVE_VRING_CALL = 4


class Header(NamedTuple):
    """``size``: bytes of payload to follow, bounded by what the request can have."""

    request: Request
    needs_reply: bool
    size: int


class VringState(NamedTuple):
    """A queue and a number: of entries, an index of its ring, or 0 or 1."""

    queue: int
    number: int


class VringAddress(NamedTuple):
    """Where a queue's rings are, in the front end's own address space."""

    queue: int
    flags: int
    desc: int
    used: int
    avail: int
    log: int


class Region(NamedTuple):
    """Memory of the guest: ``size`` bytes at ``guest``, at ``offset`` of the file that came along."""

    guest: int
    size: int
    user: int
    offset: int


Payload = None | int | VringState | VringAddress | tuple[Region, ...]

_STATE = struct.Struct("<II")
_ADDRESS = struct.Struct("<IIQQQQ")
_COUNT = struct.Struct("<II")
_REGION = struct.Struct("<QQQQ")


@dataclass(frozen=True, slots=True)
class Layout:
    """A payload: its least and greatest size in bytes, and what makes a value of it."""

    least: int
    most: int
    parse: Callable[[memoryview], Payload]


def _fixed(layout: struct.Struct, make: Callable[..., Payload]) -> Layout:
    return Layout(layout.size, layout.size, lambda data: make(*layout.unpack(data)))


def _parse_regions(data: memoryview) -> tuple[Region, ...]:
    count = _COUNT.unpack_from(data)[0]
    room, rest = divmod(len(data) - _COUNT.size, _REGION.size)
    # Linux 6.12 sends a table with room for two, of which it fills one.
    if not 0 < count <= min(room, MAX_REGIONS) or rest:
        raise ProtocolError(f"a memory table of {count} regions does not fit {len(data)} bytes")
    regions = data[_COUNT.size : _COUNT.size + count * _REGION.size]
    return tuple(Region(*fields) for fields in _REGION.iter_unpack(regions))


NOTHING = Layout(0, 0, lambda data: None)
INTEGER = _fixed(U64, int)
STATE = _fixed(_STATE, VringState)
ADDRESS = _fixed(_ADDRESS, VringAddress)
REGIONS = Layout(_COUNT.size, _COUNT.size + MAX_REGIONS * _REGION.size, _parse_regions)

#: How many file descriptors come with a message; for a memory table one for each region.
FD_PER_REGION = -1


@dataclass(frozen=True, slots=True)
class Kind:
    """What comes with a request, and whether it is answered with a payload instead of an ack."""

    payload: Layout
    fds: int = 0
    answered: bool = False


REQUESTS: Mapping[Request, Kind] = {
    Request.GET_FEATURES: Kind(NOTHING, answered=True),
    Request.SET_FEATURES: Kind(INTEGER),
    Request.SET_OWNER: Kind(NOTHING),
    Request.SET_MEM_TABLE: Kind(REGIONS, fds=FD_PER_REGION),
    Request.SET_VRING_NUM: Kind(STATE),
    Request.SET_VRING_ADDR: Kind(ADDRESS),
    Request.SET_VRING_BASE: Kind(STATE),
    Request.GET_VRING_BASE: Kind(STATE, answered=True),
    Request.GET_PROTOCOL_FEATURES: Kind(NOTHING, answered=True),
    Request.SET_PROTOCOL_FEATURES: Kind(INTEGER),
    Request.SET_VRING_ENABLE: Kind(STATE),
    Request.SET_SLAVE_REQ_FD: Kind(NOTHING, fds=1),
    Request.VRING_KICK: Kind(STATE),
}

#: Bytes of the longest payload.
MAX_PAYLOAD = max(kind.payload.most for kind in REQUESTS.values())


def parse_header(data: bytes | bytearray | memoryview) -> Header:
    """ProtocolError for a request that is not known, wrong flags, or a size it can't have."""
    number, flags, size = HEADER.unpack(data)
    try:
        request = Request(number)
    except ValueError:
        raise ProtocolError(f"request {number} is none that is spoken here") from None
    if flags & ~_NEED_REPLY != _VERSION:
        raise ProtocolError(f"{request.name} has flags {flags:#x}, not {_VERSION:#x}")
    layout = REQUESTS[request].payload
    if not layout.least <= size <= layout.most:
        raise ProtocolError(
            f"{request.name} comes with {size} bytes, not {layout.least} to {layout.most}"
        )
    return Header(request, bool(flags & _NEED_REPLY), size)


def parse_payload(request: Request, data: memoryview, fds: int) -> Payload:
    """The payload, which came with ``fds`` file descriptors. ProtocolError where they don't fit."""
    kind = REQUESTS[request]
    value = kind.payload.parse(data)
    wanted = len(value) if kind.fds == FD_PER_REGION and isinstance(value, tuple) else kind.fds
    if fds != wanted:
        raise ProtocolError(f"{request.name} comes with {fds} file descriptors, not {wanted}")
    return value


def pack(request: int, payload: bytes = b"", *, needs_reply: bool = False) -> bytes:
    """A request, as a front end sends it."""
    flags = _VERSION | (_NEED_REPLY if needs_reply else 0)
    return HEADER.pack(request, flags, len(payload)) + payload


def pack_reply(request: Request, payload: bytes) -> bytes:
    """The answer to a request."""
    return HEADER.pack(request, _VERSION | _REPLY, len(payload)) + payload


def pack_ack(request: Request) -> bytes:
    """The answer to a request that was carried out and has none of its own."""
    return pack_reply(request, U64.pack(0))


def pack_call(queue: int) -> bytes:
    """What a device sends when it has used buffers of ``queue``; no reply is asked for."""
    return pack(_SLAVE_VRING_CALL, _STATE.pack(queue, 0))


def pack_state(state: VringState) -> bytes:
    return _STATE.pack(*state)


def pack_regions(regions: tuple[Region, ...]) -> bytes:
    return _COUNT.pack(len(regions), 0) + b"".join(_REGION.pack(*region) for region in regions)


def pack_address(address: VringAddress) -> bytes:
    return _ADDRESS.pack(*address)
