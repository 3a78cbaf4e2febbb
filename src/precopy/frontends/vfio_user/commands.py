"""The commands of a client: each a method, found in one table."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precopy.frontends.vfio_user import memory
from precopy.frontends.vfio_user.client_memory import ClientMemory
from precopy.frontends.vfio_user.interrupts import FLAGS as IRQ_FLAGS
from precopy.frontends.vfio_user.offered import Offered
from precopy.pci.dma import DmaMemory
from precopy.vfio.device import Buffer
from precopy.vfio.face import (
    NUM_IRQS,
    NUM_REGIONS,
    DeviceFlags,
    IrqFlags,
    IrqIndex,
    RegionFlags,
    RegionInfo,
)
from precopy.vfio_user.conversation import Message
from precopy.vfio_user.messages import (
    COMMANDS,
    WRITE_MULTI_ENTRY,
    WRITE_MULTI_MOST,
    AreaAccess,
    Command,
    DataArea,
    DataPoll,
    DeviceFeature,
    DeviceInfo,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    DmaUnmapFlags,
    Empty,
    Identity,
    IrqInfo,
    MigData,
    MigDataRead,
    PrecopyInfoMessage,
    RegionAccess,
    RegionData,
    RegionInfoMessage,
    RegionIoFds,
    SetIrqs,
    Version,
    WriteMulti,
    WriteMultiDone,
    pack_sparse_areas,
    wrong,
)
from precopy.vfio_user.version import Capabilities

#: Largest data area of a client, in bytes; it is the client's memory.
MOST_AREA = 64 << 20

_INFO_BYTES, _REGION_INFO_BYTES = 16, 32

_READ, _WRITE = int(RegionFlags.READ), int(RegionFlags.WRITE)
_REGION_HEAD = COMMANDS[Command.REGION_READ].reply.layout
_MIG_DATA = COMMANDS[Command.MIG_DATA_READ].reply.layout


@dataclass(slots=True)
class Answer:
    """A reply: the parts of its payload, and descriptors; ``sent`` is called once it has gone."""

    payload: Sequence[Buffer] = ()
    fds: Sequence[int] = ()
    sent: Callable[[], None] | None = None


class Commands:
    """What a client that has ``offered`` may ask, by what was ``agreed`` on; ``ours`` is our own bound.

    A method raises OSError with the errno that the client is to be told.
    """

    def __init__(
        self, offered: Offered, ours: Capabilities, agreed: Capabilities, client: ClientMemory
    ) -> None:
        self._offered, self._ours, self._agreed = offered, ours, agreed
        self._client = client
        self._room = bytearray()
        #: The client's memory through which data goes, if it wants that.
        self._area: memoryview | None = None
        # As plain numbers: testing a bit of an enum's costs 1 to 2 us.
        self._access = [(region.size, int(region.flags)) for region in offered.regions]

    def close(self) -> None:
        """Let go of the client's memory."""
        self._area = None

    def carry_out(self, message: Message) -> Answer:
        """Carry out ``message``."""
        if message.problem is not None:
            raise message.problem
        header = message.header
        found = _TABLE.get(header.command)
        if found is None:
            raise wrong(errno.EINVAL, f"there is no command {header.command} here")
        handler, spec = found
        if spec.extension and not self._agreed.extension:
            raise wrong(errno.EINVAL, "the extension was not agreed on")
        if message.fds:
            most = min(spec.request_fds, max(self._ours.max_msg_fds, 1))
            if len(message.fds) > most:
                raise wrong(errno.EINVAL, f"{len(message.fds)} descriptors, at most {most}")
        return handler(self, spec.request.parse(message.payload), message.fds)

    # --- Who the device is --------------------------------------------------------------------

    def _version_again(self, request: Version, fds: list[int]) -> Answer:
        raise wrong(errno.EINVAL, "the version was agreed on already")

    def _get_info(self, request: DeviceInfo, fds: list[int]) -> Answer:
        if request.argsz < _INFO_BYTES:
            raise wrong(errno.EINVAL, f"device info with an argsz of {request.argsz}")
        has_face = self._offered.face is not None
        flags = DeviceFlags.RESET | (DeviceFlags.PCI if has_face else DeviceFlags(0))
        regions, irqs = (NUM_REGIONS, NUM_IRQS) if has_face else (0, 0)
        return _packed(Command.DEVICE_GET_INFO, DeviceInfo(_INFO_BYTES, flags, regions, irqs))

    def _region(self, index: int) -> RegionInfo:
        regions = self._offered.regions
        if index >= len(regions):
            raise wrong(errno.EINVAL, f"there is no region {index}")
        return regions[index]

    def _get_region_info(self, request: RegionInfoMessage, fds: list[int]) -> Answer:
        if request.argsz < _REGION_INFO_BYTES:
            raise wrong(errno.EINVAL, f"region info with an argsz of {request.argsz}")
        region = self._region(request.region)
        chain = pack_sparse_areas(region.areas) if region.areas else b""
        size, flags, at = _REGION_INFO_BYTES + len(chain), region.flags, 0
        if chain and request.argsz >= size:
            flags, at = flags | RegionFlags.CAPS, _REGION_INFO_BYTES
        else:
            # The caller learns from argsz how much room the rest needs.
            chain = b""
        found = RegionInfoMessage(
            size, flags, request.region, at, region.size, region.fd_offset, chain
        )
        shown = [region.fd] if region.fd is not None and flags & RegionFlags.MMAP else []
        return _packed(Command.DEVICE_GET_REGION_INFO, found, fds=shown)

    def _get_region_io_fds(self, request: RegionIoFds, fds: list[int]) -> Answer:
        if request.argsz < _INFO_BYTES:
            raise wrong(errno.EINVAL, f"region I/O descriptors with an argsz of {request.argsz}")
        self._region(request.region)
        # What a doorbell means is in its data, which an eventfd would lose.
        found = RegionIoFds(_INFO_BYTES, 0, request.region, 0, b"")
        return _packed(Command.DEVICE_GET_REGION_IO_FDS, found)

    # --- Interrupts ---------------------------------------------------------------------------

    def _get_irq_info(self, request: IrqInfo, fds: list[int]) -> Answer:
        if request.argsz < _INFO_BYTES:
            raise wrong(errno.EINVAL, f"interrupt info with an argsz of {request.argsz}")
        self._offered.interrupts.check_index(request.irq)
        count = self._offered.interrupts.count(request.irq)
        flags = IRQ_FLAGS[IrqIndex(request.irq)] if count else IrqFlags(0)
        return _packed(Command.DEVICE_GET_IRQ_INFO, IrqInfo(_INFO_BYTES, flags, request.irq, count))

    def _set_irqs(self, request: SetIrqs, fds: list[int]) -> Answer:
        self._offered.interrupts.set(request, fds)
        return Answer()

    # --- Regions ------------------------------------------------------------------------------

    def _check_access(self, access: RegionAccess | RegionData, way: int) -> None:
        index, length = access.region, access.length
        if index >= len(self._access):
            raise wrong(errno.EINVAL, f"there is no region {index}")
        size, modes = self._access[index]
        if not modes & way:
            raise wrong(errno.EINVAL, f"region {index} has no {RegionFlags(way).name} access")
        if length > self._agreed.max_data_xfer_size:
            raise wrong(errno.EINVAL, f"{length} bytes at once are too many")
        if access.offset + length > size:
            text = f"region {index}, {access.offset:#x}+{length:#x}: beyond its end"
            raise wrong(errno.EINVAL, text)

    def _region_read(self, request: RegionAccess, fds: list[int]) -> Answer:
        self._check_access(request, _READ)
        face = self._offered.face
        assert face is not None
        data = face.region_read(request.region, request.offset, request.length)
        return Answer((_REGION_HEAD.pack(*request), data))

    def _region_write(self, request: RegionData, fds: list[int]) -> Answer:
        if len(request.data) != request.length:
            text = f"a write of {request.length} bytes came with {len(request.data)}"
            raise wrong(errno.EINVAL, text)
        self._write(request)
        done = RegionAccess(request.offset, request.region, request.length)
        return _packed(Command.REGION_WRITE, done)

    def _write(self, request: RegionData) -> None:
        self._check_access(request, _WRITE)
        face = self._offered.face
        assert face is not None
        if request.length:
            face.region_write(request.region, request.offset, bytes(request.data))

    def _write_multi(self, request: WriteMulti, fds: list[int]) -> Answer:
        if not self._agreed.write_multiple:
            raise wrong(errno.EINVAL, "several writes at once were not agreed on")
        size = WRITE_MULTI_ENTRY.size
        if request.number > WRITE_MULTI_MOST or len(request.writes) != request.number * size:
            text = f"{request.number} writes in {len(request.writes)} bytes"
            raise wrong(errno.EINVAL, text)
        writes = []
        for offset, region, count, data in WRITE_MULTI_ENTRY.iter_unpack(request.writes):
            if not 0 < count <= 8:
                raise wrong(errno.EINVAL, f"a write of {count} bytes among several")
            writes.append(RegionData(offset, region, count, data[:count]))
            self._check_access(writes[-1], _WRITE)
        for write in writes:
            self._write(write)
        return _packed(Command.REGION_WRITE_MULTI, WriteMultiDone(len(writes)))

    # --- DMA ----------------------------------------------------------------------------------

    def _dma_map(self, request: DmaMap, fds: list[int]) -> Answer:
        memory.check(request)
        face = self._offered.face
        if face is None:
            # It has no DMA of its own: any memory will do.
            return Answer()
        if len(face.dma.ranges()) >= self._ours.max_dma_maps:
            raise wrong(errno.ENOSPC, f"more than {self._ours.max_dma_maps} mappings")
        found: DmaMemory
        if fds:
            found = memory.of_file(request, fds[0])
        else:
            readonly = not request.flags & DmaMapFlags.WRITE
            found = memory.SocketMemory(
                request, self._client.read, self._client.write, readonly=readonly
            )
        face.dma.map(request.address, found)
        return Answer()

    def _dma_unmap(self, request: DmaUnmap, fds: list[int]) -> Answer:
        if request.flags & DmaUnmapFlags.GET_DIRTY_PAGE_INFO:
            raise wrong(errno.ENOTSUP, "dirty pages are told by DMA logging")
        if request.more or request.flags & ~int(DmaUnmapFlags.ALL):
            raise wrong(errno.EINVAL, f"unmapping with flags {request.flags:#x}")
        face = self._offered.face
        if request.flags & DmaUnmapFlags.ALL:
            if request.address or request.size:
                raise wrong(errno.EINVAL, "unmapping all names no range")
            self._offered.unmap_all()
        elif face is not None:
            if (request.address, request.size) not in face.dma.ranges():
                text = f"no mapping is at {request.address:#x}+{request.size:#x}"
                raise wrong(errno.ENOENT, text)
            face.unmap_dma([request.address])
        return _packed(Command.DMA_UNMAP, request)

    # --- Reset, features, migration -----------------------------------------------------------

    def _reset(self, request: Empty, fds: list[int]) -> Answer:
        self._offered.reset()
        return Answer()

    def _feature(self, request: DeviceFeature, fds: list[int]) -> Answer:
        most = self._agreed.max_data_xfer_size
        found = self._offered.migration.feature(request, most)
        return _packed(Command.DEVICE_FEATURE, found)

    def _check_size(self, size: int) -> None:
        if size > self._agreed.max_data_xfer_size:
            text = f"{size} bytes of data at once; at most {self._agreed.max_data_xfer_size}"
            raise wrong(errno.EINVAL, text)

    def _mig_read(self, request: MigDataRead, fds: list[int]) -> Answer:
        self._check_size(request.size)
        if len(self._room) < request.size:
            self._room = bytearray(request.size)
        extension = self._agreed.extension > 0
        room = memoryview(self._room)[: request.size]
        found = self._offered.migration.read(room, extension=extension)
        head = _MIG_DATA.pack(_MIG_DATA.size + found.size, found.size)
        return Answer([head, *found.views], sent=found.sent)

    def _set_area(self, request: DataArea, fds: list[int]) -> Answer:
        if request.flags or len(fds) != 1 or not 0 < request.size <= MOST_AREA:
            text = f"a data area of {request.size} bytes with {len(fds)} descriptors"
            raise wrong(errno.EINVAL, text)
        self._area = memory.shared(fds[0], request.size)
        return Answer()

    def _area_part(self, request: AreaAccess) -> memoryview:
        self._check_size(request.size)
        if self._area is None or request.offset + request.size > len(self._area):
            text = f"{request.size} bytes at {request.offset:#x} are not in the data area"
            raise wrong(errno.EINVAL, text)
        return self._area[request.offset : request.offset + request.size]

    def _mig_read_area(self, request: AreaAccess, fds: list[int]) -> Answer:
        part = self._area_part(request)
        found = self._offered.migration.read(part, extension=True)
        found.put(part)
        done = MigDataRead(_MIG_DATA.size, found.size)
        answer = _packed(Command.MIG_DATA_READ_AREA, done)
        answer.sent = found.sent
        return answer

    def _mig_write_area(self, request: AreaAccess, fds: list[int]) -> Answer:
        self._offered.migration.write(self._area_part(request))
        return Answer()

    def _mig_write(self, request: MigData, fds: list[int]) -> Answer:
        if request.size > len(request.data):
            text = f"a write of {request.size} bytes came with {len(request.data)}"
            raise wrong(errno.EINVAL, text)
        self._offered.migration.write(memoryview(request.data)[: request.size])
        return Answer()

    def _precopy_info(self, request: PrecopyInfoMessage, fds: list[int]) -> Answer:
        found = self._offered.migration.precopy_info(request)
        return _packed(Command.MIG_PRECOPY_INFO, found)

    def _poll(self, request: DataPoll, fds: list[int]) -> Answer:
        return _packed(Command.MIG_DATA_POLL, self._offered.migration.poll(request))

    def _identity(self, request: Identity, fds: list[int]) -> Answer:
        text = self._offered.migration.identity()
        return _packed(Command.DEVICE_IDENTITY, Identity(4 + len(text), text))


