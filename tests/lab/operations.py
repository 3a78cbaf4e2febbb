"""Operations on one VF, drawn at random, carried out on any driver, told as plain values.

A sequence runs inside a lab kernel on its driver and outside on ours, on equal firmware; what comes
of it is compared outside (test_side_by_side.py). So nothing here may depend on which driver it is.
"""

import errno
import hashlib
import select
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from precopy.mlx5_abi.commands import AllocPdOut, DeallocPdIn, Inbox, Opcode
from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio.states import PRE_COPY_STATES, WORKING, DeviceState

#: An operation: its name and its arguments, as JSON has them.
Operation = list[Any]
#: What came of it: the name of an errno, or a value.
Outcome = Any

_FAULTY = (
    Opcode.ALLOC_PD,
    Opcode.CREATE_MKEY,
    Opcode.QUERY_VHCA_MIGRATION_STATE,
    Opcode.SAVE_VHCA_STATE,
    Opcode.LOAD_VHCA_STATE,
    Opcode.SUSPEND_VHCA,
    Opcode.RESUME_VHCA,
)
_STATUSES = (0x1, 0x3, 0x6, 0x7, 0x8, 0x9, 0x50)

#: Most bytes that one read takes.
_MOST = 1 << 20

_EVENTS = select.POLLIN | select.POLLOUT


#: Records that a stream may hold, whole or not, as hexadecimal: a size record, one that is too
#: short, an optional and a mandatory one that nobody knows, one that is too large, an empty image.
_RECORDS = (
    "080000000000000001000000010000000010000000000000",
    "0400000000000000010000000100000000000000",
    "03000000000000000100000000990000616263",
    "03000000000000000000000000990000616263",
    "ffffffff010000000000000000000000",
    "00000000000000000000000000000000",
    "0000",
)


#: Which of them is too short.
SHORT_SIZE_RECORD = 1
#: Which is an image of no bytes.
EMPTY_IMAGE = 5

#: How often each operation comes: the lines of this table are drawn from.
_DRAWN: tuple[tuple[int, SearchStrategy[tuple[Any, ...]]], ...] = (
    (3, st.tuples(st.just("set_state"), st.just(int(DeviceState.PRE_COPY)))),
    (4, st.tuples(st.just("set_state"), st.just(int(DeviceState.STOP_COPY)))),
    (3, st.tuples(st.just("set_state"), st.just(int(DeviceState.RUNNING)))),
    (1, st.tuples(st.just("set_state"), st.just(int(DeviceState.RESUMING)))),
    (3, st.tuples(st.just("restore"))),
    (3, st.tuples(st.just("set_state"), st.sampled_from([1, 2, 3, 5, 6, 7]))),
    (1, st.tuples(st.just("set_state"), st.sampled_from([0, 8]))),
    (3, st.tuples(st.just("touch"), st.integers(1, 3))),
    (3, st.tuples(st.just("info"))),
    (3, st.tuples(st.just("read_all"))),
    (1, st.tuples(st.just("read"), st.sampled_from([1, 7, 16, 40, 4096, 50_000]))),
    (2, st.tuples(st.just("write"), st.just(1 << 20))),
    (1, st.tuples(st.just("write"), st.sampled_from([0, 1, 15, 100, 10_000]))),
    (1, st.tuples(st.just("write_bytes"), st.sampled_from(range(len(_RECORDS))))),
    (
        2,
        st.tuples(
            st.just("fault"),
            st.sampled_from([int(opcode) for opcode in _FAULTY]),
            st.integers(1, 2),
            st.sampled_from(_STATUSES),
        ),
    ),
    (1, st.tuples(st.just("clear"))),
    (1, st.tuples(st.just("data_size"))),
    (1, st.tuples(st.just("reset"))),
    (1, st.tuples(st.just("info_v2"))),
    (1, st.tuples(st.just("poll"))),
    (1, st.tuples(st.just("close_file"))),
    (1, st.tuples(st.just("old_file"), st.sampled_from(["read", "write", "info", "poll"]))),
)


