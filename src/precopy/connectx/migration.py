"""SUSPEND, RESUME, QUERY, SAVE and LOAD: how a function is moved.

A session begins with a full save, which makes every page in use a page to be sent; each later save
sends those that are left and those written since. What does not fit the buffer stays for the next.
"""

import secrets

import numpy as np

from precopy.connectx import image
from precopy.connectx.context_memory import PAGE_SIZE, Pages
from precopy.connectx.image import ImageFault, ImageFlags, ImageHeader, Needs, Scattered
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.commands import VhcaMigrationState
from precopy.mlx5_abi.status import Status

#: Without more than this the buffer of one save need not hold (chunk mode).
CHUNK_BYTES = 8 << 20

#: required_umem_size has 32 bits.
_MAX_REQUIRED = (1 << 32) - PAGE_SIZE


class Refused(Exception):
    """A status other than OK, and its syndrome."""

    def __init__(self, status: Status, syndrome: int, text: str = "") -> None:
        super().__init__(text)
        self.status, self.syndrome = status, syndrome


class Migration:
    """What the firmware keeps of the migration of one function. Callers hold no lock."""

    def __init__(self, vhca: Vhca) -> None:
        self._vhca = vhca
        self._clearings = vhca.memory.clearings
        self._sessions = 0
        self._forget()

    def _forget(self) -> None:
        #: The session of a source: pages that were ever sent, and how many images.
        self._sent: np.ndarray[tuple[int], np.dtype[np.bool_]] | None = None
        self._session = 0
        self._sequence = 0
        #: A target's: the session loaded from and what has to come next.
        self._loading = 0
        self._expected = 0
        self._complete = True

    def _new_session(self) -> int:
        first = self._vhca.config.first_session
        self._sessions += 1
        return first + self._sessions if first else secrets.randbits(64) | 1

    def _sync(self) -> None:
        """A reset ends every session; a driver that starts over (TEARDOWN_HCA) ends none."""
        if self._clearings != self._vhca.memory.clearings:
            self._sessions = 0
            self._clearings = self._vhca.memory.clearings
            self._forget()

    # --- Suspend and resume -------------------------------------------------------------------

    def suspend(self, initiator: bool) -> None:
        vhca = self._vhca
        with vhca.lock:
            if initiator:
                if vhca.initiator_suspended:
                    raise Refused(Status.BAD_RES_STATE, 0x5B01, "initiator is suspended already")
                vhca.initiator_suspended = True
            else:
                if vhca.responder_suspended or not vhca.initiator_suspended:
                    raise Refused(Status.BAD_RES_STATE, 0x5B02, "responder can't be suspended now")
                vhca.responder_suspended = True

    def resume(self, initiator: bool) -> None:
        vhca = self._vhca
        with vhca.lock:
            self._sync()
            if not self._complete:
                raise Refused(Status.BAD_RES_STATE, 0x5B03, "the final image has not been loaded")
            if initiator:
                if vhca.responder_suspended or not vhca.initiator_suspended:
                    raise Refused(Status.BAD_RES_STATE, 0x5B04, "initiator can't be resumed now")
                vhca.initiator_suspended = False
            else:
                if not vhca.responder_suspended:
                    raise Refused(Status.BAD_RES_STATE, 0x5B05, "responder is not suspended")
                vhca.responder_suspended = False
                self._loading = 0

    # --- Query --------------------------------------------------------------------------------

    def query(self, incremental: bool, chunk: bool) -> tuple[int, int, VhcaMigrationState]:
        """Bytes that the next save needs, all that remain, and the state."""
        vhca = self._vhca
        with vhca.lock:
            self._sync()
            if incremental and self._sent is None:
                raise Refused(Status.BAD_RES_STATE, 0x5B10, "nothing to be incremental to")
            memory = vhca.memory
            pages = memory.dirty_count() if incremental else memory.present_count()
            nothing = incremental and not pages and not vhca.responder_suspended
            total = 0 if nothing else image.image_bytes(pages)
            state = self._state(incremental)
        required = min(total, CHUNK_BYTES if chunk else _MAX_REQUIRED)
        return required, total, state

    def _state(self, incremental: bool) -> VhcaMigrationState:
        if not self._complete:
            return VhcaMigrationState.DIRTY
        if self._loading:
            return VhcaMigrationState.READY
        if self._sent is None or not incremental:
            return VhcaMigrationState.IDLE
        dirty = self._vhca.memory.dirty_pages()
        new = len(dirty) - int(np.count_nonzero(self._sent[dirty]))
        if new >= self._vhca.config.reinit_pages and not self._vhca.responder_suspended:
            return VhcaMigrationState.INIT
        return VhcaMigrationState.DIRTY if len(dirty) else VhcaMigrationState.READY

    # --- Save ---------------------------------------------------------------------------------

    def save(
        self, parts: list[memoryview], size: int, incremental: bool, track: bool
    ) -> tuple[int, int]:
        """Save into ``parts``; the image's bytes and what the next save needs (0: it was the last)."""
        vhca = self._vhca
        with vhca.lock:
            self._sync()
            if track and vhca.responder_suspended:
                raise Refused(Status.BAD_RES_STATE, 0x5B20, "a stopped function can't be tracked")
            if incremental and self._sent is None:
                raise Refused(Status.BAD_RES_STATE, 0x5B21, "nothing to be incremental to")
            if not track and not vhca.responder_suspended:
                # The function goes on running: tracking ends, and nobody loads this image.
                self._forget()
                return self._end_of_tracking(Scattered(parts, min(size, image.HEADER_BYTES)))
            fit = image.pages_in(size)
            if fit < 0:
                raise Refused(Status.BAD_PARAM, 0x5B22, "the buffer is too small for an image")
            remain = vhca.memory.dirty_count() if incremental else vhca.memory.present_count()
            if not track and remain > fit and not vhca.config.chunk_mode:
                raise Refused(Status.BAD_PARAM, 0x5B23, "the buffer is too small for what remains")
            if not incremental:
                self._sent = np.zeros(len(vhca.memory.pages), dtype=np.bool_)
                self._session = self._new_session()
                self._sequence = 0
                vhca.memory.mark_all_dirty()
            pages = vhca.memory.dirty_pages()[:fit]
        target = Scattered(parts, image.image_bytes(len(pages)))
        self._copy_out(target, pages)
        with vhca.lock:
            self._sync()
            if self._sent is None:
                raise Refused(Status.BAD_RES_STATE, 0x5B24, "the function was reset meanwhile")
            left = vhca.memory.dirty_count()
            final = not track and not left
            flags = ImageFlags.FINAL if final else ImageFlags(0)
            header = self._header(flags, len(pages))
            self._sent[pages] = True
            self._sequence += 1
            if final:
                self._sent = None
            more = min(CHUNK_BYTES, image.image_bytes(left)) if not track and left else 0
        # Without the lock: a checksum over all of it would hold up a function that works.
        image.finish(target, header)
        return image.image_bytes(len(pages)), more

    def _end_of_tracking(self, target: Scattered) -> tuple[int, int]:
        if target.size < image.HEADER_BYTES:
            return 0, 0
        image.finish(target, self._header(ImageFlags(0), 0))
        return image.HEADER_BYTES, 0

    def _header(self, flags: ImageFlags, pages: int) -> ImageHeader:
        config = self._vhca.config
        full = ImageFlags.FULL if not self._sequence else ImageFlags(0)
        return ImageHeader(
            magic=image.MAGIC,
            version=config.image_version,
            flags=flags | full,
            sequence=self._sequence,
            session=self._session,
            model=image.MODEL,
            log_max_qp=config.log_max_qp,
            log_max_cq=config.log_max_cq,
            needs=Needs.MULTI_LOAD | Needs.TRACKING_STATE,
            state_pages=self._bulk_pages(),
            page_count=pages,
            length=image.image_bytes(pages),
            checksum=0,
        )

    def _bulk_pages(self) -> int:
        """Pages of bulk state that a card needs room for: its own, or what was loaded into it."""
        present = self._vhca.table("steering").present_slots()
        own = self._vhca.config.state_bytes // PAGE_SIZE
        return max(own, int(present[-1]) + 1 if len(present) else 0)

    def _copy_out(self, target: Scattered, pages: Pages) -> None:
        """Ids and pages; the function works on between two slices, and dirties pages again."""
        memory = self._vhca.memory
        target.put(image.HEADER_BYTES, image.to_ids(memory, pages).astype("<u8").tobytes())
        start = image.HEADER_BYTES + len(pages) * image.ID_BYTES
        for low in range(0, len(pages), image.SLICE_PAGES):
            some = pages[low : low + image.SLICE_PAGES]
            offset, length = start + low * PAGE_SIZE, len(some) * PAGE_SIZE
            place = target.in_place(offset, length)
            with self._vhca.lock:
                memory.take(some)
                if place is not None:
                    rows = np.frombuffer(place, dtype=np.uint8).reshape(-1, PAGE_SIZE)
                    np.take(memory.pages, some, axis=0, out=rows, mode="clip")
                else:
                    target.put(offset, memory.pages[some].tobytes())

    # --- Load ---------------------------------------------------------------------------------

    def load(self, parts: list[memoryview], size: int) -> None:
        """Load an image, or refuse it before anything has changed."""
        vhca = self._vhca
        if not vhca.responder_suspended:
            raise Refused(Status.BAD_RES_STATE, 0x5B30, "only a stopped function can be loaded")
        source = Scattered(parts, size)
        try:
            header, ids = image.parse(source)
            self._check(header)
            pages = image.from_ids(vhca.memory, ids)
        except ImageFault as fault:
            raise Refused(Status.BAD_PARAM, fault.syndrome, str(fault)) from fault
        with vhca.lock:
            self._sync()
            opens = bool(header.flags & ImageFlags.FULL)
            if not opens and (self._complete or header.session != self._loading):
                raise Refused(Status.BAD_RES_STATE, 0x5B31, "no session for this image")
            if header.sequence != (0 if opens else self._expected):
                raise Refused(Status.BAD_RES_STATE, 0x5B32, "an image is missing or comes twice")
            if opens:
                vhca.memory.clear()
                self._loading, self._complete = header.session, False
            start = image.HEADER_BYTES + len(ids) * image.ID_BYTES
            for low in range(0, len(pages), image.SLICE_PAGES):
                some = pages[low : low + image.SLICE_PAGES]
                rows = source.view(start + low * PAGE_SIZE, len(some) * PAGE_SIZE)
                content = np.frombuffer(rows, dtype=np.uint8).reshape(-1, PAGE_SIZE)
                vhca.memory.restore(some, content)
            self._expected = header.sequence + 1
            if header.flags & ImageFlags.FINAL:
                self._complete = True
            vhca.forget_derived()
            self._clearings = vhca.memory.clearings

    def _check(self, header: ImageHeader) -> None:
        config = self._vhca.config
        if header.model != image.MODEL:
            raise ImageFault(0x5A20, f"an image of another kind of device ({header.model:#x})")
        if header.version > config.image_version:
            raise ImageFault(0x5A21, f"version {header.version} is newer than this firmware")
        here = (Needs.MULTI_LOAD if config.multi_load else 0) | (
            Needs.TRACKING_STATE if config.tracking_state else 0
        )
        # As a number: the complement of an IntFlag has the flags alone that it knows.
        missing = header.needs & ~int(here)
        if missing:
            raise ImageFault(0x5A22, f"needs capabilities that are not here ({missing:#x})")
        if header.state_pages > self._vhca.table("steering").slots:
            raise ImageFault(0x5A23, "more bulk state than this card has room for")
        if not header.session:
            raise ImageFault(0x5A24, "it ended the tracking of a function and holds nothing of it")
