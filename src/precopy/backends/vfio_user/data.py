"""The data of a device's state, to and from a server: several messages under way at once.

Where the extension was agreed on, data goes through memory that both have (the data area), else in the
messages themselves.
"""

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Callable

import numpy as np

from precopy.backends.vfio_user.client import Client
from precopy.vfio_user.messages import (
    COMMANDS,
    HEADER,
    AreaAccess,
    Command,
    DataArea,
    MigData,
    MigDataRead,
    wrong,
)

#: Messages that are under way at once.
_UNDER_WAY = 4

#: Below this a copy is over before a message would have been saved.
_SMALL = 64 << 10

_READ, _WRITE = COMMANDS[Command.MIG_DATA_READ], COMMANDS[Command.MIG_DATA_WRITE]
_ACCESS = COMMANDS[Command.MIG_DATA_READ_AREA].request

#: What servers say of a command that they do not have.
_UNKNOWN = frozenset({errno.EINVAL, errno.ENOTSUP, errno.ENOSYS})


class DataPath:
    """For the files of one device, one after another. ``area``: whether memory may be shared.

    ``write_bytes``: the most that one message carries to the server.
    """

    def __init__(self, client: Client, write_bytes: int, *, area: bool = True) -> None:
        self._client, self._write_bytes = client, write_bytes
        self._extension = client.agreed.extension > 0
        self._area: memoryview | None = None
        self._wants_area = area and self._extension
        self._lock = threading.Lock()

    # --- Reading ------------------------------------------------------------------------------

    def read(self, into: memoryview) -> int:
        """The bytes that came, 0 at an end. OSError as the server's."""
        step = self._client.agreed.max_data_xfer_size
        parts = self._parts(into, step)
        with self._lock:
            area = self._get_area() if len(into) >= _SMALL else None
            if area is None:
                began = [self._begin_read(part) for part in parts]
                take: Callable[[int, int, memoryview], int] = self._take_message
            else:
                began = [
                    self._begin_area(_READ_AREA, n * step, part) for n, part in enumerate(parts)
                ]
                take = self._take_from_area
            total = at = 0
            failed: OSError | None = None
            for n, (part, number) in enumerate(zip(parts, began, strict=True)):
                try:
                    size = take(number, n * step, part)
                except OSError as error:
                    failed = failed or error
                    size = 0
                if size and at != total:
                    # One before it was short, at what was an end then.
                    into[total : total + size] = part[:size]
                total, at = total + size, at + len(part)
        if failed is not None and not total:
            raise failed
        return total

    def _parts(self, data: memoryview, step: int) -> list[memoryview]:
        """As many messages' worth of ``data`` as may be under way at once; at least one."""
        end = min(len(data), step * (_UNDER_WAY if self._extension else 1))
        return [data[at : min(at + step, end)] for at in range(0, end, step)] or [data]

    def _begin_read(self, part: memoryview) -> int:
        layout = _READ.request.layout
        head = layout.pack(layout.size + len(part), len(part))
        return self._client.begin(Command.MIG_DATA_READ, [head], into=part)

    def _take_message(self, number: int, _: int, part: memoryview) -> int:
        client = self._client
        reply = client.finish(Command.MIG_DATA_READ, number)
        try:
            found: MigData = client.parsed(Command.MIG_DATA_READ, reply)
        finally:
            client.recycle(reply)
        # libvfio-user fills a short reply up with zeroes: what counts is the size inside.
        came = reply.header.size - HEADER.size - _READ.reply.layout.size
        return self._checked(found.size, min(len(part), came))

    def _take_from_area(self, number: int, offset: int, part: memoryview) -> int:
        client, area = self._client, self._area
        assert area is not None
        reply = client.finish(_READ_AREA, number)
        try:
            found: MigDataRead = client.parsed(_READ_AREA, reply)
        finally:
            client.recycle(reply)
        size = self._checked(found.size, len(part))
        _copy(part[:size], area[offset : offset + size])
        return size

    def _checked(self, size: int, most: int) -> int:
        if size > most:
            raise wrong(
                errno.EPROTO, f"{self._client.path}: a read of up to {most} bytes gave {size}"
            )
        return size

    # --- Writing ------------------------------------------------------------------------------

    def write(self, data: memoryview) -> int:
        """The bytes that were taken. OSError as the server's, which then refuses those behind."""
        step = self._write_bytes
        parts = self._parts(data, step)
        with self._lock:
            area = self._get_area() if len(data) >= _SMALL else None
            command = Command.MIG_DATA_WRITE if area is None else _WRITE_AREA
            began = []
            for n, part in enumerate(parts):
                if area is None:
                    began.append(self._begin_write(part))
                else:
                    _copy(area[n * step : n * step + len(part)], part)
                    began.append(self._begin_area(_WRITE_AREA, n * step, part))
            total = 0
            failed: OSError | None = None
            for part, number in zip(parts, began, strict=True):
                try:
                    self._client.recycle(self._client.finish(command, number))
                except OSError as error:
                    failed = failed or error
                if failed is None:
                    total += len(part)
        if failed is not None and not total:
            raise failed
        return total

    def _begin_write(self, part: memoryview) -> int:
        layout = _WRITE.request.layout
        head = layout.pack(layout.size + len(part), len(part))
        return self._client.begin(Command.MIG_DATA_WRITE, [head, part])

    # --- The data area ------------------------------------------------------------------------

    def _begin_area(self, command: Command, offset: int, part: memoryview) -> int:
        asked = AreaAccess(_ACCESS.layout.size, len(part), offset)
        return self._client.begin(command, [_ACCESS.pack(asked)])

    def _get_area(self) -> memoryview | None:
        """Made when it is wanted first; None where the server has no use for one."""
        if self._area is None and self._wants_area:
            self._wants_area = False
            size = _UNDER_WAY * max(self._client.agreed.max_data_xfer_size, self._write_bytes)
            fd = os.memfd_create("precopy-data", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(fd, size)
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                self._client.call(Command.MIG_DATA_AREA, DataArea(16, 0, size), fds=[fd])
                self._area = memoryview(mmap.mmap(fd, size))
            except OSError as error:
                if error.errno not in _UNKNOWN:
                    raise
            finally:
                os.close(fd)
        return self._area


_READ_AREA, _WRITE_AREA = Command.MIG_DATA_READ_AREA, Command.MIG_DATA_WRITE_AREA


def _copy(target: memoryview, source: memoryview) -> None:
    """Without the interpreter's lock, so that the server's part goes on beside it."""
    np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))
