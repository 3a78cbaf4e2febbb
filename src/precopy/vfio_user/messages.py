"""The messages of vfio-user: every command as a typed request and reply, and one table of them.

Source: docs/vfio-user.rst of libvfio-user, and what libvfio-user (mid-2026) and QEMU (11.1) do where
that leaves it open. Commands from 19 on are this project's extension for PRE_COPY, specified in
Documentation/interop/vfio-user-migration.rst. Bytes are in host order, as the protocol has it.
"""

import enum
import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from precopy.vfio.device import Buffer


class WireError(OSError):
    """What a peer sent is wrong; ``errno`` is what the protocol answers to it."""


def wrong(code: int, text: str) -> WireError:
    return WireError(code, text)


# --- The header -------------------------------------------------------------------------------

HEADER = struct.Struct("=HHIII")


class MessageFlags(enum.IntFlag):
    """Bits of a header's flags; the low four are the message's type: 0 command, 1 reply."""

    REPLY = 0x1
    NO_REPLY = 0x10
    ERROR = 0x20


TYPE_MASK = 0xF


class Header(NamedTuple):
    """``size`` in bytes counts the header; ``error`` is an errno, with ERROR in a reply."""

    message_id: int
    command: int
    size: int
    flags: int
    error: int

    @property
    def is_reply(self) -> bool:
        return self.flags & TYPE_MASK == MessageFlags.REPLY

    @property
    def wants_reply(self) -> bool:
        return not self.flags & MessageFlags.NO_REPLY


class Command(enum.IntEnum):
    """``VFIO_USER_*``. 14 was DIRTY_PAGES, which the protocol has given up."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13
    REGION_WRITE_MULTI = 15
    DEVICE_FEATURE = 16
    MIG_DATA_READ = 17
    MIG_DATA_WRITE = 18
    # The extension.
    MIG_PRECOPY_INFO = 19
    MIG_DATA_POLL = 20
    DEVICE_IDENTITY = 21
    MIG_DATA_AREA = 22
    MIG_DATA_READ_AREA = 23
    MIG_DATA_WRITE_AREA = 24


# --- Messages ---------------------------------------------------------------------------------


class Empty(NamedTuple):
    """Nothing but the header."""


class Version(NamedTuple):
    """``text``: JSON, with its NUL."""

    major: int
    minor: int
    text: Buffer


class DmaMap(NamedTuple):
    """``address`` and ``size`` in bytes; ``offset`` into the file that comes with it, if one does."""

    argsz: int
    flags: int
    offset: int
    address: int
    size: int


class DmaMapFlags(enum.IntFlag):
    """The last two (2026) say how the file is to be reached; without them either will do."""

    READ = 1 << 0
    WRITE = 1 << 1
    MMAP = 1 << 2
    FILE_IO = 1 << 3


class DmaUnmap(NamedTuple):
    """``more``: what older versions have behind it."""

    argsz: int
    flags: int
    address: int
    size: int
    more: Buffer


class DmaUnmapFlags(enum.IntFlag):
    """What libvfio-user keeps of older versions: a bitmap of dirty pages, and all ranges at once."""

    GET_DIRTY_PAGE_INFO = 1 << 0
    ALL = 1 << 1


class DeviceInfo(NamedTuple):
    """DEVICE_GET_INFO; see ``vfio.face.DeviceFlags``."""

    argsz: int
    flags: int
    num_regions: int
    num_irqs: int


class RegionInfoMessage(NamedTuple):
    """DEVICE_GET_REGION_INFO; ``capabilities``: a chain that starts at ``cap_offset``."""

    argsz: int
    flags: int
    region: int
    cap_offset: int
    size: int
    offset: int
    capabilities: Buffer


class RegionIoFds(NamedTuple):
    argsz: int
    flags: int
    region: int
    number: int
    entries: Buffer


class IrqInfo(NamedTuple):
    argsz: int
    flags: int
    irq: int
    vectors: int


class SetIrqs(NamedTuple):
    """``data``: one byte a vector, with DATA_BOOL."""

    argsz: int
    flags: int
    irq: int
    start: int
    vectors: int
    data: Buffer


class SetIrqsFlags(enum.IntFlag):
    """``VFIO_IRQ_SET_*``: one of the DATA and one of the ACTION bits."""

    DATA_NONE = 1 << 0
    DATA_BOOL = 1 << 1
    DATA_EVENTFD = 1 << 2
    ACTION_MASK = 1 << 3
    ACTION_UNMASK = 1 << 4
    ACTION_TRIGGER = 1 << 5


class RegionAccess(NamedTuple):
    """REGION_READ, REGION_WRITE; ``length`` in bytes."""

    offset: int
    region: int
    length: int


class RegionData(NamedTuple):
    """The same with the bytes: a read's reply, a write's request."""

    offset: int
    region: int
    length: int
    data: Buffer


class DmaAccess(NamedTuple):
    """DMA_READ, DMA_WRITE; ``length`` in bytes."""

    address: int
    length: int


class DmaData(NamedTuple):
    address: int
    length: int
    data: Buffer


class WriteMulti(NamedTuple):
    """``writes``: ``number`` entries of :data:`WRITE_MULTI_ENTRY`."""

    number: int
    writes: Buffer


class WriteMultiDone(NamedTuple):
    number: int


class DeviceFeature(NamedTuple):
    """``flags``: index and methods as in ``struct vfio_device_feature``; ``data``: its payload."""

    argsz: int
    flags: int
    data: Buffer


class MigDataRead(NamedTuple):
    argsz: int
    size: int


class MigData(NamedTuple):
    """A read's reply, a write's request; ``size`` says how much of ``data`` counts."""

    argsz: int
    size: int
    data: Buffer


class PrecopyInfoMessage(NamedTuple):
    """``struct vfio_precopy_info``."""

    argsz: int
    flags: int
    initial_bytes: int
    dirty_bytes: int


class DataPoll(NamedTuple):
    """``events`` as of poll(2): those asked for, those that came; ``timeout`` in milliseconds."""

    argsz: int
    events: int
    timeout: int


class Identity(NamedTuple):
    """``text``: JSON."""

    argsz: int
    text: Buffer


class DataArea(NamedTuple):
    """Memory of the client's through which data goes: ``size`` bytes of the file that comes with it."""

    argsz: int
    flags: int
    size: int


