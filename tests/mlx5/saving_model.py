"""What a saving file does, step by step, told by a model of it that knows what the saves gave.

The stream is the images of the saves in order and nothing else. Besides, every step is held to the
uAPI's rules of initial_bytes, dirty_bytes, ENOMSG, end of file and poll.
"""

import errno
import queue
import select
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import pytest

from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import RecordHeader, size_record
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import PrecopyInfoFlags
from tests.mlx5.conftest import new_rig, read_some

E, S, R, SC, RES, RP, PC, PCP = DeviceState

#: ``migration_state`` of a device with change, and of one with new initial state.
DIRTY, INIT = 3, 4

_PATIENCE = 30.0

T = TypeVar("T")

#: The state to enter first, the chunks behind the first, the status of the first save.
Beginning = tuple[DeviceState, list[int], int]


class SavingModel:
    """One session after another on one VF. Saves complete when :meth:`time_passes`, or as a call
    waits for them. Each method is a step that may come at any time; ``fault``: the status of the
    save that it starts, where it starts one."""

    def __init__(
        self, chunks: bool, cap: bool, v2: bool, full: int, total: int, beginning: Beginning
    ) -> None:
        self.rig = new_rig(
            hold=True,
            chunk_mode=chunks,
            migration_state=cap,
            full_size=full,
            total=max(total, full),
            state=DIRTY,
        )
        self.chunks, self.reinit_on = chunks, cap and v2
        if v2:
            self.rig.device.enable_precopy_info_v2()
        self.here = R
        self.file: MigrationFile | None = None
        self.old: list[MigrationFile] = []
        self.fault = self.status = 0
        self.following = self.failed_before = False
        self.begin(*beginning)

    def clear(self) -> None:
        self.state = "none"
        self.expected = b""
        self.read = b""
        #: What the save in flight is for, and whether it brings a new initial state.
        self.flight: tuple[str, bool] | None = None
        self.initial_end = 0
        #: The last initial_bytes told, and the position at that time.
        self.told: tuple[int, int] | None = None
        self.exact = True
        self.chunk_ends: list[int] = []
        self.work = 0
        self.delayed = False

    def close(self) -> None:
        self.rig.close()

    # --- Saves --------------------------------------------------------------------------------

    def began(self, kind: str, reinit: bool = False) -> None:
        assert self.rig.firmware.held == 1
        assert self.flight is None
        self.flight = kind, reinit
        # What the firmware will answer is settled when it takes the command.
        self.status, self.fault = self.fault, 0

    def complete(self) -> None:
        assert self.flight is not None
        (kind, reinit), self.flight = self.flight, None
        if not self.status and kind != "cleanup":
            image = self.rig.firmware.images[-1]
            self.expected += RecordHeader(len(image), 0, 0).pack() + image
            if kind == "tracked" and (self.state == "new" or reinit):
                self.initial_end = len(self.expected)
            if kind == "tracked":
                self.state = "precopy"
            else:
                self.chunk_completed()
        elif self.status == 9 and kind != "final" and self.state != "error":
            self.state = "precopy_error"
        elif self.status:
            self.state = "error"
        self.rig.firmware.complete()

    def chunk_completed(self) -> None:
        following = self.chunks and self.following
        if not following:
            self.state = "complete"
            return
        self.chunk_ends.append(len(self.expected))
        if self.unread_chunks() < 2:
            self.work += 1
        else:
            self.delayed = True

    def unread_chunks(self) -> int:
        return sum(end > len(self.read) for end in self.chunk_ends)

    def arm(self, fault: int) -> None:
        """The next save fails with ``fault``, where it is not 0."""
        self.rig.firmware.faults.clear()
        if fault:
            self.rig.firmware.fail(Opcode.SAVE_VHCA_STATE, 1, fault)
        self.fault = fault

    def call(self, work: Callable[[], T], *, cleanup: bool = False) -> T:
        """``work``; a save in flight completes while it waits for it.

        ``cleanup``: it also waits for one that it starts itself.
        """
        if self.flight is None and not cleanup:
            return work()
        happened: queue.Queue[str] = queue.Queue()
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(work())
            except BaseException as error:
                errors.append(error)
            happened.put("over")

        self.rig.firmware.on_hold = lambda: happened.put("held")
        thread = threading.Thread(target=run)
        thread.start()
        if self.flight is not None:
            self.complete()
        while happened.get(timeout=_PATIENCE) == "held":
            if cleanup:
                self.failed_before = self.state == "error"
                self.began("cleanup")
                self.complete()
        thread.join()
        self.rig.firmware.on_hold = lambda: None
        if errors:
            raise errors[0]
        return results[0]

    # --- Arcs ---------------------------------------------------------------------------------

    def set_aside(self, track: bool) -> int:
        full = self.rig.firmware.full_size
        if self.chunks:
            full = max(full, min(8 << 20, self.rig.firmware.total))
        elif track:
            full += full // 10
        return -(-full // 4096) * 4096

    def begin(self, state: DeviceState, following: list[int], fault: int) -> None:
        self.clear()
        firmware = self.rig.firmware
        firmware.next_required = deque(following if state is SC else ())
        self.arm(fault)
        self.file = self.rig.device.set_state(state)
        assert self.file is not None
        self.file.set_nonblocking(True)
        self.here, self.state = state, "new"
        self.expected = size_record(self.set_aside(state is not SC))
        self.initial_end = len(self.expected)
        self.began("final" if state is SC else "tracked")
        self.following = bool(following) and state is SC and not fault

    def suspend_or_resume(self) -> None:
        if self.here is SC:
            return
        end = PCP if self.here is PC else PC
        assert self.call(lambda: self.rig.device.set_state(end)) is None
        self.here = end

    def leave(self, how: str, increment: int, fault: int, then: Beginning) -> None:
        """Seldom, since sessions that go on for long reach more."""
        if how == "stop" and self.here is not SC:
            self.stop(increment, then[1], fault)
        elif how == "cancel" and self.here is not SC:
            self.cancel(fault, then)
        elif how == "reset" or (how == "go on" and self.here is SC):
            self.call(
                self.rig.device.reset if how == "reset" else lambda: self.rig.device.set_state(R)
            )
            self.over(then)

    def stop(self, increment: int, following: list[int], fault: int) -> None:
        firmware = self.rig.firmware
        firmware.incremental_size = firmware.incremental_total = increment
        firmware.next_required = deque(following)
        # A save in flight has its status already.
        self.arm(fault)
        try:
            assert self.call(lambda: self.rig.device.set_state(SC)) is None
        except OSError as error:
            assert error.errno == errno.ENODEV
            assert self.state == "error"
            self.here = PCP
            self.arm(0)
            return
        assert self.state != "error"
        self.here, self.state = SC, "final"
        self.began("final")
        self.following = bool(following) and not fault

    def cancel(self, fault: int, then: Beginning) -> None:
        self.arm(fault)
        try:
            assert self.call(lambda: self.rig.device.set_state(R), cleanup=True) is None
        except OSError as error:
            assert error.errno == errno.EIO
            assert fault == 1
            assert not self.failed_before
            assert self.state == "error"
            return
        assert fault != 1 or self.failed_before
        self.over(then)

    def over(self, then: Beginning) -> None:
        assert self.file is not None
        self.old.append(self.file)
        self.here, self.file = R, None
        # Work of the old session that is still queued finds it over.
        self.rig.firmware.take_log()
        self.rig.worker.run()
        assert self.rig.firmware.take_log() == []
        assert not self.rig.firmware.keys
        assert not self.rig.firmware.dma.mapped
        self.begin(*then)

    # --- What else happens --------------------------------------------------------------------

    def time_passes(self, fault: int) -> None:
        """The save in flight completes; or the worker starts one."""
        if self.flight is not None:
            self.complete()
            return
        if not self.work:
            return
        more = len(self.rig.firmware.next_required) > 0
        self.arm(fault)
        self.rig.worker.run()
        self.work -= 1
        self.began("final")
        self.following = more and not fault

    # --- What the user does -------------------------------------------------------------------

    def unread(self) -> bytes:
        return self.expected[len(self.read) :]

    def outcome_of_a_read(self) -> int:
        """The errno of a read, 0 where it gives bytes or is at the end."""
        if self.state == "error":
            return errno.ENODEV
        if self.unread() or self.state == "complete":
            return 0
        if self.state in ("precopy", "precopy_error") and self.flight is None:
            return errno.ENOMSG
        return errno.EAGAIN

    def reads(self, quarters: int, more: int) -> None:
        assert self.file is not None
        size = max(1, len(self.unread()) * quarters // 4 + more)
        code = self.outcome_of_a_read()
        if code:
            with pytest.raises(OSError, match=errno.errorcode[code]) as caught:
                read_some(self.file, size)
            assert caught.value.errno == code
            return
        data = read_some(self.file, size)
        assert data == self.unread()[:size]
        before = self.unread_chunks()
        self.read += data
        if self.delayed and self.unread_chunks() < before:
            self.delayed = False
            self.work += 1

    def peeks(self, quarters: int, more: int, part: int) -> None:
        """As much is looked at as a read would give; ``part`` quarters of that are then read."""
        assert self.file is not None
        size = max(1, len(self.unread()) * quarters // 4 + more)
        code = self.outcome_of_a_read()
        if code:
            with pytest.raises(OSError, match=errno.errorcode[code]):
                self.file.peek(size)
            return
        seen = self.file.peek(size)
        assert seen is not None
        assert b"".join(seen) == self.unread()[:size]
        # It is still there.
        assert b"".join(self.file.peek(size) or ()) == self.unread()[:size]
        before = self.unread_chunks()
        count = sum(map(len, seen)) * part // 4
        data = self.unread()[:count]
        self.file.advance(count)
        self.read += data
        if self.delayed and self.unread_chunks() < before:
            self.delayed = False
            self.work += 1

    def asks(self, size: int, more: int, state: int, fault: int) -> None:
        """VFIO_MIG_GET_PRECOPY_INFO, of a device that has changed by ``size`` bytes or more."""
        file, firmware = self.file, self.rig.firmware
        assert file is not None
        firmware.incremental_size, firmware.state = size, state
        firmware.incremental_total = size + more if size and self.chunks else size
        self.arm(fault)
        try:
            info = self.call(file.precopy_info) if self.here is not SC else file.precopy_info()
        except OSError as error:
            assert error.errno == (errno.EINVAL if self.here is SC else errno.ENODEV)
            assert self.here is SC or self.state == "error"
            self.arm(0)
            return
        assert self.here is not SC
        assert self.state != "error"
        asked = self.here is PC and self.state != "precopy_error"
        increment = firmware.incremental_size if asked else 0
        total = firmware.incremental_total if asked else 0
        reinit = self.reinit_on and firmware.state == INIT and increment > 0
        unread, left = len(self.unread()), max(0, self.initial_end - len(self.read))
        if increment and (reinit or not unread):
            self.began("tracked", reinit)
            more = total + 16
        else:
            self.arm(0)
            more = total
        if reinit:
            wanted = (unread + more, 0)
            self.initial_end = len(self.expected)
        else:
            wanted = (left, 0) if left else (0, unread + more)
        assert (info.initial_bytes, info.dirty_bytes) == wanted
        assert info.flags == (PrecopyInfoFlags.REINIT if reinit else 0)
        exact = total == increment and not fault
        self.hold_to_the_uapi(info.initial_bytes, info.dirty_bytes, reinit, exact)

    def hold_to_the_uapi(self, initial: int, dirty: int, reinit: bool, exact: bool) -> None:
        """The rules of linux/vfio.h alone, as they apply to what was told."""
        position = len(self.read)
        if reinit:
            assert initial > 0
            assert dirty == 0
            self.exact = exact
        elif self.told is None:
            assert dirty == 0 or position
            assert initial > 0 or position
        else:
            before, at = self.told
            expected = max(0, before - (position - at))
            # Nothing but a REINIT whose save failed, or gave a part of it, makes it fall faster.
            assert initial == expected or (initial < expected and not self.exact)
        self.told = initial, position
        assert not (initial and dirty)
        # Both are 0 just where a read finds the temporary end.
        assert (initial + dirty == 0) == (self.outcome_of_a_read() == errno.ENOMSG)

    # --- What holds at any time ---------------------------------------------------------------

    def check(self) -> None:
        assert self.file is not None
        # One save at a time, and the worker has what it should.
        assert self.rig.firmware.held == (self.flight is not None)
        assert len(self.rig.worker.work) == self.work
        # poll tells what a read would find.
        code = self.outcome_of_a_read()
        dead = select.POLLIN | select.POLLRDHUP
        found = {0: select.POLLIN, errno.ENODEV: dead}.get(code, 0)
        assert self.file.poll(select.POLLIN, 0) == found
        # A file whose session is over stays dead.
        for file in self.old[-1:]:
            with pytest.raises(OSError, match="ENODEV"):
                read_some(file)
            assert file.poll(select.POLLIN, 0) == dead
            if self.flight is None:
                with pytest.raises(OSError, match="EINVAL" if self.here is SC else "ENODEV"):
                    file.precopy_info()
