"""The firmware commands that migration uses, one method each.

A status other than OK becomes an ``OSError`` with the errno that mlx5_core gives it (see
``mlx5_abi.status``), with opcode, status and syndrome in its text.
"""

import errno
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from precopy.mlx5_abi.commands import (
    COMMANDS,
    AllocPdOut,
    CapType,
    CreateMkeyIn,
    CreateMkeyOut,
    DeallocPdIn,
    DestroyMkeyIn,
    Inbox,
    LoadVhcaStateIn,
    Opcode,
    Outbox,
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
from precopy.mlx5_abi.contexts import AccessMode
from precopy.mlx5_abi.port import CommandPort
from precopy.mlx5_abi.status import Status, errno_of, name_of
from precopy.vfio.errors import refuse

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT

#: Any QP may use the key.
_ANY_QP = 0xFFFFFF


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
        entries = iova + (np.arange(pages, dtype=np.uint64) << np.uint64(PAGE_SHIFT))
        end = CreateMkeyIn.SIZE + pages * 8
        inbox.buf[CreateMkeyIn.SIZE : end] = entries.astype(">u8").tobytes()
        out = self._execute(inbox, Opcode.CREATE_MKEY)
        assert isinstance(out, CreateMkeyOut)
        return out.mkey_index << 8 | mkc.mkey_7_0

    def destroy_mkey(self, mkey: int) -> None:
        self._execute(DestroyMkeyIn(mkey_index=mkey >> 8), Opcode.DESTROY_MKEY)


def failure(opcode: Opcode, status: int, syndrome: int) -> OSError:
    """The error for a command that the firmware refused."""
    what = f"firmware refused {opcode.name}: {name_of(status)}, syndrome {syndrome:#x}"
    return refuse(errno_of(status), what)
