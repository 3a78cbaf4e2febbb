"""The firmware: commands by opcode, each with a status and a syndrome."""

from collections.abc import Callable, Mapping

from precopy.connectx import memory_keys, objects
from precopy.connectx.config import AdapterConfig, FaultPlan
from precopy.connectx.migration import Migration, Refused
from precopy.connectx.transport import Transport
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.capabilities import GeneralCap, GeneralCap2
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

_PORT_TYPE_ETHERNET = 1


class Function:
    """A function as the firmware sees it: PF (index 0) or VF (from 1)."""

    def __init__(self, index: int, vhca: Vhca) -> None:
        self.index = index
        self.vhca = vhca
        self.migration = Migration(vhca)
        self.transport = Transport(vhca)


class Firmware:
    """Answers the commands of all functions of one adapter."""

    def __init__(
        self, config: AdapterConfig, functions: Mapping[int, Function], faults: FaultPlan
    ) -> None:
        self._config = config
        self._functions = functions
        self._by_vhca = {function.vhca.vhca_id: function for function in functions.values()}
        self._faults = faults

    def execute(self, function: Function, inbox: bytes) -> bytes:
        """The outbox of one command of ``function``. Never raises for what the inbox holds."""
        opcode = int.from_bytes(inbox[:2], "big")
        command = COMMANDS.get(opcode)
        if command is None:
            return bytes(Outbox(status=Status.BAD_OP, syndrome=0x5001))
        if len(inbox) < command.inbox.SIZE:
            return bytes(Outbox(status=Status.BAD_INP_LEN, syndrome=0x5002))
        out = command.outbox()
        injected = self._faults.take(opcode)
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
            elif opcode == Opcode.QUERY_HCA_CAP:
                self._query_hca_cap(function, inbox, out)
            elif function.index:
                raise Refused(Status.BAD_OP, 0x5004, "only the PF migrates functions")
            else:
                _MIGRATION[opcode](self, function, inbox, out)
        except Refused as refused:
            out = command.outbox()
            out.status, out.syndrome = injected or refused.status, refused.syndrome
        return bytes(out)

    def _query_hca_cap(self, function: Function, inbox: bytes, out: Outbox) -> None:
        asked = QueryHcaCapIn(inbox)
        about = function
        if asked.other_function and asked.function_id:
            found = self._functions.get(asked.function_id)
            if function.index or found is None:
                raise Refused(Status.BAD_PARAM, 0x5010, "no such function")
            about = found
        config = self._config
        body = memoryview(out.buf)[Outbox.SIZE :]
        kind = asked.op_mod >> 1
        if kind == CapType.GENERAL:
            GeneralCap(
                body,
                hca_cap_2=1,
                vhca_id=about.vhca.vhca_id,
                log_max_qp_sz=15,
                log_max_qp=config.log_max_qp,
                log_max_cq_sz=22,
                log_max_cq=config.log_max_cq,
                log_max_eq_sz=13,
                log_max_mkey=12,
                log_max_eq=6,
                log_max_pd=12,
                log_max_msg=30,
                port_type=_PORT_TYPE_ETHERNET,
                cqe_version=1,
                migration=config.migration,
            )
        elif kind == CapType.GENERAL_2:
            GeneralCap2(
                body,
                migratable=bool(about.index) and config.migratable,
                migration_multi_load=config.multi_load,
                migration_tracking_state=config.tracking_state,
                migration_in_chunks=config.chunk_mode,
                migration_state=config.migration_state,
            )
        elif kind != CapType.ADV_VIRTUALIZATION:
            raise Refused(Status.BAD_PARAM, 0x5011, f"no capabilities of type {kind:#x}")

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
