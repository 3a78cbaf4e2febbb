"""PAGE_TRACK objects: which pages a VF writes, and the reports of them, by messages to the PF's driver.

An object belongs to the PF, whatever becomes of the VF: neither its migration nor a reset of it ends
the tracking. A report sends what is marked in the range that was asked for and clears it, from the
firmware's end of a pair of QPs in loopback; where the other end has no receive entry it goes on at
the PF's next CQ doorbell or command.
"""

import bisect
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from precopy.connectx import events
from precopy.connectx.migration import Refused
from precopy.connectx.page_bits import Overflow, PageBits, Pages
from precopy.connectx.slots import QpSlot
from precopy.connectx.transport import SendFailed
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.capabilities import AdvVirtualizationCap
from precopy.mlx5_abi.commands import GeneralObjectIn, Opcode, Outbox, PageTrackIn
from precopy.mlx5_abi.contexts import QpState
from precopy.mlx5_abi.general_object import (
    ENTRY_DTYPE,
    IMMEDIATE_SHIFT,
    OBJECT_CHANGE,
    RANGE,
    SELECT_RANGE,
    SELECT_STATE,
    TRACK_WRITES,
    ObjectType,
    PageTrack,
    PageTrackState,
)
from precopy.mlx5_abi.status import Status
from precopy.mlx5_abi.wqe import EventType

#: Room for marks, in blocks of 32768 pages (4 KiB each): 256 MiB.
MAX_BLOCKS = 1 << 16

#: Sends data and an immediate from a QP. False: no receive entry there. SendFailed: never.
Send = Callable[[int, bytes, int], bool]


class _Message(NamedTuple):
    payload: bytes
    state: PageTrackState


class Track:
    """One object. Marks come from the threads of the VF's users; all else has the PF's lock."""

    def __init__(
        self,
        object_id: int,
        vf: Vhca,
        context: PageTrack,
        ranges: list[tuple[int, int]],
        max_blocks: int,
    ) -> None:
        self.object_id = object_id
        self.context = context
        self.state = PageTrackState.TRACKING
        #: There was no room for a mark; not told of yet.
        self.overflowed = False
        #: What is left of a report.
        self.messages: Iterator[_Message] = iter(())
        self.unsent: _Message | None = None
        self._vf = vf
        self._shift = context.log_page_size
        # Bytes of each range, its last one included; ascending.
        self._starts = [start for start, _ in ranges]
        self._lasts = [start + length - 1 for start, length in ranges]
        self._marks = PageBits(max_blocks)
        self._lock = threading.Lock()
        vf.dma.listen(self.mark)

    def close(self) -> None:
        self._vf.dma.unlisten(self.mark)

    def mark(self, address: int, length: int) -> None:
        """The VF has written: mark the pages, where they are in a range."""
        last = address + length - 1
        index = bisect.bisect_left(self._lasts, address)
        with self._lock:
            while index < len(self._starts) and self._starts[index] <= last:
                first_byte = max(address, self._starts[index])
                last_byte = min(last, self._lasts[index])
                try:
                    self._marks.add(first_byte >> self._shift, last_byte >> self._shift)
                except (Overflow, MemoryError):
                    self.overflowed = True
                index += 1

    def _tracks(self, first: int, last: int) -> bool:
        """Whether a byte from ``first`` to ``last`` is in a range."""
        index = bisect.bisect_left(self._lasts, first)
        return index < len(self._starts) and self._starts[index] <= last

    def _take(self, first: int, last: int) -> Iterator[Pages]:
        """The numbers of marked pages that hold a byte from ``first`` to ``last``; marks are cleared.

        A mark stays where its page has tracked bytes on both sides of an end: what it tells of the
        other side has not been asked for yet.
        """
        low, high = first >> self._shift, last >> self._shift
        below, above = low << self._shift, (high + 1 << self._shift) - 1
        shared = [
            page
            for page, begin, end in ((low, below, first - 1), (high, last + 1, above))
            if begin <= end and self._tracks(begin, end)
        ]
        with self._lock:
            pieces = self._marks.blocks(low, high)
        for piece in pieces:
            with self._lock:
                kept = [
                    page for page in shared if piece[0] <= page <= piece[1] and page in self._marks
                ]
                pages = self._marks.take(*piece)
                for page in kept:
                    self._marks.add(page, page)
            yield pages

    def report(self, first: int, last: int) -> Iterator[_Message]:
        """Messages for the bytes from ``first`` to ``last``; the last one may be empty."""
        room = 1 << self.context.log_msg_size
        waiting = b""
        for pages in self._take(first, last) if first <= last else ():
            waiting += (pages << np.uint64(self._shift)).astype(ENTRY_DTYPE).tobytes()
            while len(waiting) > room:
                yield _Message(waiting[:room], PageTrackState.REPORTING)
                waiting = waiting[room:]
        yield _Message(waiting, PageTrackState.TRACKING)


