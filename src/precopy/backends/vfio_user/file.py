"""The data of one saving or resuming session over vfio-user, as a :class:`MigrationFile`."""

import errno
import select
import time
from collections.abc import Callable

from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.data import DataPath
from precopy.vfio.device import Buffer, MigrationFile, PrecopyInfo
from precopy.vfio.errors import refuse
from precopy.vfio.states import PRE_COPY_STATES, DeviceState
from precopy.vfio.uapi import PrecopyInfoFlags
from precopy.vfio_user.messages import Command, DataPoll, PrecopyInfoMessage

#: Milliseconds that a server is asked to wait at a time: what other threads want of the device waits
#: behind it.
_PATIENCE = 50

_SAVING = PRE_COPY_STATES | {DeviceState.STOP_COPY}

#: What is told of initial state whose size the server does not say.
_UNKNOWN = 1


class VfioUserFile(MigrationFile):
    """``state`` tells where the device stands; ``data`` carries what is read and written.

    Against a server without the extension an empty read in PRE_COPY is the temporary end, and
    ``dirty_bytes`` are those of the round before.
    """

    def __init__(self, client: Client, state: Callable[[], DeviceState], data: DataPath) -> None:
        self._client, self._state, self._data = client, state, data
        self._saving = state() is not DeviceState.RESUMING
        self._extension = client.agreed.extension > 0
        self._nonblocking = self._closed = self._ended = False
        #: Bytes read since the last temporary end, of the round before, and whether there was one.
        self._round = self._last_round = 0
        self._initial = True

    def end(self) -> None:
        """The session is over."""
        self._ended = True

    def _require(self, *, saving: bool) -> None:
        if self._closed:
            raise refuse(errno.EBADF, f"{self._client.path}: the file is closed")
        if saving is not self._saving:
            kind = "saving" if self._saving else "resuming"
            raise refuse(errno.EBADF, f"{self._client.path}: this is a {kind} file")
        if self._ended:
            raise refuse(errno.ENODEV, f"{self._client.path}: the session has ended")

    def readinto(self, buffer: bytearray | memoryview) -> int:
        self._require(saving=True)
        target = memoryview(buffer).cast("B")
        while True:
            try:
                count = self._data.read(target)
            except OSError as error:
                if error.errno != errno.EAGAIN or self._nonblocking:
                    raise
                self._ask(select.POLLIN, _PATIENCE)
                continue
            if not count and target and not self._extension and self._state() in PRE_COPY_STATES:
                self._initial = False
                self._last_round, self._round = self._round, 0
                raise refuse(errno.ENOMSG, f"{self._client.path}: no more state for now")
            self._round += count
            return count

    def write(self, data: Buffer) -> int:
        self._require(saving=False)
        view = memoryview(data).cast("B")
        return self._data.write(view) if view else 0

    def precopy_info(self) -> PrecopyInfo:
        if self._closed:
            raise refuse(errno.EBADF, f"{self._client.path}: the file is closed")
        if not self._saving:
            raise refuse(errno.ENOTTY, f"{self._client.path}: no precopy info of a resuming file")
        if self._state() not in PRE_COPY_STATES:
            raise refuse(
                errno.EINVAL, f"{self._client.path}: no precopy info in {self._state().name}"
            )
        self._require(saving=True)
        if not self._extension:
            if self._initial:
                return PrecopyInfo(_UNKNOWN, 0)
            return PrecopyInfo(0, max(self._round, self._last_round))
        found = self._client.call(Command.MIG_PRECOPY_INFO, PrecopyInfoMessage(24, 0, 0, 0))
        assert isinstance(found, PrecopyInfoMessage)
        flags = PrecopyInfoFlags(found.flags & int(~PrecopyInfoFlags(0)))
        return PrecopyInfo(found.initial_bytes, found.dirty_bytes, flags)

    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        """Without the extension a server can't say, and whatever is asked for is told."""
        if self._ended:
            return (select.POLLIN | select.POLLRDHUP) & (events | select.POLLRDHUP)
        if not self._extension:
            return events & (select.POLLIN if self._saving else select.POLLOUT)
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = float(_PATIENCE) if deadline is None else (deadline - time.monotonic()) * 1000
            found = self._ask(events, int(min(max(left, 0), _PATIENCE)))
            if found or left <= 0:
                return found

    def _ask(self, events: int, milliseconds: int) -> int:
        found = self._client.call(Command.MIG_DATA_POLL, DataPoll(12, events, milliseconds))
        assert isinstance(found, DataPoll)
        return found.events

    def set_nonblocking(self, nonblocking: bool) -> None:
        self._nonblocking = nonblocking

    def close(self) -> None:
        self._closed = True

    def lasts_in(self, state: DeviceState) -> bool:
        """Whether the session goes on when the device enters ``state``."""
        return state in _SAVING if self._saving else state is DeviceState.RESUMING
