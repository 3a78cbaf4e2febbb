"""The resuming file: a stream of records goes in, each image is loaded as soon as it is whole.

However the stream is cut into writes, the same commands go to the firmware. What a record claims of
its size costs address space only; memory is taken as bytes arrive.
"""

import enum
import errno
import select
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ClassVar

from precopy.mlx5.buffers import BufferPool, DataBuffer, Direction, pages_for
from precopy.mlx5.commands import Commands
from precopy.mlx5.copying import copy
from precopy.mlx5_abi.records import (
    HEADER_SIZE,
    MAX_IMAGE_SIZE,
    STOP_COPY_SIZE_DATA,
    RecordFlags,
    RecordHeader,
    Tag,
)
from precopy.vfio.device import Buffer, MigrationFile, PrecopyInfo
from precopy.vfio.errors import refuse


class LoadState(enum.Enum):
    """Where the loader stands (``enum mlx5_vf_load_state``)."""

    READ_HEADER = enum.auto()
    PREP_HEADER_DATA = enum.auto()
    READ_HEADER_DATA = enum.auto()
    PREP_IMAGE = enum.auto()
    READ_IMAGE = enum.auto()
    LOAD_IMAGE = enum.auto()


class ResumingFile(MigrationFile):
    """The data_fd of a resuming session. See :class:`MigrationFile` for what each call raises.

    Any error is sticky: the file is dead, every later write raises ENODEV. ``state_lock`` is the
    driver's; it is held during a write, as each image is loaded from there.

    ``ahead``: once the source has announced the size of its final state (STOP_COPY_SIZE), the next
    image gets a buffer with room for that too, so that none has to be made while the device stands
    still (stop_copy_prep_size in drivers/vfio/pci/mlx5/main.c, Linux 6.2). Without it a buffer is
    made for an image that finds none large enough.
    """

    def __init__(
        self,
        commands: Commands,
        vhca_id: int,
        state_lock: Callable[[], AbstractContextManager[object]],
        *,
        ahead: bool = True,
    ) -> None:
        self._commands = commands
        self._vhca_id = vhca_id
        self._state_lock = state_lock
        self._ahead = ahead
        self._pool = BufferPool(commands)
        self._dead = False
        self._closed = False
        self._state = LoadState.READ_HEADER
        self._header = bytearray()
        self._record = RecordHeader(0, 0, 0)
        #: Bytes of the present record that have come, without its header.
        self._filled = 0
        self._data = bytearray()
        self._image: DataBuffer | None = None
        self._announced = 0
        self._position = 0
        #: Images that the firmware has taken.
        self.images = 0

    # --- What the driver does, holding its state lock -----------------------------------------

    def unfinished(self) -> str | None:
        """Why the stream so far is no whole device, or None where, as records go, it is one."""
        if self._dead:
            return "the session has failed"
        if self.images == 0:
            return "no image has come"
        if self._state is not LoadState.READ_HEADER or self._header:
            return f"the stream ends inside a record, at offset {self._position}"
        return None

    def end(self) -> None:
        """End the session: the file is dead from now, its buffers are freed."""
        self._dead = True
        self._pool.close([] if self._image is None else [self._image], [])
        self._image = None

    # --- What the user does -------------------------------------------------------------------

    def write(self, data: Buffer) -> int:
        source = memoryview(data).cast("B")
        with self._state_lock():
            if self._closed:
                raise refuse(errno.EBADF, "the resuming file is closed")
            if self._dead:
                raise refuse(errno.ENODEV, "the resuming session has ended or failed")
            done = 0
            try:
                while done < len(source) or self._state in self._NEED_NO_DATA:
                    done += self._STEPS[self._state](self, source[done:])
            except OSError:
                self._dead = True
                raise
            return done

    def _read_header(self, source: memoryview) -> int:
        taken = min(len(source), HEADER_SIZE - len(self._header))
        self._header += source[:taken]
        self._position += taken
        if len(self._header) < HEADER_SIZE:
            return taken
        record = self._record = RecordHeader.parse(self._header)
        self._header.clear()
        where = f"record at offset {self._position - HEADER_SIZE}"
        if record.size > MAX_IMAGE_SIZE:
            raise refuse(
                errno.ENOMEM,
                f"{where} claims {record.size} bytes, over the {MAX_IMAGE_SIZE} that fit",
            )
        if record.tag == Tag.FW_DATA:
            # The kernel (7.3) waits for a byte more, then leaves it to the firmware to refuse.
            if record.size == 0:
                raise refuse(errno.EINVAL, f"{where} is an image of 0 bytes")
            self._state = LoadState.PREP_IMAGE
        elif record.tag == Tag.STOP_COPY_SIZE:
            # The kernel (7.3) takes eight bytes from its buffer whatever the record's size.
            if record.size < STOP_COPY_SIZE_DATA.size:
                raise refuse(errno.EINVAL, f"{where} (STOP_COPY_SIZE) has only {record.size} bytes")
            self._state = LoadState.PREP_HEADER_DATA
        elif record.flags & RecordFlags.OPTIONAL:
            self._state = LoadState.PREP_HEADER_DATA
        else:
            raise refuse(
                errno.EOPNOTSUPP,
                f"{where} has the unknown tag {record.tag:#x} and is mandatory:"
                " the source is newer than this driver",
            )
        return taken

    def _prepare_header_data(self, source: memoryview) -> int:
        self._filled = 0
        self._data.clear()
        self._state = LoadState.READ_HEADER_DATA
        if self._record.size == 0:
            self._state = LoadState.READ_HEADER
        return 0

    def _read_header_data(self, source: memoryview) -> int:
        taken = min(len(source), self._record.size - self._filled)
        # Only what is understood is kept; an optional record of any size costs nothing.
        self._data += source[: max(0, min(taken, STOP_COPY_SIZE_DATA.size - self._filled))]
        self._filled += taken
        self._position += taken
        if self._filled == self._record.size:
            if self._record.tag == Tag.STOP_COPY_SIZE and self._ahead:
                (announced,) = STOP_COPY_SIZE_DATA.unpack(self._data)
                self._announced = min(announced, MAX_IMAGE_SIZE)
            self._state = LoadState.READ_HEADER
        return taken

    def _prepare_image(self, source: memoryview) -> int:
        pages = pages_for(max(self._record.size, self._announced))
        if self._image is None or self._image.pages < pages:
            if self._image is not None:
                self._image.free()
                self._image = None
            self._image = self._pool.new(pages, Direction.TO_DEVICE)
        self._filled = 0
        self._state = LoadState.READ_IMAGE
        return 0

    def _read_image(self, source: memoryview) -> int:
        assert self._image is not None
        taken = min(len(source), self._record.size - self._filled)
        copy(self._image.view[self._filled : self._filled + taken], source[:taken])
        self._filled += taken
        self._position += taken
        if self._filled == self._record.size:
            self._state = LoadState.LOAD_IMAGE
        return taken

    def _load_image(self, source: memoryview) -> int:
        assert self._image is not None
        try:
            self._commands.load(self._vhca_id, self._image.mkey, self._filled)
        except OSError as error:
            start = self._position - self._filled
            what = f"image {self.images} ({self._filled} bytes at offset {start}) was not loaded"
            raise OSError(error.errno, f"{what}: {error.strerror}") from error
        self.images += 1
        self._state = LoadState.READ_HEADER
        return 0

    #: One step of each state: takes what it can of the bytes at hand and says how many.
    _STEPS: ClassVar[dict[LoadState, Callable[["ResumingFile", memoryview], int]]] = {
        LoadState.READ_HEADER: _read_header,
        LoadState.PREP_HEADER_DATA: _prepare_header_data,
        LoadState.READ_HEADER_DATA: _read_header_data,
        LoadState.PREP_IMAGE: _prepare_image,
        LoadState.READ_IMAGE: _read_image,
        LoadState.LOAD_IMAGE: _load_image,
    }
    #: States that go on by themselves.
    _NEED_NO_DATA: ClassVar[frozenset[LoadState]] = frozenset(
        {LoadState.PREP_HEADER_DATA, LoadState.PREP_IMAGE, LoadState.LOAD_IMAGE}
    )

    def readinto(self, buffer: bytearray | memoryview) -> int:
        raise refuse(errno.EBADF, "a resuming file can't be read")

    def precopy_info(self) -> PrecopyInfo:
        raise refuse(errno.ENOTTY, "a resuming file has no precopy info")

    def poll(self, events: int = select.POLLOUT, timeout: float | None = None) -> int:
        return events & (select.POLLIN | select.POLLOUT)

    def set_nonblocking(self, nonblocking: bool) -> None:
        """Writes never wait for anything but the load of an image."""

    def close(self) -> None:
        self._closed = True