class PageTracks:
    """The objects of one PF. ``find_vf`` raises Refused for a VHCA id that is no VF's."""

    def __init__(
        self, pf: Vhca, limits: AdvVirtualizationCap, find_vf: Callable[[int], Vhca], send: Send
    ) -> None:
        self._pf, self._limits, self._find_vf, self._send = pf, limits, find_vf, send
        #: Room for the marks of an object made from now on, in blocks.
        self.max_blocks = MAX_BLOCKS
        self._tracks: dict[int, Track] = {}
        self._next_id = 1
        self._generation = pf.generation
        self._working = False

    def execute(self, opcode: int, inbox: bytes, out: Outbox) -> None:
        """A command on a general object. Refused says why not."""
        if GeneralObjectIn(inbox).obj_type != ObjectType.PAGE_TRACK:
            raise Refused(Status.BAD_PARAM, 0x5E01, "no objects of this type")
        with self._pf.lock:
            self._sync()
            _COMMANDS[opcode](self, inbox, out)

    def go_on(self) -> None:
        """Send what is left of reports. To be called at the PF's doorbells and commands."""
        if not self._tracks:
            return
        with self._pf.lock:
            # An interrupt handler may have rung from inside.
            if self._working:
                return
            self._sync()
            self._working = True
            try:
                for track in list(self._tracks.values()):
                    self._work(track)
            finally:
                self._working = False

    def _sync(self) -> None:
        """A PF that was reset has no objects."""
        if self._generation != self._pf.generation:
            self._generation = self._pf.generation
            for track in self._tracks.values():
                track.close()
            self._tracks.clear()

    # --- Reports ------------------------------------------------------------------------------

    def _work(self, track: Track) -> None:
        if track.overflowed:
            self._break_off(track)
        while track.state is PageTrackState.REPORTING:
            if track.unsent is None:
                track.unsent = next(track.messages)
            payload, state = track.unsent
            try:
                qpn, immediate = track.context.reporting_qpn, state << IMMEDIATE_SHIFT
                if not self._send(qpn, payload, immediate):
                    return
            except SendFailed:
                self._break_off(track)
                return
            track.unsent = None
            if state is PageTrackState.TRACKING:
                track.state = state

    def _break_off(self, track: Track) -> None:
        """What was marked is lost: the object is of no use any more, and the driver is told."""
        if track.state is not PageTrackState.ERROR:
            track.state = PageTrackState.ERROR
            track.unsent = None
            track.close()
            data = OBJECT_CHANGE.pack(ObjectType.PAGE_TRACK, track.object_id)
            events.notify(self._pf, EventType.OBJECT_CHANGE, data)

    # --- Commands -----------------------------------------------------------------------------

    def _track(self, inbox: bytes) -> Track:
        number = GeneralObjectIn(inbox).obj_id
        track = self._tracks.get(number)
        if track is None:
            raise Refused(Status.BAD_RES, 0x5E02, f"no object {number}")
        return track

    def _create(self, inbox: bytes, out: Outbox) -> None:
        # What the command holds stays with the object.
        context = PageTrackIn(bytearray(inbox)).page_track
        vf = self._find_vf(context.vhca_id)
        ranges = self._check(context, inbox[PageTrackIn.SIZE :])
        if len(self._tracks) >= 1 << self._limits.pg_track_log_max_num:
            raise Refused(Status.LIM, 0x5E10, "no more trackers")
        number, self._next_id = self._next_id, self._next_id % 0xFFFF_FFFF + 1
        self._tracks[number] = Track(number, vf, context, ranges, self.max_blocks)
        out.obj_id = number  # type: ignore[attr-defined]

    def _check(self, context: PageTrack, behind: bytes) -> list[tuple[int, int]]:
        """The ranges of a new object, ascending."""
        limits, count = self._limits, context.num_ranges
        if not 1 <= count <= limits.pg_track_max_num_range:
            raise Refused(Status.BAD_PARAM, 0x5E11, f"{count} ranges")
        if len(behind) < count * RANGE.size:
            raise Refused(Status.BAD_INP_LEN, 0x5E12, "ranges are missing")
        if context.state != PageTrackState.TRACKING or context.track_type != TRACK_WRITES:
            raise Refused(Status.BAD_PARAM, 0x5E13, "an object begins by tracking writes")
        for syndrome, (field, name) in enumerate(_LIMITED.items(), 0x5E14):
            low = getattr(limits, f"pg_track_log_min_{name}")
            high = getattr(limits, f"pg_track_log_max_{name}")
            value = getattr(context, field)
            if not low <= value <= high:
                raise Refused(Status.BAD_PARAM, syndrome, f"{field} {value} not in {low}..{high}")
        ranges = sorted(RANGE.unpack_from(behind, n * RANGE.size) for n in range(count))
        end = 0
        for start, length in ranges:
            if not length or start < end or start + length > 1 << 64:
                raise Refused(Status.BAD_PARAM, 0x5E18, "ranges are empty, overlap or wrap")
            end = start + length
        if sum(length for _, length in ranges) > 1 << context.log_addr_space_size:
            raise Refused(Status.BAD_PARAM, 0x5E19, "the address space is smaller than the ranges")
        qpn = context.reporting_qpn
        if not self._pf.in_use("qp", qpn):
            raise Refused(Status.BAD_RES, 0x5E1A, f"no QP {qpn}")
        if QpSlot(self._pf.table("qp").slot(qpn)).state != QpState.RTS:
            raise Refused(Status.BAD_QP_STATE, 0x5E1B, f"QP {qpn} is not in RTS")
        return ranges

    def _modify(self, inbox: bytes, out: Outbox) -> None:
        track, asked = self._track(inbox), PageTrackIn(inbox).page_track
        if asked.modify_field_select != SELECT_STATE | SELECT_RANGE:
            raise Refused(Status.BAD_PARAM, 0x5E20, "state and range are changed together")
        if asked.state != PageTrackState.REPORTING:
            raise Refused(Status.BAD_PARAM, 0x5E21, "only a report can be asked for")
        first, length = asked.range_start_address, asked.length
        if first + length > 1 << 64:
            raise Refused(Status.BAD_PARAM, 0x5E22, "the range wraps")
        if track.overflowed or track.state is PageTrackState.ERROR:
            raise Refused(Status.BAD_SYS_STATE, 0x5E23, "the object is in error")
        if track.state is PageTrackState.REPORTING:
            raise Refused(Status.BAD_RES_STATE, 0x5E24, "a report is under way")
        track.state = PageTrackState.REPORTING
        track.messages = track.report(first, first + length - 1)
        track.context.range_start_address, track.context.length = first, length

    def _query(self, inbox: bytes, out: Outbox) -> None:
        track = self._track(inbox)
        shown = out.page_track  # type: ignore[attr-defined]
        shown.buf[:] = track.context.buf[: PageTrack.SIZE]
        shown.state = PageTrackState.ERROR if track.overflowed else track.state
        shown.modify_field_select = 0
        out.obj_id = track.object_id  # type: ignore[attr-defined]

    def _destroy(self, inbox: bytes, out: Outbox) -> None:
        track = self._track(inbox)
        track.close()
        del self._tracks[track.object_id]


#: Fields of an object, and the capability that bounds each.
_LIMITED = {
    "log_addr_space_size": "addr_space",
    "log_page_size": "page_size",
    "log_msg_size": "msg_size",
}

_COMMANDS: dict[int, Callable[[PageTracks, bytes, Outbox], None]] = {
    Opcode.CREATE_GENERAL_OBJECT: PageTracks._create,
    Opcode.MODIFY_GENERAL_OBJECT: PageTracks._modify,
    Opcode.QUERY_GENERAL_OBJECT: PageTracks._query,
    Opcode.DESTROY_GENERAL_OBJECT: PageTracks._destroy,
}

#: The commands that :meth:`PageTracks.execute` answers.
COMMANDS = frozenset(_COMMANDS)