class AreaAccess(NamedTuple):
    """MIG_DATA_READ_AREA, MIG_DATA_WRITE_AREA: ``size`` bytes at ``offset`` of the area."""

    argsz: int
    size: int
    offset: int


# --- Their layout -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Form:
    """How a message lies in the payload: fixed fields, and behind them bytes where ``tail`` says so."""

    make: Callable[..., Any]
    layout: struct.Struct
    tail: bool = False

    def parse(self, payload: memoryview) -> Any:
        """A tail is a view of ``payload``. WireError EINVAL where the size can't be."""
        size = self.layout.size
        if len(payload) < size or (len(payload) > size and not self.tail):
            least = "at least " if self.tail else ""
            raise wrong(errno.EINVAL, f"a payload of {len(payload)} bytes is not {least}{size}")
        fields = self.layout.unpack_from(payload)
        return self.make(*fields, payload[size:]) if self.tail else self.make(*fields)

    def pack(self, message: tuple[Any, ...]) -> bytes:
        """All of it. For a long tail see :meth:`pack_fixed`."""
        fixed = self.pack_fixed(message)
        return fixed + bytes(message[-1]) if self.tail else fixed

    def pack_fixed(self, message: tuple[Any, ...]) -> bytes:
        """What stands before the tail."""
        return self.layout.pack(*(message[:-1] if self.tail else message))


@dataclass(frozen=True, slots=True)
class Spec:
    """A command: what asks for it and what answers it, and how many descriptors come with either.

    ``by_server``: it is the server who sends it. ``extension``: only where that was agreed.
    """

    request: Form
    reply: Form
    request_fds: int = 0
    reply_fds: int = 0
    by_server: bool = False
    extension: bool = False


#: As many descriptors as QEMU and libvfio-user take at most; what is agreed may be less.
MOST_FDS = 16

_EMPTY = Form(Empty, struct.Struct("="))
_DMA_UNMAP = Form(DmaUnmap, struct.Struct("=IIQQ"), tail=True)
_DEVICE_INFO = Form(DeviceInfo, struct.Struct("=IIII"))
_REGION_INFO = Form(RegionInfoMessage, struct.Struct("=IIIIQQ"), tail=True)
_IO_FDS = Form(RegionIoFds, struct.Struct("=IIII"), tail=True)
_IRQ_INFO = Form(IrqInfo, struct.Struct("=IIII"))
_REGION_ACCESS = Form(RegionAccess, struct.Struct("=QII"))
_REGION_DATA = Form(RegionData, struct.Struct("=QII"), tail=True)
_DMA_ACCESS = Form(DmaAccess, struct.Struct("=QQ"))
_DMA_DATA = Form(DmaData, struct.Struct("=QQ"), tail=True)
_FEATURE = Form(DeviceFeature, struct.Struct("=II"), tail=True)
_MIG_SIZE = Form(MigDataRead, struct.Struct("=II"))
_AREA_ACCESS = Form(AreaAccess, struct.Struct("=IIQ"))
_MIG_DATA = Form(MigData, struct.Struct("=II"), tail=True)
_VERSION = Form(Version, struct.Struct("=HH"), tail=True)
_PRECOPY_INFO = Form(PrecopyInfoMessage, struct.Struct("=IIQQ"))
_POLL = Form(DataPoll, struct.Struct("=III"))
_IDENTITY = Form(Identity, struct.Struct("=I"), tail=True)

