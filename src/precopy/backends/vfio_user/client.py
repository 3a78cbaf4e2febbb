"""A connection to a vfio-user server: negotiation, and each command as a call."""

import contextlib
import errno
import socket
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from precopy.pci.dma import DmaMemory, DmaSpace
from precopy.unix_socket import check_length
from precopy.vfio.device import Buffer
from precopy.vfio.errors import refuse
from precopy.vfio.face import RegionFlags, RegionInfo
from precopy.vfio_user import version
from precopy.vfio_user.conversation import Conversation, Gone, Message
from precopy.vfio_user.messages import (
    COMMANDS,
    Command,
    DeviceInfo,
    DmaAccess,
    DmaData,
    DmaMap,
    DmaMapFlags,
    DmaUnmap,
    Empty,
    IrqInfo,
    RegionData,
    RegionInfoMessage,
    SetIrqs,
    SetIrqsFlags,
    WireError,
    parse_sparse_areas,
    wrong,
)
from precopy.vfio_user.version import Capabilities

_REGION_READ = COMMANDS[Command.REGION_READ]

#: Room for a region's capabilities that is offered at first.
_REGION_ROOM = 4096

#: Seconds that a server has to agree on a version.
_NEGOTIATION = 10.0


class Client:
    """Connected to the server at ``path``. OSError where nobody is there or no version is agreed on.

    ``ours``: what is offered. Any thread may call; calls wait for their replies.
    """

    def __init__(self, path: str, ours: Capabilities = version.OURS) -> None:
        self.path = path
        check_length(path)
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.connect(path)
        except OSError as error:
            connected.close()
            raise OSError(
                error.errno, f"{path}: {error.strerror}; does anybody serve there?"
            ) from error
        self._conversation = Conversation(connected, ours.max_data_xfer_size)
        self._twin: Conversation | None = None
        #: Memory that was mapped without a descriptor: the server asks for it.
        self._memory = DmaSpace()
        self._answering = False
        self._lock = threading.Lock()
        self.agreed = Capabilities()
        try:
            self._negotiate(ours)
        except BaseException:
            self.close()
            raise

    def _negotiate(self, ours: Capabilities) -> None:
        reply = self._call(Command.VERSION, [_pack_version(ours)], timeout=_NEGOTIATION)
        try:
            theirs = version.parse(COMMANDS[Command.VERSION].reply.parse(reply.payload))
            self.agreed = version.agree(theirs, ours)
            if self.agreed.twin_socket:
                index = theirs.fd_index
                if index is None or index >= len(reply.fds):
                    raise wrong(
                        errno.EPROTO, "the server's twin socket did not come with its reply"
                    )
                try:
                    twin = socket.socket(fileno=reply.fds[index])
                except OSError as error:
                    raise wrong(errno.EPROTO, "the server's twin socket is no socket") from error
                del reply.fds[index]
                self._twin = Conversation(twin, ours.max_data_xfer_size)
        except WireError as error:
            raise wrong(errno.EPROTO, f"{self.path}: {error.strerror}") from error
        finally:
            self.recycle(reply)

    # --- Calls --------------------------------------------------------------------------------

    def _call(
        self,
        command: Command,
        payload: Sequence[Buffer],
        *,
        fds: Sequence[int] = (),
        timeout: float | None = None,
    ) -> Message:
        return self.finish(command, self.begin(command, payload, fds=fds), timeout)

    def begin(
        self,
        command: Command,
        payload: Sequence[Buffer],
        *,
        fds: Sequence[int] = (),
        into: memoryview | None = None,
    ) -> int:
        try:
            return self._conversation.begin(command, payload, fds=fds, into=into)
        except OSError as error:
            raise self._told(command, error) from error

    def finish(self, command: Command, number: int, timeout: float | None = None) -> Message:
        try:
            return self._conversation.finish(number, timeout)
        except OSError as error:
            raise self._told(command, error) from error

    def _told(self, command: Command, error: OSError) -> OSError:
        if isinstance(error, Gone):
            return refuse(errno.ENOTCONN, f"{self.path}: {error.strerror}")
        return refuse(error.errno or errno.EIO, f"{self.path}: {command.name}")

    def call(
        self, command: Command, request: tuple[object, ...], *, fds: Sequence[int] = ()
    ) -> Any:
        """Send ``request`` and return the reply, whose tail, if it has one, is bytes.

        OSError with the errno that the server answers, ENOTCONN where it is gone, EPROTO for a reply
        that can't be.
        """
        spec = COMMANDS[command]
        reply = self._call(command, [spec.request.pack(request)], fds=fds)
        try:
            return self.parsed(command, reply)
        finally:
            self.recycle(reply)

    def recycle(self, reply: Message) -> None:
        """A reply has been dealt with."""
        self._conversation.recycle(reply)

    def parsed(self, command: Command, reply: Message) -> Any:
        form = COMMANDS[command].reply
        try:
            found = form.parse(reply.payload)
        except WireError as error:
            raise wrong(errno.EPROTO, f"{self.path}: {command.name}: {error.strerror}") from error
        return found._make((*found[:-1], bytes(found[-1]))) if form.tail else found

    # --- The device, its regions and interrupts -----------------------------------------------

    def device_info(self) -> DeviceInfo:
        found = self.call(Command.DEVICE_GET_INFO, DeviceInfo(16, 0, 0, 0))
        assert isinstance(found, DeviceInfo)
        return found

    def region_info(self, region: int) -> RegionInfo:
        """The region; the descriptor, where there is one, is the caller's."""
        request = RegionInfoMessage(_REGION_ROOM, 0, region, 0, 0, 0, b"")
        spec = COMMANDS[Command.DEVICE_GET_REGION_INFO]
        reply = self._call(Command.DEVICE_GET_REGION_INFO, [spec.request.pack(request)])
        try:
            found = self.parsed(Command.DEVICE_GET_REGION_INFO, reply)
            assert isinstance(found, RegionInfoMessage)
            flags = RegionFlags(found.flags & int(~RegionFlags(0)))
            areas = parse_sparse_areas(found) if flags & RegionFlags.CAPS else None
            fd = reply.fds.pop(0) if reply.fds else None
        finally:
            self.recycle(reply)
        return RegionInfo(found.size, flags & ~RegionFlags.CAPS, fd, found.offset, areas or ())

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        """``size`` bytes, in as many messages as that takes."""
        most = self.agreed.max_data_xfer_size
        if size > most:
            return b"".join(
                self.region_read(region, offset + at, min(most, size - at))
                for at in range(0, size, most)
            )
        layout = _REGION_READ.request.layout
        reply = self._call(Command.REGION_READ, [layout.pack(offset, region, size)])
        data = bytes(reply.payload[layout.size :])
        self.recycle(reply)
        if len(data) != size:
            raise wrong(errno.EPROTO, f"{self.path}: {len(data)} bytes of a region, not {size}")
        return data

    def region_write(self, region: int, offset: int, data: Buffer) -> None:
        most = self.agreed.max_data_xfer_size
        view = memoryview(data)
        for at in range(0, len(view), most):
            part = view[at : at + most]
            self.call(Command.REGION_WRITE, RegionData(offset + at, region, len(part), part))

    def irq_info(self, irq: int) -> IrqInfo:
        found = self.call(Command.DEVICE_GET_IRQ_INFO, IrqInfo(16, 0, irq, 0))
        assert isinstance(found, IrqInfo)
        return found

    def set_irqs(
        self,
        flags: SetIrqsFlags,
        irq: int,
        start: int,
        vectors: int,
        data: bytes = b"",
        fds: Sequence[int] = (),
    ) -> None:
        """DEVICE_SET_IRQS; more eventfds than a message may carry go in several."""
        most = max(1, self.agreed.max_msg_fds)
        if len(fds) <= most:
            request = SetIrqs(20 + len(data), flags, irq, start, vectors, data)
            self.call(Command.DEVICE_SET_IRQS, request, fds=fds)
            return
        for at in range(0, len(fds), most):
            some = fds[at : at + most]
            self.set_irqs(flags, irq, start + at, len(some), fds=some)

    def reset(self) -> None:
        self.call(Command.DEVICE_RESET, Empty())

    # --- DMA ----------------------------------------------------------------------------------

    def dma_map(
        self, address: int, size: int, fd: int, offset: int = 0, *, writable: bool = True
    ) -> None:
        """Let the device reach ``size`` bytes of the file ``fd`` at ``address``."""
        flags = DmaMapFlags.READ | (DmaMapFlags.WRITE if writable else DmaMapFlags(0))
        self.call(Command.DMA_MAP, DmaMap(32, flags, offset, address, size), fds=[fd])

    def dma_map_memory(self, address: int, memory: DmaMemory) -> None:
        """Let the device reach ``memory`` at ``address``: the server asks for it, over the socket."""
        self._memory.map(address, memory)
        flags = DmaMapFlags.READ | (DmaMapFlags(0) if memory.readonly else DmaMapFlags.WRITE)
        self._answer_server()
        try:
            self.call(Command.DMA_MAP, DmaMap(32, flags, 0, address, len(memory)))
        except BaseException:
            self._memory.unmap(address)
            raise

    def dma_unmap(self, address: int, size: int) -> None:
        self.call(Command.DMA_UNMAP, DmaUnmap(24, 0, address, size, b""))
        with contextlib.suppress(OSError):
            self._memory.unmap(address)

    def _answer_server(self) -> None:
        """From now on a thread answers what the server asks."""
        with self._lock:
            if not self._answering:
                self._answering = True
                conversation = self._twin or self._conversation
                threading.Thread(
                    target=self._answer, args=(conversation,), name="vfio-user DMA", daemon=True
                ).start()

    def _answer(self, conversation: Conversation) -> None:
        while True:
            try:
                message = conversation.next_request()
                try:
                    payload = self._dma(message)
                except OSError as error:
                    conversation.fail(message.header, error.errno or errno.EIO)
                else:
                    conversation.reply(message.header, [payload])
                finally:
                    conversation.recycle(message)
            except Gone:
                return

    def _dma(self, message: Message) -> bytes:
        if message.problem is not None:
            raise message.problem
        command = message.header.command
        if command == Command.DMA_READ:
            spec = COMMANDS[Command.DMA_READ]
            asked: DmaAccess = spec.request.parse(message.payload)
            if asked.length > self.agreed.max_data_xfer_size:
                raise wrong(errno.EINVAL, f"{asked.length} bytes of DMA at once are too many")
            data = self._memory.read(asked.address, asked.length)
            return spec.reply.pack(DmaData(asked.address, asked.length, data))
        if command == Command.DMA_WRITE:
            spec = COMMANDS[Command.DMA_WRITE]
            told: DmaData = spec.request.parse(message.payload)
            if len(told.data) != told.length:
                raise wrong(errno.EINVAL, "DMA_WRITE with another length than it says")
            self._memory.write(told.address, told.data)
            return spec.reply.pack(DmaAccess(told.address, told.length))
        raise wrong(errno.EINVAL, f"command {command} is none of a server's")

    def close(self) -> None:
        """End the connection; a second call does nothing."""
        self._conversation.close()
        if self._twin is not None:
            self._twin.close()


def _pack_version(ours: Capabilities) -> bytes:
    return COMMANDS[Command.VERSION].request.pack(version.pack(replace(ours, fd_index=None)))
