"""The firmware: commands by opcode, each with a status and a syndrome."""

import errno
from collections.abc import Callable, Mapping

from precopy.connectx import capability_pages, hca, memory_keys, objects, page_track
from precopy.connectx.config import NEVER, AdapterConfig, FaultPlan
from precopy.connectx.hca import Hca
from precopy.connectx.migration import Migration, Refused
from precopy.connectx.page_track import PageTracks
from precopy.connectx.transport import Transport
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.capabilities import AdvVirtualizationCap
from precopy.mlx5_abi.commands import (
    COMMANDS,
    CapType,
    LoadVhcaStateIn,
    Opcode,
    Outbox,
    QueryHcaCapIn,
    QueryVhcaMigrationStateIn,
    QueryVhcaMigrationStateOut,
    ResumeKind,
    ResumeVhcaIn,
    SaveVhcaStateIn,
    SaveVhcaStateOut,
    SuspendKind,
    SuspendVhcaIn,
)
from precopy.mlx5_abi.status import Status

#: Syndrome of a status that a fault plan asked for.
INJECTED = 0xFA017
#: Syndrome of a command that a fault plan leaves without an answer, where somebody waits for one.
NEVER_ANSWERED = 0xFA018

#: Told of every command: the function's index, inbox, outbox (None: never answered).
Trace = Callable[[int, bytes, bytes | None], None]


class Function:
    """A function as the firmware sees it: PF (index 0) or VF (from 1)."""

    def __init__(self, index: int, vhca: Vhca) -> None:
        self.index = index
        self.vhca = vhca
        self.migration = Migration(vhca)
        self.transport = Transport(vhca)
        #: Addresses of the pages that the PF's driver gave for it.
        self.pages: list[int] = []
        #: Called when the function works again after a suspension, for what came meanwhile.
        self.on_resume: Callable[[], None] | None = None


