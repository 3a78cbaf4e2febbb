"""The saving file: images of the VF in the order in which they were saved, to be read as a stream.

From PRE_COPY on the user holds this file and may read it or not; it may go to STOP_COPY with nothing
yet read. So saves only ever append to the queue, and the final image has a buffer of its own that is
set aside at the beginning (two in chunk mode).

Threads: the driver's state lock is held by whoever starts a save or closes the file; ``_changed``
guards the queue and the state, which readers and the firmware's completions share with it.
"""

import enum
import errno
import select
import threading
import time
from collections.abc import Callable

from precopy.mlx5.buffers import BufferPool, DataBuffer, Direction, pages_for
from precopy.mlx5.commands import Commands, SaveResult, StateSize
from precopy.mlx5.stream_queue import StreamQueue
from precopy.mlx5_abi.commands import VhcaMigrationState
from precopy.mlx5_abi.records import (
    HEADER_SIZE,
    MAX_SAVE_SIZE,
    SIZE_RECORD_BYTES,
    RecordHeader,
    Tag,
    size_record,
)
from precopy.mlx5_abi.status import Status
from precopy.vfio.device import Buffer, MigrationFile, PrecopyInfo
from precopy.vfio.errors import refuse
from precopy.vfio.uapi import PrecopyInfoFlags

#: In chunk mode the final state goes through this many buffers, at most this large each.
NUM_CHUNKS = 2
MAX_CHUNK_SIZE = 8 << 20


class FileState(enum.Enum):
    """Where a saving file stands (``enum mlx5_vf_migf_state``)."""

    #: The first save has not completed.
    NEW = enum.auto()
    #: Dead: the session is over or has failed.
    ERROR = enum.auto()
    #: A save in PRE_COPY was refused for the state the VHCA was in; the final image will be full.
    PRE_COPY_ERROR = enum.auto()
    PRE_COPY = enum.auto()
    #: The final state is being saved.
    SAVE_STOP_COPY_CHUNK = enum.auto()
    #: All of it is in the queue.
    COMPLETE = enum.auto()


class SaveKind(enum.Enum):
    """What a save is for."""

    #: An image of PRE_COPY; the VHCA goes on being tracked.
    TRACKED = enum.auto()
    #: The final state, or a chunk of it.
    FINAL = enum.auto()
    #: The end of tracking on the way back to RUNNING; its image is for nobody.
    CLEANUP = enum.auto()


#: States in which an empty queue is a temporary end.
_TEMPORARY_END = frozenset({FileState.PRE_COPY, FileState.PRE_COPY_ERROR})