COMMANDS: dict[Command, Spec] = {
    Command.VERSION: Spec(_VERSION, _VERSION, reply_fds=MOST_FDS),
    Command.DMA_MAP: Spec(Form(DmaMap, struct.Struct("=IIQQQ")), _EMPTY, request_fds=1),
    Command.DMA_UNMAP: Spec(_DMA_UNMAP, _DMA_UNMAP),
    Command.DEVICE_GET_INFO: Spec(_DEVICE_INFO, _DEVICE_INFO),
    Command.DEVICE_GET_REGION_INFO: Spec(_REGION_INFO, _REGION_INFO, reply_fds=MOST_FDS),
    Command.DEVICE_GET_REGION_IO_FDS: Spec(_IO_FDS, _IO_FDS, reply_fds=MOST_FDS),
    Command.DEVICE_GET_IRQ_INFO: Spec(_IRQ_INFO, _IRQ_INFO),
    Command.DEVICE_SET_IRQS: Spec(
        Form(SetIrqs, struct.Struct("=IIIII"), tail=True), _EMPTY, request_fds=MOST_FDS
    ),
    Command.REGION_READ: Spec(_REGION_ACCESS, _REGION_DATA),
    Command.REGION_WRITE: Spec(_REGION_DATA, _REGION_ACCESS),
    Command.DMA_READ: Spec(_DMA_ACCESS, _DMA_DATA, by_server=True),
    Command.DMA_WRITE: Spec(_DMA_DATA, _DMA_ACCESS, by_server=True),
    Command.DEVICE_RESET: Spec(_EMPTY, _EMPTY),
    Command.REGION_WRITE_MULTI: Spec(
        Form(WriteMulti, struct.Struct("=Q"), tail=True),
        Form(WriteMultiDone, struct.Struct("=Q")),
    ),
    Command.DEVICE_FEATURE: Spec(_FEATURE, _FEATURE),
    Command.MIG_DATA_READ: Spec(_MIG_SIZE, _MIG_DATA),
    Command.MIG_DATA_WRITE: Spec(_MIG_DATA, _EMPTY),
    Command.MIG_PRECOPY_INFO: Spec(_PRECOPY_INFO, _PRECOPY_INFO, extension=True),
    Command.MIG_DATA_POLL: Spec(_POLL, _POLL, extension=True),
    Command.DEVICE_IDENTITY: Spec(_IDENTITY, _IDENTITY, extension=True),
    Command.MIG_DATA_AREA: Spec(
        Form(DataArea, struct.Struct("=IIQ")), _EMPTY, request_fds=1, extension=True
    ),
    Command.MIG_DATA_READ_AREA: Spec(_AREA_ACCESS, _MIG_SIZE, extension=True),
    Command.MIG_DATA_WRITE_AREA: Spec(_AREA_ACCESS, _EMPTY, extension=True),
}

#: Offset, region, count of at most 8 bytes, the bytes (REGION_WRITE_MULTI).
WRITE_MULTI_ENTRY = struct.Struct("=QII8s")
WRITE_MULTI_MOST = 200

#: ``struct vfio_info_cap_header`` and ``vfio_region_info_cap_sparse_mmap`` with its areas.
CAP_HEADER = struct.Struct("=HHI")
CAP_SPARSE_MMAP = 1
SPARSE_HEAD, SPARSE_AREA = struct.Struct("=II"), struct.Struct("=QQ")

#: Bytes before the data of a MIG_DATA_READ's reply, and before that of the largest other message.
MIG_DATA_HEAD = _MIG_DATA.layout.size
MOST_HEAD = 64


def pack_sparse_areas(areas: tuple[tuple[int, int], ...]) -> bytes:
    """The capability chain that holds nothing but the areas that can be mapped."""
    head = CAP_HEADER.pack(CAP_SPARSE_MMAP, 1, 0) + SPARSE_HEAD.pack(len(areas), 0)
    return head + b"".join(SPARSE_AREA.pack(*area) for area in areas)


def parse_sparse_areas(info: RegionInfoMessage) -> tuple[tuple[int, int], ...] | None:
    """The areas of a region's info, None where it names none. WireError for a broken chain."""
    chain = memoryview(info.capabilities)
    # Offsets in the chain count from the beginning of the info itself.
    base = _REGION_INFO.layout.size
    at = info.cap_offset
    while at:
        start = at - base
        if start < 0 or start + CAP_HEADER.size > len(chain):
            raise wrong(errno.EINVAL, f"a region's capability at offset {at} is not in its info")
        kind, _, following = CAP_HEADER.unpack_from(chain, start)
        if kind == CAP_SPARSE_MMAP:
            start += CAP_HEADER.size
            if start + SPARSE_HEAD.size > len(chain):
                raise wrong(errno.EINVAL, "the areas of a region are cut off")
            count, _ = SPARSE_HEAD.unpack_from(chain, start)
            start += SPARSE_HEAD.size
            if count > (len(chain) - start) // SPARSE_AREA.size:
                raise wrong(errno.EINVAL, f"{count} areas of a region are more than came")
            end = start + count * SPARSE_AREA.size
            return tuple(SPARSE_AREA.iter_unpack(chain[start:end]))
        if following and following <= at:
            raise wrong(errno.EINVAL, "the chain of a region's capabilities runs in a circle")
        at = following
    return None