def sequences(shortest: int, longest: int) -> SearchStrategy[list[Operation]]:
    """Sequences of ``shortest`` to ``longest`` operations."""
    weighted = [drawn for weight, drawn in _DRAWN for _ in range(weight)]
    step = st.sampled_from(weighted).flatmap(lambda drawn: drawn).map(list)
    return st.lists(step, min_size=shortest, max_size=longest)


class Bench(Protocol):
    """What a sequence has: a device, fresh from a reset, and ways to disturb it."""

    @property
    def device(self) -> VfioDevice: ...

    def execute(self, inbox: bytes) -> bytes:
        """A command of the VF's own driver."""

    def plan(self, opcode: Opcode, nth: int, status: int) -> None: ...

    def clear(self) -> None: ...

    def was_reset(self) -> None:
        """The VF has been reset: what its driver had set up is gone."""

    def settle(self) -> None:
        """Return when nothing goes on by itself any more."""

    def mark(self, number: int) -> None:
        """A mark in the trace of commands: what follows belongs to operation ``number``."""


class Run:
    """Carries out one sequence."""

    def __init__(self, bench: Bench) -> None:
        self._bench, self._device = bench, bench.device
        self._file: MigrationFile | None = None
        self._old: MigrationFile | None = None
        self._stream = bytearray()
        self._written = 0
        #: A stream that was read to its end.
        self._whole = b""
        self._stuck = False
        self._pds: list[int] = []

    def run(self, operations: Sequence[Operation]) -> list[Outcome]:
        """What came of each."""
        found = []
        self._bench.was_reset()
        for number, operation in enumerate(operations):
            self._bench.mark(number)
            found.append(self._outcome(operation))
            self._bench.settle()
        self._bench.mark(len(operations))
        for file in (self._file, self._old):
            if file is not None:
                file.close()
        self._bench.clear()
        self._device.reset()
        self._bench.settle()
        return found

    def _outcome(self, operation: Operation) -> Outcome:
        name, *arguments = operation
        try:
            return _STEPS[name](self, *arguments)
        except OSError as error:
            return errno.errorcode[error.errno or errno.EIO]

    def _require(self, file: MigrationFile | None) -> MigrationFile:
        if file is None:
            raise OSError(errno.EBADF, "no file")
        return file

    def _set_state(self, new: int) -> Outcome:
        if self._stuck:
            return "not asked"
        try:
            file = self._device.set_state(new)
        except OSError as error:
            state = self._device.state
            # The kernel (7.3.4) stays in PRE_COPY without a session when the cleanup save fails, and
            # the next arc or query is a fault in the kernel (Documentation/lab/findings.rst).
            self._stuck = error.errno == errno.EIO and state in PRE_COPY_STATES
            return [errno.errorcode[error.errno or errno.EIO], state.name]
        if file is not None:
            if self._device.state is not DeviceState.RESUMING:
                self._stream.clear()
            if self._old is not None:
                self._old.close()
            self._old, self._file = self._file, file
            self._written = 0
        return [file is not None, self._device.state.name]

    def _read(self, size: int) -> Outcome:
        buffer = bytearray(size)
        count = self._require(self._file).readinto(buffer)
        piece = bytes(buffer[:count])
        self._stream += piece
        return [count, hashlib.sha256(piece).hexdigest()[:16]]

    def _read_all(self) -> Outcome:
        """To the first error or end; the reader never blocks, for what can't come."""
        file = self._require(self._file)
        file.set_nonblocking(True)
        found, total = hashlib.sha256(), 0
        buffer = bytearray(_MOST)
        try:
            while count := file.readinto(buffer):
                found.update(buffer[:count])
                self._stream += buffer[:count]
                total += count
                self._bench.settle()
        except OSError as error:
            end = errno.errorcode[error.errno or errno.EIO]
        else:
            end = "EOF"
            self._whole = bytes(self._stream)
        file.set_nonblocking(False)
        return [total, found.hexdigest()[:16], end]

    def _read_if_ready(self, size: int) -> Outcome:
        file = self._require(self._file)
        file.set_nonblocking(True)
        try:
            return self._read(size)
        finally:
            file.set_nonblocking(False)

    def _info(self) -> Outcome:
        if self._stuck:
            return "not asked"
        info = self._require(self._file).precopy_info()
        return [info.initial_bytes, info.dirty_bytes, int(info.flags)]

    def _data_size(self) -> Outcome:
        return self._device.data_size()

    def _write(self, size: int) -> Outcome:
        """The next bytes of what has been read in this sequence."""
        piece = bytes(self._stream[self._written : self._written + size])
        count = self._require(self._file).write(piece)
        self._written += count
        return count

    def _restore(self) -> Outcome:
        """Into RESUMING, with a whole stream, where there is one."""
        if not self._whole:
            return "nothing to restore"
        entered = self._set_state(DeviceState.RESUMING)
        if entered != [True, "RESUMING"]:
            return [entered]
        return [entered, self._require(self._file).write(self._whole)]

    def _take(self) -> Outcome:
        """The stream to its end, itself."""
        self._read_all()
        return self._whole.hex()

    def _give(self, text: str) -> Outcome:
        return self._require(self._file).write(bytes.fromhex(text))

    def _write_bytes(self, text: int) -> Outcome:
        return self._require(self._file).write(bytes.fromhex(_RECORDS[text]))

    def _touch(self, count: int) -> Outcome:
        """The VF's own driver changes its state, where the VF works."""
        if self._device.state not in WORKING:
            return None
        for _ in range(count):
            inbox = Inbox(opcode=Opcode.ALLOC_PD)
            out = AllocPdOut(self._bench.execute(bytes(inbox.buf)))
            if not out.status:
                self._pds.append(out.pd)
        if len(self._pds) > 3:
            inbox = DeallocPdIn(opcode=Opcode.DEALLOC_PD, pd=self._pds.pop(0))
            self._bench.execute(bytes(inbox.buf))
        return list(self._pds)

    def _fault(self, opcode: int, nth: int, status: int) -> Outcome:
        self._bench.plan(Opcode(opcode), nth, status)
        return None

    def _clear(self) -> Outcome:
        self._bench.clear()
        return None

    def _reset(self) -> Outcome:
        self._device.reset()
        self._stuck = False
        self._bench.was_reset()
        self._pds.clear()
        return self._device.state.name

    def _info_v2(self) -> Outcome:
        self._device.enable_precopy_info_v2()
        return None

    def _poll(self) -> Outcome:
        return self._require(self._file).poll(_EVENTS, timeout=0)

    def _close_file(self) -> Outcome:
        self._require(self._file).close()
        self._file = None
        return None

    def _old_file(self, what: str) -> Outcome:
        """A data_fd that another has taken the place of."""
        file = self._require(self._old)
        if what == "read":
            file.set_nonblocking(True)
            return file.readinto(bytearray(64))
        if what == "write":
            return file.write(b"1234")
        if what == "info":
            if self._stuck:
                return "not asked"
            return file.precopy_info().dirty_bytes
        return file.poll(_EVENTS, timeout=0)


_STEPS: dict[str, Callable[..., Outcome]] = {
    "set_state": Run._set_state,
    "read": Run._read_if_ready,
    "read_all": Run._read_all,
    "info": Run._info,
    "data_size": Run._data_size,
    "write": Run._write,
    "restore": Run._restore,
    "take": Run._take,
    "give": Run._give,
    "write_bytes": Run._write_bytes,
    "touch": Run._touch,
    "fault": Run._fault,
    "clear": Run._clear,
    "reset": Run._reset,
    "info_v2": Run._info_v2,
    "poll": Run._poll,
    "close_file": Run._close_file,
    "old_file": Run._old_file,
}
