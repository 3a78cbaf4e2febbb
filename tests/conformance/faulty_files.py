"""The files of the faulty device's sessions."""

from __future__ import annotations

import errno
import select
import time
from typing import TYPE_CHECKING

from precopy.vfio.device import Buffer, MigrationFile, PrecopyInfo
from precopy.vfio.errors import refuse
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import PrecopyInfoFlags
from tests.conformance.faulty_stream import (
    AHEAD,
    FINAL,
    BadState,
    check_header,
    header,
    record,
)

if TYPE_CHECKING:
    from tests.conformance.faulty import FaultyDevice

PRE_COPY_STATES = (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P)
_OVER = select.POLLIN | select.POLLRDHUP


class _File(MigrationFile):
    def __init__(self, device: FaultyDevice) -> None:
        self._device, self._has = device, device.has
        self.over = self.closed = self._nonblocking = False

    def end(self) -> None:
        self.over = True
        self._device.changed.notify_all()

    def _require(self) -> None:
        if self.closed:
            raise refuse(errno.EBADF, "the file is closed")
        if self.over:
            raise refuse(errno.EIO if self._has("an old file is EIO") else errno.ENODEV, "over")

    def set_nonblocking(self, nonblocking: bool) -> None:
        self._nonblocking = nonblocking

    def close(self) -> None:
        self.closed = True