class SavingFile(MigrationFile):
    """The data_fd of a saving session. See :class:`MigrationFile` for what each call raises.

    ``ask_info`` and ``more_chunks`` are the driver's: the first answers VFIO_MIG_GET_PRECOPY_INFO
    under the state lock, the second runs :meth:`save_chunk` later, under the state lock.
    """

    def __init__(
        self,
        commands: Commands,
        vhca_id: int,
        *,
        chunk_mode: bool,
        ask_info: Callable[["SavingFile"], PrecopyInfo],
        more_chunks: Callable[["SavingFile", int, int], None],
    ) -> None:
        self._commands = commands
        self._vhca_id = vhca_id
        self._chunk_mode = chunk_mode
        self._ask_info = ask_info
        self._more_chunks = more_chunks
        self._changed = threading.Condition()
        self._state = FileState.NEW
        self._queue = StreamQueue()
        self._in_flight = False
        self._nonblocking = False
        self._closed = False
        self._initial_start = 0
        self._initial_bytes = 0
        self._ready_chunks = 0
        self._delayed_chunk_size = 0
        #: The buffers set aside for the final state; None while one is in use.
        self._reserved: list[DataBuffer | None] = []
        #: What cleanup saves wrote. The kernel (7.3) queues it, for nobody to read; here it only waits
        #: for the end of the session.
        self._discarded: list[DataBuffer] = []
        self._pool = BufferPool(commands)

    # --- What the driver does, holding its state lock -----------------------------------------

    @property
    def state(self) -> FileState:
        return self._state

    def open(self, *, track: bool) -> None:
        """Query, set buffers aside, queue the size record and start the first, full save.

        On error nothing is left behind.
        """
        try:
            size = self._commands.query_state(
                self._vhca_id, incremental=False, chunk=self._chunk_mode
            )
            self._set_aside(size, track)
            reserved = self._reserved[0]
            assert reserved is not None
            with self._changed:
                self._queue.append(memoryview(size_record(reserved.size)))
                if track:
                    self._initial_bytes = SIZE_RECORD_BYTES
            if track:
                buffer = self._pool.new(reserved.pages, Direction.FROM_DEVICE)
            else:
                buffer, self._reserved[0] = reserved, None
            try:
                kind = SaveKind.TRACKED if track else SaveKind.FINAL
                self._save(buffer, kind, incremental=False)
            except BaseException:
                buffer.free()
                raise
        except BaseException:
            self.end()
            raise

    def _set_aside(self, size: StateSize, track: bool) -> None:
        """Buffers for the final state, which may have grown by the time it is saved."""
        length = size.required
        if self._chunk_mode:
            length = max(length, min(MAX_CHUNK_SIZE, size.total))
        elif track:
            length += length // 10
        length = min(length, MAX_SAVE_SIZE)
        for number in range(NUM_CHUNKS if self._chunk_mode else 1):
            buffer = self._pool.get(pages_for(length), Direction.FROM_DEVICE)
            buffer.chunk = number + 1 if self._chunk_mode else 0
            self._reserved.append(buffer)

    def query(self, *, incremental: bool = True) -> StateSize:
        """How large the next save will be, once none is in flight."""
        self.wait_for_save()
        return self._commands.query_state(
            self._vhca_id, incremental=incremental, chunk=self._chunk_mode
        )

    def info(self, *, running: bool, want_reinit: bool) -> PrecopyInfo:
        """VFIO_MIG_GET_PRECOPY_INFO, and a save where there is something new to be read.

        ``running``: in PRE_COPY; a suspended VF (PRE_COPY_P2P) can't be saved with tracking, so
        nothing is asked of the firmware. ENODEV when the session has failed.
        """
        size = StateSize(0, 0, 0)
        self.wait_for_save()
        self._require_alive()
        if running and self._state is not FileState.PRE_COPY_ERROR:
            size = self.query()
        # The kernel (7.3) says REINIT also where nothing is to be saved, and initial_bytes may be 0.
        reinit = want_reinit and size.state == VhcaMigrationState.INIT and size.required > 0
        with self._changed:
            self._require_alive()
            unread = self._queue.unread
            initial = self._initial_start + self._initial_bytes - self._queue.position
            dirty = 0
            if reinit:
                # What is unread has to be read before the new initial state: it counts as such.
                self._initial_start, self._initial_bytes = self._queue.position, unread
                initial = unread + size.total
            elif initial <= 0:
                initial, dirty = 0, unread + size.total
        if size.required and (reinit or not unread):
            self._save_increment(size.required, reinit)
            if reinit:
                initial += HEADER_SIZE
            else:
                dirty += HEADER_SIZE
        flags = PrecopyInfoFlags.REINIT if reinit else PrecopyInfoFlags(0)
        return PrecopyInfo(initial, dirty, flags)

    def _save_increment(self, size: int, reinit: bool) -> None:
        try:
            buffer = self._pool.get(pages_for(size), Direction.FROM_DEVICE)
            buffer.initial = reinit
            try:
                self._save(buffer, SaveKind.TRACKED, incremental=True)
            except BaseException:
                self._pool.put(buffer)
                raise
        except OSError:
            self._fail()
            raise

    def save_final(self) -> None:
        """Save the final image of a session that began with PRE_COPY; the VF is stopped."""
        self.wait_for_save()
        self._require_alive()
        try:
            # After a failed save there is nothing to be incremental to.
            size = self.query(incremental=self._state is not FileState.PRE_COPY_ERROR)
            self._save_reserved(0, size.required)
        except OSError:
            self._fail()
            raise

    def save_chunk(self, number: int, size: int) -> None:
        """Save the next chunk of the final state into reserved buffer ``number`` (1 or 2)."""
        if self._state is FileState.ERROR:
            return
        try:
            self._save_reserved(number - 1, size)
        except OSError:
            self._fail()

    def _save_reserved(self, index: int, size: int) -> None:
        buffer = self._reserved[index]
        assert buffer is not None, "a chunk is saved only after its buffer has been read"
        self._reserved[index] = None
        if buffer.pages < pages_for(size):
            chunk = buffer.chunk
            self._pool.put(buffer)
            buffer = self._pool.get(pages_for(size), Direction.FROM_DEVICE)
            buffer.chunk = chunk
        try:
            self._save(buffer, SaveKind.FINAL, incremental=True)
        except BaseException:
            self._pool.put(buffer)
            raise

    def cancel(self) -> bool:
        """Leave PRE_COPY: a full save that ends tracking, whose image nobody reads.

        Whether it succeeded, or an earlier save had failed already. Where not, and on OSError (it
        could not be started), the session goes on, so that this can be tried again.
        """
        # The kernel (7.3) refuses to leave PRE_COPY with ENODEV once a save has failed, so that only
        # a reset helps. And after PRE_COPY_ERROR it asks for an increment to a save that may never
        # have been. Here the cleanup is tried after either, sized by a full query.
        self.wait_for_save()
        failed = self._state is FileState.ERROR
        size = self.query(incremental=self._state is FileState.PRE_COPY)
        buffer: DataBuffer | None
        if size.required:
            buffer = self._pool.get(pages_for(size.required), Direction.FROM_DEVICE)
        else:
            # Nothing will come, so that none will do; the kernel (7.3) gives one where one waits.
            buffer = self._pool.any_waiting(Direction.FROM_DEVICE)
        try:
            self._save(buffer, SaveKind.CLEANUP, incremental=False)
        except BaseException:
            if buffer is not None:
                self._pool.put(buffer)
            raise
        self.wait_for_save()
        return failed or self._state is not FileState.ERROR

    def _save(self, buffer: DataBuffer | None, kind: SaveKind, *, incremental: bool) -> None:
        self.wait_for_save()
        if self._state is FileState.PRE_COPY_ERROR:
            incremental = False
        with self._changed:
            before = self._state
            if kind is SaveKind.FINAL:
                self._state = FileState.SAVE_STOP_COPY_CHUNK
            self._in_flight = True
        try:
            self._commands.save(
                self._vhca_id,
                buffer.mkey if buffer else 0,
                buffer.size if buffer else 0,
                incremental=incremental,
                track=kind is SaveKind.TRACKED,
                done=lambda result: self._saved(buffer, kind, result),
            )
        except BaseException:
            with self._changed:
                self._in_flight = False
                self._state = before
                self._changed.notify_all()
            raise

    def wait_for_save(self) -> None:
        """Return once no save is in flight. Only the holder of the state lock may start another."""
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight)

    def end(self) -> None:
        """End the session: the file is dead from now, its buffers are freed."""
        self.wait_for_save()
        with self._changed:
            self._state = FileState.ERROR
            queued = self._queue.clear()
            self._changed.notify_all()
            reserved = [buffer for buffer in self._reserved if buffer is not None]
            self._reserved = []
            self._pool.close(reserved, [*queued, *self._discarded])
            self._discarded = []

    def _fail(self) -> None:
        with self._changed:
            self._state = FileState.ERROR
            self._changed.notify_all()

    # --- The firmware's completion of a save --------------------------------------------------

    def _saved(self, buffer: DataBuffer | None, kind: SaveKind, result: SaveResult) -> None:
        """Runs in the firmware's thread; takes the file's lock only."""
        chunk = 0
        with self._changed:
            if result.status == Status.OK and kind is SaveKind.CLEANUP:
                if buffer is not None:
                    self._discarded.append(buffer)
            elif result.status == Status.OK and self._fits(buffer, result):
                assert buffer is not None
                chunk = self._append_image(buffer, kind, result)
            else:
                if buffer is not None:
                    self._pool.put(buffer)
                # Refused for the state that the VHCA is in: the device can still be moved, stopped.
                refused = result.status == Status.BAD_RES_STATE and kind is not SaveKind.FINAL
                if not refused or self._state is FileState.ERROR:
                    self._state = FileState.ERROR
                else:
                    self._state = FileState.PRE_COPY_ERROR
            self._in_flight = False
            self._changed.notify_all()
        if chunk:
            self._more_chunks(self, chunk, result.next_required)

    def _fits(self, buffer: DataBuffer | None, result: SaveResult) -> bool:
        """Whether the image can be: not empty, not larger than its buffer, of a session alive."""
        alive = self._state is not FileState.ERROR
        return alive and buffer is not None and 0 < result.image_size <= buffer.size

    def _append_image(self, buffer: DataBuffer, kind: SaveKind, result: SaveResult) -> int:
        """Queue header and image; the number of the chunk to be saved now, or 0."""
        first = kind is SaveKind.TRACKED and self._state is not FileState.PRE_COPY
        size = result.image_size
        self._queue.append(memoryview(RecordHeader(size, 0, Tag.FW_DATA).pack()))
        self._queue.append(buffer.view[:size], buffer)
        if first or buffer.initial:
            self._initial_bytes += HEADER_SIZE + size
            buffer.initial = False
        if first:
            self._state = FileState.PRE_COPY
        following = result.next_required if buffer.chunk else 0
        if buffer.chunk:
            self._ready_chunks += 1
        if kind is SaveKind.FINAL and not following:
            self._state = FileState.COMPLETE
        if following and self._ready_chunks >= NUM_CHUNKS:
            # Both buffers hold data: the next save waits until one has been read.
            self._delayed_chunk_size = following
            return 0
        return buffer.chunk % NUM_CHUNKS + 1 if following else 0

    # --- What the user does -------------------------------------------------------------------

    def _ended(self) -> bool:
        """Whether a read would not block."""
        if self._queue or self._state in (FileState.ERROR, FileState.COMPLETE):
            return True
        return self._state in _TEMPORARY_END and not self._in_flight

    def _require_alive(self) -> None:
        if self._state is FileState.ERROR:
            raise refuse(errno.ENODEV, "the saving session has ended or failed")

    def _await_data(self) -> None:
        """Until there is something to be read, or nothing will come for now; the lock is held.

        What :meth:`readinto` raises.
        """
        if not self._ended():
            if self._nonblocking:
                # The kernel (7.3) answers ENOMSG here while a save of PRE_COPY is in flight.
                raise refuse(errno.EAGAIN, "the device's state is still being saved")
            self._changed.wait_for(self._ended)
        self._require_alive()
        if not self._queue and self._state is not FileState.COMPLETE:
            raise refuse(errno.ENOMSG, "no more state for now; the device is in PRE_COPY")

    def readinto(self, buffer: bytearray | memoryview) -> int:
        target = memoryview(buffer).cast("B")
        self._require_open()
        with self._changed:
            self._await_data()
            done, free = self._queue.read(target)
            following = self._give_back(free)
        self._ask_for_chunks(following)
        return done

    def peek(self, limit: int) -> list[memoryview]:
        self._require_open()
        with self._changed:
            self._await_data()
            return self._queue.peek(limit)

    def advance(self, count: int) -> None:
        with self._changed:
            # A session that has ended meanwhile has no queue any more.
            following = self._give_back(self._queue.advance(count))
        self._ask_for_chunks(following)

    def _give_back(self, free: list[DataBuffer]) -> list[tuple[int, int]]:
        """Buffers have been read; number and size of the chunks that can be saved now."""
        following: list[tuple[int, int]] = []
        for buffer in free:
            if not buffer.chunk:
                self._pool.keep(buffer)
                continue
            self._reserved[buffer.chunk - 1] = buffer
            self._ready_chunks -= 1
            if self._delayed_chunk_size:
                following.append((buffer.chunk, self._delayed_chunk_size))
                self._delayed_chunk_size = 0
        return following

    def _ask_for_chunks(self, following: list[tuple[int, int]]) -> None:
        for number, size in following:
            self._more_chunks(self, number, size)

    def write(self, data: Buffer) -> int:
        raise refuse(errno.EBADF, "a saving file can't be written")

    def _require_open(self) -> None:
        if self._closed:
            raise refuse(errno.EBADF, "the saving file is closed")

    def precopy_info(self) -> PrecopyInfo:
        self._require_open()
        return self._ask_info(self)

    def poll(self, events: int = select.POLLIN, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while True:
                ready = 0
                if self._state is FileState.ERROR:
                    ready = select.POLLIN | select.POLLRDHUP
                elif self._queue or self._state is FileState.COMPLETE:
                    ready = select.POLLIN
                # POLLRDHUP comes asked for or not, as POLLHUP would.
                ready &= events | select.POLLRDHUP
                left = None if deadline is None else deadline - time.monotonic()
                if ready or (left is not None and left <= 0):
                    return ready
                self._changed.wait(left)

    def set_nonblocking(self, nonblocking: bool) -> None:
        self._nonblocking = nonblocking

    def close(self) -> None:
        self._closed = True
