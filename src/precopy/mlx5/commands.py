"""The firmware commands that migration uses, one method each.

A status other than OK becomes an ``OSError`` with the errno that mlx5_core gives it (see
``mlx5_abi.status``), with opcode, status and syndrome in its text.
"""

import errno
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from precopy.mlx5_abi.commands import (
    COMMANDS,
    AllocPdOut,
    AllocUarOut,
    CapType,
    CreateCqIn,
    CreateCqOut,
    CreateEqIn,
    CreateEqOut,
    CreateMkeyIn,
    CreateMkeyOut,
    CreateQpIn,
    CreateQpOut,
    DeallocPdIn,
    DeallocUarIn,
    DestroyCqIn,
    DestroyEqIn,
    DestroyMkeyIn,
    DestroyQpIn,
    GeneralObjectIn,
    GeneralObjectOut,
    Inbox,
    LoadVhcaStateIn,
    ModifyQpIn,
    Opcode,
    Outbox,
    PageTrackIn,
    PageTrackOut,
    QueryHcaCapIn,
    QueryHcaCapOut,
    QueryVhcaMigrationStateIn,
    QueryVhcaMigrationStateOut,
    ResumeKind,
    ResumeVhcaIn,
    SaveVhcaStateIn,
    SaveVhcaStateOut,
    SuspendKind,
    SuspendVhcaIn,
)
from precopy.mlx5_abi.contexts import AccessMode, AddressPath, ServiceType
from precopy.mlx5_abi.general_object import (
    SELECT_RANGE,
    SELECT_STATE,
    TRACK_WRITES,
    ObjectType,
    PageTrackState,
    pack_ranges,
)
from precopy.mlx5_abi.layout import Field
from precopy.mlx5_abi.port import CommandPort
from precopy.mlx5_abi.status import Status, errno_of, name_of
from precopy.vfio.device import DmaRange
from precopy.vfio.errors import refuse

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

#: Any QP may use the key.
_ANY_QP = 0xFFFFFF

# Of the page tracker's QPs.
_PATH_MIGRATED = 3
_ZERO_LENGTH_RQ = 3
_NO_USER_INDEX = 0xFFFFFF
_PORT = 1
_MTU_4096 = 5
_ABOUT_1_MS = 8


class StateSize(NamedTuple):
    """What QUERY_VHCA_MIGRATION_STATE answers, in bytes; ``state`` as it stands in the outbox."""

    required: int
    total: int
    state: int


class SaveResult(NamedTuple):
    """What SAVE_VHCA_STATE answers; sizes in bytes, both 0 unless ``status`` is OK."""

    status: int
    syndrome: int
    image_size: int
    next_required: int


class Queue(NamedTuple):
    """A queue in memory: device address of its first page, its pages, its entries' logarithm."""

    iova: int
    pages: int
    log_entries: int


class ReceiveQueue(NamedTuple):
    """A receive queue: its memory, its doorbell record's address, and the CQ that it completes into."""

    queue: Queue
    record: int
    cqn: int


class _RtsPath(AddressPath):
    ack_timeout = Field(0x40, 5)


C = TypeVar("C", CreateEqIn, CreateCqIn, CreateQpIn)


def _with_pages(kind: type[C], queue: Queue | None) -> C:
    """An inbox with the page addresses of ``queue`` behind it."""
    pages = queue.pages if queue else 0
    inbox = kind(bytearray(kind.SIZE + 8 * pages))
    if queue:
        inbox.buf[kind.SIZE :] = _page_addresses(queue.iova, pages)
    return inbox


def _page_addresses(iova: int, pages: int) -> bytes:
    """be64 for each of ``pages`` pages at ``iova``."""
    entries = iova + (np.arange(pages, dtype=np.uint64) << np.uint64(PAGE_SHIFT))
    return entries.astype(">u8").tobytes()