class SavingFile(_File):
    """What was queued, and how much of it was read. The first data take until somebody waits."""

    def __init__(self, device: FaultyDevice, *, precopy: bool) -> None:
        super().__init__(device)
        self.precopy, self.finished, self._made = precopy, False, False
        self.queue, self.at, self.info_calls, self._ended = bytearray(header()), 0, 0, 0
        self._marked = bytes(device.memory)
        if precopy:
            self.queue += record(AHEAD, device.memory)
        self.initial = len(self.queue)
        if not precopy:
            self.finish()

    def finish(self) -> None:
        """STOP_COPY: the rest is queued."""
        if self.finished:
            return
        if self._has("nothing read is nothing saved") and self.precopy and not self.at:
            self.at = self.initial
        if self._has("a part read is lost") and 0 < self.at < self.initial:
            self.at = self.initial
        device = self._device
        if self._has("a stopped device counts"):
            device.memory[0] = (device.memory[0] + device.stops) & 0xFF
        self.queue += record(FINAL, device.memory)
        self.finished = True
        device.changed.notify_all()

    @property
    def left(self) -> int:
        return len(self.queue) - self.at

    def _dirty(self) -> bool:
        return not self.finished and bytes(self._device.memory) != self._marked

    def readinto(self, buffer: bytearray | memoryview) -> int:
        with self._device.lock:
            return self._read(buffer)

    def _read(self, buffer: bytearray | memoryview) -> int:
        has = self._has
        if self.over and not self.closed:
            if has("an old file gives stale data"):
                buffer[:1] = b"x"
                return 1
            session = self._device.session
            if has("an old file reads the new session") and isinstance(session, SavingFile):
                return 0 if session.over else session._read(buffer)
        self._require()
        if self._nonblocking and not self._made:
            if has("O_NONBLOCK is an end"):
                return 0
            raise refuse(errno.EBUSY if has("O_NONBLOCK is EBUSY") else errno.EAGAIN, "being made")
        self._made = True
        if not self.left and self._dirty():
            self._marked = bytes(self._device.memory)
            self.queue += record(AHEAD, self._device.memory)
        if not self.left:
            return self._end()
        return self._give(buffer)

    def _end(self) -> int:
        has = self._has
        self._ended += 1
        if self.finished:
            if has("ENOMSG in STOP_COPY"):
                raise refuse(errno.ENOMSG, "the end")
            if has("the end is ENODATA") or (has("the end is told once") and self._ended > 1):
                raise refuse(errno.ENODATA, "the end")
            return 0
        if has("the temporary end is 0") or (
            has("the temporary end comes once") and self._ended > 1
        ):
            return 0
        code = errno.EAGAIN if has("the temporary end is EAGAIN") else errno.ENOMSG
        raise refuse(code, "the end, for now")

    def _give(self, buffer: bytearray | memoryview) -> int:
        has = self._has
        count = min(len(buffer), self.left)
        if (
            has("large reads end early")
            and len(buffer) > 1 << 16
            and self.finished
            and self.at < 64
        ):
            self.at = len(self.queue)
            return self._end()
        piece = bytes(self.queue[self.at : self.at + count])
        if has("single bytes are zero") and len(buffer) == 1:
            piece = b"\0"
        buffer[:count] = piece
        self.at += count
        if has("a byte is lost at a read's end") and self.left > 1 and self.at % 7 == 0:
            self.at += 1
        if has("a byte comes twice") and count == 13:
            self.at -= 1
        return count

    def write(self, data: Buffer) -> int:
        if self._has("a saving file can be written"):
            return len(data)
        raise refuse(errno.EBADF, "a saving file is read")

    def precopy_info(self) -> PrecopyInfo:
        with self._device.lock:
            return self._info()

    def _info(self) -> PrecopyInfo:
        has, state = self._has, self._device._state
        if not (self.over and has("GET_PRECOPY_INFO of an old file")):
            self._require()
            stopped = has("GET_PRECOPY_INFO in STOP_COPY") and self.finished
            if (state not in PRE_COPY_STATES or not self.precopy) and not stopped:
                none = has("GET_PRECOPY_INFO in STOP_COPY is ENOTTY")
                raise refuse(errno.ENOTTY if none else errno.EINVAL, "outside PRE_COPY")
            if state is PRE_COPY_STATES[1] and has("no GET_PRECOPY_INFO in PRE_COPY_P2P"):
                raise refuse(errno.EINVAL, "outside PRE_COPY")
        self.info_calls += 1
        initial = max(self.initial - self.at, 0)
        dirty = self.left - initial + (len(record(AHEAD, self._marked)) if self._dirty() else 0)
        return self._told(initial, dirty)

    def _told(self, initial: int, dirty: int) -> PrecopyInfo:
        has, first = self._has, self.info_calls == 1
        flags = PrecopyInfoFlags(0)
        if has("initial_bytes is 0 at first") and first:
            initial = 0
        elif has("initial_bytes grows") and initial:
            initial += self.info_calls
        elif has("initial_bytes stays") and initial:
            initial = self.initial
        elif has("initial_bytes is a multiple of 16"):
            initial = -(-initial // 16) * 16
        elif has("dirty_bytes is the state at first") and first:
            dirty = len(self._device.memory)
        elif has("initial_bytes comes back without INFOv2") and not initial:
            initial = 0 if self._device.info_v2 else 8
        elif has("dirty_bytes never ends") and not initial:
            dirty = max(dirty, 1)
        elif has("initial_bytes counts too few") and self.at:
            initial = max(initial - 100, 0)
        elif self._device.info_v2:
            if has("flags that there are not"):
                flags = PrecopyInfoFlags(2)
            elif has("REINIT with nothing") and not initial:
                flags = PrecopyInfoFlags.REINIT
            elif has("REINIT with dirty_bytes"):
                flags, dirty = PrecopyInfoFlags.REINIT, dirty + 8
        return PrecopyInfo(initial, dirty, flags)

    def _events(self) -> int:
        has = self._has
        if self.over:
            if has("an old file polls nothing"):
                return 0
            return select.POLLIN if has("RDHUP is missing") else _OVER
        if has("readable at the temporary end"):
            return select.POLLIN
        if self.finished and (
            has("not readable in STOP_COPY") or (not self.left and has("not readable at the end"))
        ):
            return 0
        ready = self.left or self.finished or self._dirty()
        return select.POLLIN if ready else 0

    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        ends = None if timeout is None else time.monotonic() + timeout
        with self._device.lock:
            self._made = True
            while not (found := self._events() & (events | select.POLLRDHUP)):
                left = None if ends is None else ends - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._device.changed.wait(left)
                if self._has("who waits is not woken"):
                    self._device.changed.wait(left)
                    return 0
            return found


class ResumingFile(_File):
    """Collects what is written; the header is looked at as soon as it is there."""

    def __init__(self, device: FaultyDevice, data: bytes) -> None:
        super().__init__(device)
        self.data, self.error = bytearray(data), False

    def readinto(self, buffer: bytearray | memoryview) -> int:
        if self._has("a resuming file can be read"):
            return 0
        wrong = self._has("reads of a resuming file are EINVAL")
        raise refuse(errno.EINVAL if wrong else errno.EBADF, "a resuming file is written")

    def write(self, data: Buffer) -> int:
        with self._device.lock:
            if self.over and self._has("an old resuming file takes data"):
                return len(data)
            self._require()
            if self.error:
                raise refuse(errno.EINVAL, "a write has failed")
            if self._has("a header over two writes is refused") and not self.data:
                self.error = 0 < len(data) < 24
            if not (self._has("writes of a byte are dropped") and len(data) == 1):
                self.data += data
            try:
                check_header(bytes(self.data), self._has)
            except BadState as bad:
                if self._has("a failed write is forgotten"):
                    self.data.clear()
                else:
                    self.error = True
                raise refuse(errno.EINVAL, str(bad)) from bad
            return len(data)

    def precopy_info(self) -> PrecopyInfo:
        if self._has("a resuming file has GET_PRECOPY_INFO"):
            return PrecopyInfo(0, 0)
        wrong = self._has("GET_PRECOPY_INFO is EINVAL while resuming")
        raise refuse(errno.EINVAL if wrong else errno.ENOTTY, "a resuming file")

    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        return _OVER if self.over else events & select.POLLOUT