def _packed(command: Command, message: tuple[object, ...], fds: Sequence[int] = ()) -> Answer:
    return Answer([COMMANDS[command].reply.pack(message)], fds)


_HANDLERS: dict[int, Callable[[Commands, Any, list[int]], Answer]] = {
    Command.VERSION: Commands._version_again,
    Command.DMA_MAP: Commands._dma_map,
    Command.DMA_UNMAP: Commands._dma_unmap,
    Command.DEVICE_GET_INFO: Commands._get_info,
    Command.DEVICE_GET_REGION_INFO: Commands._get_region_info,
    Command.DEVICE_GET_REGION_IO_FDS: Commands._get_region_io_fds,
    Command.DEVICE_GET_IRQ_INFO: Commands._get_irq_info,
    Command.DEVICE_SET_IRQS: Commands._set_irqs,
    Command.REGION_READ: Commands._region_read,
    Command.REGION_WRITE: Commands._region_write,
    Command.DEVICE_RESET: Commands._reset,
    Command.REGION_WRITE_MULTI: Commands._write_multi,
    Command.DEVICE_FEATURE: Commands._feature,
    Command.MIG_DATA_READ: Commands._mig_read,
    Command.MIG_DATA_WRITE: Commands._mig_write,
    Command.MIG_PRECOPY_INFO: Commands._precopy_info,
    Command.MIG_DATA_POLL: Commands._poll,
    Command.DEVICE_IDENTITY: Commands._identity,
    Command.MIG_DATA_AREA: Commands._set_area,
    Command.MIG_DATA_READ_AREA: Commands._mig_read_area,
    Command.MIG_DATA_WRITE_AREA: Commands._mig_write_area,
}

_TABLE = {
    int(command): (handler, COMMANDS[Command(command)]) for command, handler in _HANDLERS.items()
}
