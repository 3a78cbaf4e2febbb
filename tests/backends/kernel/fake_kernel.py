"""A kernel with one VFIO device, as a small model behind the Kernel protocol of ``ioctls``.

Numbers and structures are written down here once more, from include/uapi/linux/vfio.h, so that a
wrong one in the package is found. User memory is this process's own, as for a real kernel.
"""

import ctypes
import errno
import itertools
import select
import struct
from dataclasses import dataclass
from typing import Any

from precopy.vfio.states import PRE_COPY_STATES, MigrationFlags
from tests.backends.kernel.fake_device import HEADER, PAGE, FakeDevice, Session, fail

CDEV, GROUP = "/dev/vfio/devices/vfio0", "/dev/vfio/12"
CONTAINER, IOMMUFD = "/dev/vfio/vfio", "/dev/iommu"
NOIOMMU_GROUP = "/dev/vfio/noiommu-12"

GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU = 0x3B64, 0x3B65, 0x3B66
GROUP_GET_STATUS, GROUP_SET_CONTAINER, GROUP_GET_DEVICE_FD = 0x3B67, 0x3B68, 0x3B6A
GET_REGION_INFO, RESET, FEATURE = 0x3B6C, 0x3B6F, 0x3B75
BIND_IOMMUFD, GET_PRECOPY_INFO = 0x3B76, 0x3B79

TYPE1, TYPE1V2, NOIOMMU = 1, 3, 8

MIGRATION, DEVICE_STATE, LOG_START, LOG_STOP, LOG_REPORT = 1, 2, 6, 7, 8
DATA_SIZE, PRECOPY_INFO_V2 = 9, 12
GET, SET, PROBE = 1 << 16, 1 << 17, 1 << 18

#: Feature -> its methods and the bytes of its payload.
FEATURES = {
    MIGRATION: (GET, 8),
    DEVICE_STATE: (GET | SET, 8),
    LOG_START: (SET, 24),
    LOG_STOP: (SET, 0),
    LOG_REPORT: (GET, 32),
    DATA_SIZE: (GET, 8),
    PRECOPY_INFO_V2: (SET, 0),
}


@dataclass
class Node:
    """An open file. ``what`` is the node's path, or "device" and "data_fd"."""

    what: str
    session: Session | None = None
    attached: bool = False
    nonblocking: bool = False