class Firmware:
    """Answers the commands of all functions of one adapter."""

    def __init__(
        self, config: AdapterConfig, functions: Mapping[int, Function], faults: FaultPlan
    ) -> None:
        self._config = config
        self._functions = functions
        self._by_vhca = {function.vhca.vhca_id: function for function in functions.values()}
        self.faults = faults
        self._hca = Hca(functions, few_polls=config.few_polls)
        pf = functions[0]
        limits = AdvVirtualizationCap()
        write_limits = capability_pages.PAGES[CapType.ADV_VIRTUALIZATION]
        write_limits(limits.buf, config, pf.index, pf.vhca.vhca_id)
        self.page_tracks = PageTracks(
            pf.vhca, limits, lambda vhca_id: self._vf(vhca_id).vhca, pf.transport.send_own
        )
        pf.transport.on_arm = self.page_tracks.go_on
        self.trace: Trace | None = None

    def execute(self, function: Function, inbox: bytes) -> bytes:
        """The outbox of one command of ``function``. Never raises for what the inbox holds.

        TimeoutError (ETIMEDOUT) where a fault plan wants the command never to be answered.
        """
        trace = self.trace
        try:
            outbox = self._execute(function, inbox)
        except TimeoutError:
            if trace is not None:
                trace(function.index, inbox, None)
            raise
        if trace is not None:
            trace(function.index, inbox, outbox)
        return outbox

    def _execute(self, function: Function, inbox: bytes) -> bytes:
        opcode = int.from_bytes(inbox[:2], "big")
        command = COMMANDS.get(opcode)
        if command is None:
            return bytes(Outbox(status=Status.BAD_OP, syndrome=0x5001))
        if len(inbox) < command.inbox.SIZE:
            return bytes(Outbox(status=Status.BAD_INP_LEN, syndrome=0x5002))
        out = command.outbox()
        injected = self.faults.take(opcode)
        if injected == NEVER:
            raise TimeoutError(errno.ETIMEDOUT, f"{command.opcode.name} is never answered")
        try:
            if injected:
                raise Refused(Status.INT_ERR, INJECTED)
            on_objects = objects.COMMANDS.get(opcode)
            if on_objects is not None:
                vhca = function.vhca
                with vhca.lock:
                    if vhca.responder_suspended:
                        raise Refused(Status.BAD_SYS_STATE, 0x5003, "the function is suspended")
                    on_objects(vhca, inbox, out)
                if opcode == Opcode.MODIFY_2ERR_QP:
                    function.transport.flush(int.from_bytes(inbox[9:12], "big"))
            elif opcode in hca.COMMANDS:
                hca.COMMANDS[opcode](self._hca, function, inbox, out)
            elif opcode == Opcode.QUERY_HCA_CAP:
                self._query_hca_cap(function, inbox, out)
            elif function.index:
                raise Refused(Status.BAD_OP, 0x5004, "only the PF migrates functions")
            elif opcode in page_track.COMMANDS:
                self.page_tracks.execute(opcode, inbox, out)
            else:
                _MIGRATION[opcode](self, function, inbox, out)
        except Refused as refused:
            out = command.outbox()
            out.status, out.syndrome = injected or refused.status, refused.syndrome
        if not function.index:
            self.page_tracks.go_on()
        return bytes(out)

    def _query_hca_cap(self, function: Function, inbox: bytes, out: Outbox) -> None:
        asked = QueryHcaCapIn(inbox)
        about = function
        if asked.other_function and asked.function_id:
            found = self._functions.get(asked.function_id)
            if function.index or found is None:
                raise Refused(Status.BAD_PARAM, 0x5010, "no such function")
            about = found
        write = capability_pages.PAGES.get(asked.op_mod >> 1)
        if write is None:
            raise Refused(
                Status.BAD_PARAM, 0x5011, f"no capabilities of type {asked.op_mod >> 1:#x}"
            )
        page = memoryview(out.buf)[Outbox.SIZE :]
        write(page, self._config, about.index, about.vhca.vhca_id)

    # --- Migration, on the PF -----------------------------------------------------------------

    def _vf(self, vhca_id: int) -> Function:
        found = self._by_vhca.get(vhca_id)
        if found is None or not found.index:
            raise Refused(Status.BAD_RES, 0x5020, f"no VF with VHCA id {vhca_id:#x}")
        return found

    def _suspend(self, pf: Function, inbox: bytes, out: Outbox) -> None:
        asked = SuspendVhcaIn(inbox)
        if asked.op_mod not in SuspendKind._value2member_map_:
            raise Refused(Status.BAD_PARAM, 0x5021)
        self._vf(asked.vhca_id).migration.suspend(asked.op_mod == SuspendKind.INITIATOR)

    def _resume(self, pf: Function, inbox: bytes, out: Outbox) -> None:
        asked = ResumeVhcaIn(inbox)
        if asked.op_mod not in ResumeKind._value2member_map_:
            raise Refused(Status.BAD_PARAM, 0x5022)
        vf = self._vf(asked.vhca_id)
        initiator = asked.op_mod == ResumeKind.INITIATOR
        vf.migration.resume(initiator)
        if initiator:
            if vf.on_resume is not None:
                vf.on_resume()
            vf.transport.catch_up()

    def _query(self, pf: Function, inbox: bytes, out: Outbox) -> None:
        asked = QueryVhcaMigrationStateIn(inbox)
        chunk = bool(asked.chunk) and self._config.chunk_mode
        required, total, state = self._vf(asked.vhca_id).migration.query(
            bool(asked.incremental), chunk
        )
        assert isinstance(out, QueryVhcaMigrationStateOut)
        out.required_umem_size, out.remaining_total_size = required, total
        if self._config.migration_state:
            out.migration_state = state

    def _buffer(self, pf: Function, mkey: int, size: int, access: str) -> list[memoryview]:
        try:
            with pf.vhca.lock:
                return memory_keys.resolve(pf.vhca, mkey, 0, size, access)
        except memory_keys.KeyFault as fault:
            raise Refused(Status.BAD_PARAM, 0x5023, str(fault)) from fault

    def _save(self, pf: Function, inbox: bytes, out: Outbox) -> None:
        asked = SaveVhcaStateIn(inbox)
        vf = self._vf(asked.vhca_id)
        size = asked.size
        parts = self._buffer(pf, asked.mkey, size, "lw") if size else []
        assert isinstance(out, SaveVhcaStateOut)
        out.actual_image_size, out.next_required_umem_size = vf.migration.save(
            parts, size, bool(asked.incremental), bool(asked.set_track)
        )

    def _load(self, pf: Function, inbox: bytes, out: Outbox) -> None:
        asked = LoadVhcaStateIn(inbox)
        vf = self._vf(asked.vhca_id)
        vf.migration.load(self._buffer(pf, asked.mkey, asked.size, "lr"), asked.size)


_MIGRATION: dict[int, Callable[[Firmware, Function, bytes, Outbox], None]] = {
    Opcode.SUSPEND_VHCA: Firmware._suspend,
    Opcode.RESUME_VHCA: Firmware._resume,
    Opcode.QUERY_VHCA_MIGRATION_STATE: Firmware._query,
    Opcode.SAVE_VHCA_STATE: Firmware._save,
    Opcode.LOAD_VHCA_STATE: Firmware._load,
}