class Commands:
    """Commands about one VHCA, issued on the PF's command port.

    All raise OSError: ENOTCONN once the VF has been detached, else by the status.
    """

    def __init__(self, port: CommandPort) -> None:
        self.port = port
        self.detached = False

    def require_attached(self) -> None:
        """ENOTCONN once the VF has been detached."""
        if self.detached:
            raise refuse(errno.ENOTCONN, "the VF is gone (SR-IOV was switched off)")

    def _execute(self, inbox: Inbox, opcode: Opcode) -> Outbox:
        self.require_attached()
        inbox.opcode = opcode
        outbox = COMMANDS[opcode].outbox(self.port.execute(bytes(inbox.buf)))
        if outbox.status != Status.OK:
            raise failure(opcode, outbox.status, outbox.syndrome)
        return outbox

    def query_cap(self, kind: CapType, *, maximum: bool = False, function: int = 0) -> bytes:
        """A capability page (4096 bytes) of the PF itself, or of another ``function`` (VF n: n + 1)."""
        inbox = QueryHcaCapIn(op_mod=kind << 1 | (not maximum), function_id=function)
        inbox.other_function = int(function != 0)
        outbox = self._execute(inbox, Opcode.QUERY_HCA_CAP)
        return bytes(outbox.buf[Outbox.SIZE : QueryHcaCapOut.SIZE])

    def suspend(self, vhca_id: int, kind: SuspendKind) -> None:
        self._execute(SuspendVhcaIn(vhca_id=vhca_id, op_mod=kind), Opcode.SUSPEND_VHCA)

    def resume(self, vhca_id: int, kind: ResumeKind) -> None:
        self._execute(ResumeVhcaIn(vhca_id=vhca_id, op_mod=kind), Opcode.RESUME_VHCA)

    def query_state(self, vhca_id: int, *, incremental: bool, chunk: bool) -> StateSize:
        """How large the buffer of the next save must be. ``total`` is all of it in chunk mode too."""
        inbox = QueryVhcaMigrationStateIn(vhca_id=vhca_id, incremental=incremental, chunk=chunk)
        out = self._execute(inbox, Opcode.QUERY_VHCA_MIGRATION_STATE)
        assert isinstance(out, QueryVhcaMigrationStateOut)
        required = out.required_umem_size
        return StateSize(
            required, out.remaining_total_size if chunk else required, out.migration_state
        )

    def save(
        self,
        vhca_id: int,
        mkey: int,
        size: int,
        *,
        incremental: bool,
        track: bool,
        done: Callable[[SaveResult], None],
    ) -> None:
        """Start a save into ``mkey``; ``done`` is called from the firmware's own thread."""
        self.require_attached()
        inbox = SaveVhcaStateIn(
            opcode=Opcode.SAVE_VHCA_STATE,
            vhca_id=vhca_id,
            mkey=mkey,
            size=size,
            incremental=incremental,
            set_track=track,
        )

        def completed(reply: bytes) -> None:
            out = SaveVhcaStateOut(reply)
            done(
                SaveResult(
                    out.status, out.syndrome, out.actual_image_size, out.next_required_umem_size
                )
            )

        self.port.submit(bytes(inbox.buf), completed)

    def load(self, vhca_id: int, mkey: int, size: int) -> None:
        self._execute(
            LoadVhcaStateIn(vhca_id=vhca_id, mkey=mkey, size=size), Opcode.LOAD_VHCA_STATE
        )

    def alloc_pd(self) -> int:
        out = self._execute(Inbox(), Opcode.ALLOC_PD)
        assert isinstance(out, AllocPdOut)
        return out.pd

    def dealloc_pd(self, pd: int) -> None:
        self._execute(DeallocPdIn(pd=pd), Opcode.DEALLOC_PD)

    def create_mkey(self, pd: int, iova: int, pages: int) -> int:
        """A key over ``pages`` pages of 4096 bytes at ``iova``; its addresses start at 0."""
        octwords = -(-pages // 2)
        inbox = CreateMkeyIn(bytearray(CreateMkeyIn.SIZE + octwords * 16))
        inbox.translations_octword_actual_size = octwords
        mkc = inbox.mkc
        mkc.access_mode_1_0 = AccessMode.MTT
        mkc.lr = mkc.lw = mkc.rr = mkc.rw = 1
        mkc.pd = pd
        mkc.qpn = _ANY_QP
        mkc.log_page_size = PAGE_SHIFT
        mkc.translations_octword_size = octwords
        mkc.len = pages * PAGE_SIZE
        end = CreateMkeyIn.SIZE + pages * 8
        inbox.buf[CreateMkeyIn.SIZE : end] = _page_addresses(iova, pages)
        out = self._execute(inbox, Opcode.CREATE_MKEY)
        assert isinstance(out, CreateMkeyOut)
        return out.mkey_index << 8 | mkc.mkey_7_0

    def destroy_mkey(self, mkey: int) -> None:
        self._execute(DestroyMkeyIn(mkey_index=mkey >> 8), Opcode.DESTROY_MKEY)

    # --- Queues of the page tracker -----------------------------------------------------------

    def alloc_uar(self) -> int:
        out = self._execute(Inbox(), Opcode.ALLOC_UAR)
        assert isinstance(out, AllocUarOut)
        return out.uar

    def dealloc_uar(self, uar: int) -> None:
        self._execute(DeallocUarIn(uar=uar), Opcode.DEALLOC_UAR)

    def create_eq(self, uar: int, vector: int, events: int, queue: Queue) -> int:
        """An EQ that raises ``vector``, for the types of events whose bits are set in ``events``."""
        inbox = _with_pages(CreateEqIn, queue)
        eqc = inbox.eqc
        eqc.log_eq_size, eqc.uar_page, eqc.intr = queue.log_entries, uar, vector
        inbox.event_bitmask = events
        out = self._execute(inbox, Opcode.CREATE_EQ)
        assert isinstance(out, CreateEqOut)
        return out.eq_number

    def destroy_eq(self, eqn: int) -> None:
        self._execute(DestroyEqIn(eq_number=eqn), Opcode.DESTROY_EQ)

    def create_cq(self, uar: int, eqn: int, record: int, queue: Queue) -> int:
        """A CQ whose events go to EQ ``eqn``; ``record`` is where its doorbell record stands."""
        inbox = _with_pages(CreateCqIn, queue)
        cqc = inbox.cqc
        cqc.log_cq_size, cqc.c_eqn, cqc.uar_page = queue.log_entries, eqn, uar
        cqc.dbr_addr = record
        out = self._execute(inbox, Opcode.CREATE_CQ)
        assert isinstance(out, CreateCqOut)
        return out.cqn

    def destroy_cq(self, cqn: int) -> None:
        self._execute(DestroyCqIn(cqn=cqn), Opcode.DESTROY_CQ)

    def create_qp(
        self, pd: int, uar: int, *, cqe_version: int, receive: ReceiveQueue | None = None
    ) -> int:
        """An RC QP without a send queue, and without a receive queue unless one is given."""
        inbox = _with_pages(CreateQpIn, receive.queue if receive else None)
        qpc = inbox.qpc
        qpc.st, qpc.pm_state = ServiceType.RC, _PATH_MIGRATED
        qpc.pd, qpc.uar_page, qpc.no_sq = pd, uar, 1
        if cqe_version == 1:
            qpc.user_index = _NO_USER_INDEX
        if receive is None:
            qpc.rq_type = _ZERO_LENGTH_RQ
        else:
            qpc.cqn_rcv, qpc.log_rq_size = receive.cqn, receive.queue.log_entries
            qpc.dbr_addr = receive.record
        out = self._execute(inbox, Opcode.CREATE_QP)
        assert isinstance(out, CreateQpOut)
        return out.qpn

    def destroy_qp(self, qpn: int) -> None:
        self._execute(DestroyQpIn(qpn=qpn), Opcode.DESTROY_QP)

    def rst2init_qp(self, qpn: int) -> None:
        inbox = ModifyQpIn(qpn=qpn)
        qpc = inbox.qpc
        qpc.primary_address_path.vhca_port_num = _PORT
        qpc.pm_state, qpc.rre, qpc.rwe = _PATH_MIGRATED, 1, 1
        self._execute(inbox, Opcode.RST2INIT_QP)

    def init2rtr_qp(self, qpn: int, remote_qpn: int, log_msg_max: int) -> None:
        """The remote end is on the same port (loopback)."""
        inbox = ModifyQpIn(qpn=qpn)
        qpc = inbox.qpc
        qpc.mtu, qpc.log_msg_max, qpc.remote_qpn = _MTU_4096, log_msg_max, remote_qpn
        path = qpc.primary_address_path
        path.vhca_port_num, path.fl = _PORT, 1
        qpc.min_rnr_nak = 1
        self._execute(inbox, Opcode.INIT2RTR_QP)

    def rtr2rts_qp(self, qpn: int) -> None:
        """A receiver that is not ready is waited for, for ever."""
        inbox = ModifyQpIn(qpn=qpn)
        inbox.qpc.retry_count, inbox.qpc.rnr_retry = 7, 7
        _RtsPath(inbox.qpc.primary_address_path.buf).ack_timeout = _ABOUT_1_MS
        self._execute(inbox, Opcode.RTR2RTS_QP)

    # --- Page tracker -------------------------------------------------------------------------

    def create_page_track(self, ranges: Sequence[DmaRange], **fields: int) -> int:
        """A PAGE_TRACK object over ``ranges``, with ``fields`` of :class:`PageTrack`; its number."""
        inbox = PageTrackIn(bytearray(PageTrackIn.SIZE) + pack_ranges(ranges))
        track = inbox.page_track
        for name, value in fields.items():
            setattr(track, name, value)
        track.track_type, track.num_ranges = TRACK_WRITES, len(ranges)
        return self._on_page_track(inbox, Opcode.CREATE_GENERAL_OBJECT).obj_id

    def report_pages(self, number: int, iova: int, length: int) -> None:
        """Begin a report of the pages in ``length`` bytes at ``iova``."""
        inbox = PageTrackIn(obj_id=number)
        track = inbox.page_track
        track.modify_field_select = SELECT_STATE | SELECT_RANGE
        track.range_start_address, track.length = iova, length
        track.state = PageTrackState.REPORTING
        self._on_page_track(inbox, Opcode.MODIFY_GENERAL_OBJECT)

    def page_track_state(self, number: int) -> int:
        """``PageTrackState``, as it stands in the outbox."""
        out = self._on_page_track(GeneralObjectIn(obj_id=number), Opcode.QUERY_GENERAL_OBJECT)
        assert isinstance(out, PageTrackOut)
        return out.page_track.state

    def destroy_page_track(self, number: int) -> None:
        self._on_page_track(GeneralObjectIn(obj_id=number), Opcode.DESTROY_GENERAL_OBJECT)

    def _on_page_track(self, inbox: GeneralObjectIn, opcode: Opcode) -> GeneralObjectOut:
        inbox.obj_type = ObjectType.PAGE_TRACK
        out = self._execute(inbox, opcode)
        assert isinstance(out, GeneralObjectOut)
        return out


def failure(opcode: Opcode, status: int, syndrome: int) -> OSError:
    """The error for a command that the firmware refused."""
    what = f"firmware refused {opcode.name}: {name_of(status)}, syndrome {syndrome:#x}"
    return refuse(errno_of(status), what)