class FakeKernel:
    """``nodes``: the paths that can be opened. ``errors``: what a path or an ioctl fails with."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = set(nodes or (CDEV, GROUP, CONTAINER, IOMMUFD))
        self.errors: dict[str | int, int] = {}
        self.device = FakeDevice()
        self.features = dict(FEATURES)
        self.device_name = "0000:06:00.2"
        self.types = {TYPE1, TYPE1V2}
        self.iommufd_types = {TYPE1, TYPE1V2, NOIOMMU}
        self.api_version = 0
        self.viable = True
        self.calls: list[str | int] = []
        self.closed: list[int] = []
        #: Bytes that an access to a region falls short by.
        self.short = 0
        self.open_files: dict[int, Node] = {}
        self._numbers = itertools.count(100)
        self._container: int | None = None
        self._iommu: int | None = None

    # --- Files --------------------------------------------------------------------------------

    def _new(self, node: Node) -> int:
        number = next(self._numbers)
        self.open_files[number] = node
        return number

    def _file(self, fd: int) -> Node:
        try:
            return self.open_files[fd]
        except KeyError:
            raise fail(errno.EBADF) from None

    def _fail_if_told(self, what: str | int) -> None:
        self.calls.append(what)
        if what in self.errors:
            raise fail(self.errors[what])

    def _is_open(self, what: str) -> bool:
        return any(node.what == what for node in self.open_files.values())

    def open(self, path: str) -> int:
        self._fail_if_told(path)
        if path not in self.nodes:
            raise fail(errno.ENOENT)
        if path in (GROUP, NOIOMMU_GROUP) and self._is_open(path):
            raise fail(errno.EBUSY)
        return self._new(Node(path))

    def close(self, fd: int) -> None:
        node = self._file(fd)
        del self.open_files[fd]
        self.closed.append(fd)
        if node.what in (CDEV, "device"):
            self.device.end_session()
            self.device.logged.clear()
        if node.what == "data_fd":
            assert node.session is not None
            node.session.alive = False
        # A file is gone, whatever close says.
        self._fail_if_told("close")

    # --- ioctl --------------------------------------------------------------------------------

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        node = self._file(fd)
        self._fail_if_told(request)
        if node.what in (CONTAINER, IOMMUFD):
            assert isinstance(argument, int)
            return self._of_container(fd, node, request, argument)
        if node.what in (GROUP, NOIOMMU_GROUP):
            assert isinstance(argument, bytearray)
            return self._of_group(node, request, argument)
        if node.what == "data_fd":
            assert isinstance(argument, bytearray)
            return self._of_data_fd(node, request, argument)
        return self._of_device(node, request, argument)

    def _of_container(self, fd: int, node: Node, request: int, argument: int) -> int:
        types = self.types if node.what == CONTAINER else self.iommufd_types
        if request == GET_API_VERSION:
            return self.api_version
        if request == CHECK_EXTENSION:
            return int(argument in types)
        if request == SET_IOMMU:
            if self._container != fd or argument not in types:
                raise fail(errno.EINVAL)
            self._iommu = argument
            return 0
        raise fail(errno.ENOTTY)

    def _of_group(self, node: Node, request: int, data: bytearray) -> int:
        if request == GROUP_GET_STATUS:
            argsz, _ = struct.unpack("=II", data)
            assert argsz == 8
            data[4:] = struct.pack("=I", 1 if self.viable else 0)
            return 0
        if request == GROUP_SET_CONTAINER:
            (container,) = struct.unpack("=i", data)
            if self._file(container).what not in (CONTAINER, IOMMUFD):
                raise fail(errno.EBADFD)
            self._container = container
            return 0
        if request == GROUP_GET_DEVICE_FD:
            fitting = {NOIOMMU} if node.what == NOIOMMU_GROUP else {TYPE1, TYPE1V2}
            if self._iommu not in fitting:
                raise fail(errno.EINVAL)
            if bytes(data) != self.device_name.encode() + b"\0":
                raise fail(errno.ENODEV)
            return self._new(Node("device", attached=True))
        raise fail(errno.ENOTTY)

    def _of_device(self, node: Node, request: int, argument: int | bytearray) -> int:
        if request == BIND_IOMMUFD:
            assert isinstance(argument, bytearray)
            argsz, flags, iommufd, _ = struct.unpack("=IIiI", argument)
            others = (each for each in self.open_files.values() if each is not node)
            if (argsz, flags) != (16, 0) or any(each.attached for each in others):
                raise fail(errno.EINVAL)
            if self._file(iommufd).what != IOMMUFD:
                raise fail(errno.EBADFD)
            node.attached = True
            argument[12:] = struct.pack("=I", 1)
            return 0
        if not node.attached:
            raise fail(errno.EINVAL)
        if request == RESET:
            self.device.reset()
            return 0
        assert isinstance(argument, bytearray)
        if request == GET_REGION_INFO:
            argsz, _, index, _, _, _ = struct.unpack("=IIIIQQ", argument)
            if argsz != 32 or index > 8:
                raise fail(errno.EINVAL)
            size = len(self.device.regions.get(index, b""))
            argument[16:] = struct.pack("=QQ", size, index << 40)
            return 0
        if request == FEATURE:
            return self._feature(argument)
        raise fail(errno.ENOTTY)

    # --- VFIO_DEVICE_FEATURE ------------------------------------------------------------------

    def _feature(self, data: bytearray) -> int:
        argsz, flags = struct.unpack_from("=II", data)
        index, methods = flags & 0xFFFF, flags & (GET | SET)
        if argsz != len(data) or flags & ~(0xFFFF | GET | SET | PROBE):
            raise fail(errno.EINVAL)
        if not flags & PROBE and methods == GET | SET:
            raise fail(errno.EINVAL)
        if index not in self.features:
            raise fail(errno.ENOTTY)
        has, size = self.features[index]
        if methods & ~has or not flags & (GET | SET | PROBE):
            raise fail(errno.EINVAL)
        if flags & PROBE:
            return 0
        if argsz - 8 < size:
            raise fail(errno.EINVAL)
        payload = data[8:]
        handlers: dict[int, Any] = {
            MIGRATION: self._migration,
            DEVICE_STATE: self._set_state if methods == SET else self._get_state,
            LOG_START: self._log_start,
            LOG_STOP: self._log_stop,
            LOG_REPORT: self._log_report,
            DATA_SIZE: self._data_size,
            PRECOPY_INFO_V2: self._precopy_info_v2,
        }
        try:
            handlers[index](payload)
        finally:
            data[8:] = payload
        return 0

    def _migration(self, payload: bytearray) -> None:
        # A bit that this version of the uAPI does not know.
        payload[:] = struct.pack("=Q", int(self.device.flags) | 1 << 40)

    def _get_state(self, payload: bytearray) -> None:
        payload[:] = struct.pack("=Ii", int(self.device.state), -1)

    def _set_state(self, payload: bytearray) -> None:
        (new, _) = struct.unpack("=Ii", payload)
        payload[:] = struct.pack("=Ii", new, -1)
        session = self.device.set_state(new)
        if session is not None:
            payload[:] = struct.pack("=Ii", new, self._new(Node("data_fd", session)))

    def _data_size(self, payload: bytearray) -> None:
        payload[:] = struct.pack("=Q", len(HEADER) + 8)

    def _precopy_info_v2(self, payload: bytearray) -> None:
        if not self.device.flags & MigrationFlags.PRE_COPY:
            raise fail(errno.EINVAL)
        self.device.info_v2 = True

    def _log_start(self, payload: bytearray) -> None:
        page_size, count, _, address = struct.unpack("=QIIQ", payload)
        if count == 0 or page_size == 0 or self.device.logged:
            raise fail(errno.EINVAL)
        if count > 256:
            raise fail(errno.E2BIG)
        raw = ctypes.string_at(address, count * 16)
        ranges = sorted(struct.iter_unpack("=QQ", raw))
        for start, length in ranges:
            if start % page_size or length % page_size:
                raise fail(errno.EINVAL)
            if start + length >= 1 << 64:
                raise fail(errno.EOVERFLOW)
        if any(one[0] + one[1] > other[0] for one, other in itertools.pairwise(ranges)):
            raise fail(errno.EINVAL)
        self.device.logged = ranges
        self.device.dirty.clear()
        # The page size asked for is a hint; this device has its own.
        payload[:8] = struct.pack("=Q", PAGE)

    def _log_stop(self, payload: bytearray) -> None:
        self.device.logged = []

    def _log_report(self, payload: bytearray) -> None:
        iova, length, page_size, address = struct.unpack("=QQQQ", payload)
        if page_size < PAGE or page_size & page_size - 1 or not self.device.logged:
            raise fail(errno.EINVAL)
        if iova + length >= 1 << 64:
            raise fail(errno.EOVERFLOW)
        inside = {page for page in self.device.dirty if iova <= page * PAGE < iova + length}
        self.device.dirty -= inside
        for bit in {(page * PAGE - iova) // page_size for page in inside}:
            # Whole words, as the kernel does it.
            word = ctypes.c_uint64.from_address(address + bit // 64 * 8)
            word.value |= 1 << bit % 64

    # --- The data_fd and regions --------------------------------------------------------------

    def _of_data_fd(self, node: Node, request: int, data: bytearray) -> int:
        session = node.session
        assert session is not None
        if request != GET_PRECOPY_INFO or not session.saving:
            raise fail(errno.ENOTTY)
        (argsz,) = struct.unpack_from("=I", data)
        if argsz < 24 or self.device.state not in PRE_COPY_STATES:
            raise fail(errno.EINVAL)
        if not session.alive:
            raise fail(errno.ENODEV)
        # Without INFOv2 the flags are whatever they are.
        flags = int(self.device.reinit) if self.device.info_v2 else 0xA5A5A5A5
        initial = min(session.initial, len(session.data))
        data[:24] = struct.pack("=IIQQ", argsz, flags, initial, len(session.data) - initial)
        return 0

    def _session(self, fd: int, *, saving: bool) -> Session:
        session = self._file(fd).session
        assert session is not None
        if session.saving is not saving:
            raise fail(errno.EBADF)
        if not session.alive:
            raise fail(errno.ENODEV)
        return session

    def read(self, fd: int, buffer: memoryview) -> int:
        self._fail_if_told("read")
        session = self._session(fd, saving=True)
        if not session.data and session.working:
            assert self._file(fd).nonblocking, "this read would never return"
            raise fail(errno.EAGAIN)
        if not session.data and not session.ended:
            raise fail(errno.ENOMSG)
        piece = bytes(session.data[: len(buffer)])
        del session.data[: len(piece)]
        session.initial = max(0, session.initial - len(piece))
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, fd: int, data: memoryview) -> int:
        self._fail_if_told("write")
        self._session(fd, saving=False).data += data
        return len(data)

    def _region(self, fd: int, offset: int) -> tuple[bytearray, int]:
        if not self._file(fd).attached:
            raise fail(errno.EINVAL)
        return self.device.regions[offset >> 40], offset & (1 << 40) - 1

    def pread(self, fd: int, length: int, offset: int) -> bytes:
        self._fail_if_told("pread")
        region, place = self._region(fd, offset)
        return bytes(region[place : place + length - self.short])

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        self._fail_if_told("pwrite")
        region, place = self._region(fd, offset)
        region[place : place + len(data)] = data
        return len(data) - self.short

    def poll(self, fd: int, events: int, timeout: float | None) -> int:
        self._fail_if_told("poll")
        session = self._file(fd).session
        assert session is not None
        if not session.alive:
            return (select.POLLIN | select.POLLRDHUP) & events
        ready = select.POLLOUT
        if session.saving:
            ready = select.POLLIN if session.data or session.ended else 0
        found = ready & events
        assert found or timeout is not None, "this poll would never return"
        return found

    def set_blocking(self, fd: int, blocking: bool) -> None:
        self._file(fd).nonblocking = not blocking
