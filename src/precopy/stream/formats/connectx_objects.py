"""What is in a page of the software adapter's context memory: objects, with the fields of their context."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from precopy.connectx import slots
from precopy.connectx.context_memory import PAGE_SIZE
from precopy.connectx.slots import CqSlot, EqSlot, HcaSlot, MkeySlot, QpSlot, SlotFlags
from precopy.mlx5_abi.contexts import AccessMode, CqState, QpState, ServiceType
from precopy.mlx5_abi.layout import Field
from precopy.stream.cursor import BitField
from precopy.stream.layout import hexadecimal, named

Show = Callable[[int], str]

#: Objects of a table, as people call them.
_ONE = {"qp": "QP", "cq": "CQ", "eq": "EQ", "mkey": "memory key", "pd": "PD", "uar": "UAR"}

_QP_STATES = {state.value: state.name for state in QpState}


@dataclass(frozen=True)
class Objects:
    """The objects of a table: byte of their flags (None: one that is written is in use), and fields."""

    flags: int | None
    shown: Sequence[tuple[Field, Show]]

    def in_use(self, page: bytes, slot_bytes: int) -> list[int]:
        """Slots of a page that belong to an object."""
        rows = _rows(page, slot_bytes)
        return [int(slot) for slot in np.flatnonzero(_used(rows, self.flags))]

    def fields(self, slot: bytes) -> list[BitField]:
        """The fields of an object, for people."""
        found = []
        for field, show in self.shown:
            value = field.read(slot)
            found.append((field.name, field.first, field.last - field.first, value, show(value)))
        return found


def counted(count: int, what: str) -> str:
    """``1 page``, ``2 pages``."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _rows(data: bytes | memoryview, slot_bytes: int) -> NDArray[np.uint8]:
    return np.frombuffer(data, dtype=np.uint8).reshape(-1, slot_bytes)


def _used(rows: NDArray[np.uint8], flags: int | None) -> NDArray[np.bool_]:
    if flags is None:
        written: NDArray[np.bool_] = np.any(rows, axis=1)
        return written
    used: NDArray[np.bool_] = (rows[:, flags] & SlotFlags.IN_USE) != 0
    return used


def _cq_state(value: int) -> str:
    return "not armed" if not value else named(CqState)(value)


def _plain(*shown: Field) -> list[tuple[Field, Show]]:
    return [(field, str) for field in shown]


def _hex(*shown: Field) -> list[tuple[Field, Show]]:
    return [(field, hexadecimal) for field in shown]


_FLAGS = slots.FLAGS_BYTE

OBJECTS: dict[str, Objects] = {
    "pd": Objects(_FLAGS["pd"], []),
    "uar": Objects(_FLAGS["uar"], []),
    "mkey": Objects(
        _FLAGS["mkey"],
        [
            (MkeySlot.access_mode_1_0, named(AccessMode)),
            *_plain(MkeySlot.rw, MkeySlot.rr, MkeySlot.lw, MkeySlot.lr, MkeySlot.length64),
            *_hex(MkeySlot.qpn, MkeySlot.mkey_7_0, MkeySlot.pd, MkeySlot.start_addr, MkeySlot.len),
            *_plain(MkeySlot.log_page_size, MkeySlot.first_mtt, MkeySlot.num_mtts),
        ],
    ),
    "eq": Objects(
        _FLAGS["eq"],
        [
            *_plain(EqSlot.status, EqSlot.log_eq_size, EqSlot.intr),
            *_hex(EqSlot.st, EqSlot.uar_page),
            *_plain(EqSlot.consumer_counter, EqSlot.producer_counter, EqSlot.num_pages),
            *_hex(EqSlot.event_bitmask),
        ],
    ),
    "cq": Objects(
        _FLAGS["cq"],
        [
            (CqSlot.st, _cq_state),
            *_plain(CqSlot.status, CqSlot.log_cq_size, CqSlot.c_eqn),
            *_plain(CqSlot.consumer_counter, CqSlot.producer_counter, CqSlot.last_notified_index),
            *_hex(CqSlot.uar_page, CqSlot.dbr_addr),
        ],
    ),
    "qp": Objects(
        _FLAGS["qp"],
        [
            (QpSlot.state, named(QpState)),
            (QpSlot.st, named(ServiceType)),
            *_hex(QpSlot.pd, QpSlot.cqn_snd, QpSlot.cqn_rcv, QpSlot.remote_qpn, QpSlot.uar_page),
            *_plain(QpSlot.log_sq_size, QpSlot.log_rq_size),
            *_hex(QpSlot.next_send_psn, QpSlot.last_acked_psn, QpSlot.next_rcv_psn),
            *_plain(QpSlot.hw_sq_wqebb_counter, QpSlot.sw_sq_wqebb_counter),
            *_plain(QpSlot.hw_rq_counter, QpSlot.sw_rq_counter),
            *_hex(QpSlot.dbr_addr, QpSlot.q_key),
            *_plain(QpSlot.rnr_attempts),
        ],
    ),
    "hca": Objects(
        None,
        [
            *_hex(HcaSlot.cmdq_addr, HcaSlot.cmdq_pending),
            *_plain(HcaSlot.enabled, HcaSlot.initialized, HcaSlot.issi),
        ],
    ),
}


class Tally:
    """Counts the objects in pages of a table."""

    def __init__(self, table: str, slot_bytes: int) -> None:
        self.table, self.slot_bytes = table, slot_bytes
        self.used = 0
        self.states: Counter[int] = Counter()

    def add(self, pages: bytes | memoryview) -> None:
        objects = OBJECTS.get(self.table)
        if objects is None or objects.flags is None or self.slot_bytes > PAGE_SIZE:
            return
        rows = _rows(pages, self.slot_bytes)
        used = _used(rows, objects.flags)
        self.used += int(np.count_nonzero(used))
        if self.table == "qp":
            states = np.bincount(rows[used, QpSlot.state.first] >> 4)
            self.states.update({int(n): int(states[n]) for n in np.flatnonzero(states)})

    def __str__(self) -> str:
        """Nothing, or ``, 7 QPs in use (6 RTS, 1 RST)``."""
        if self.table not in _ONE:
            return ""
        told = ", ".join(
            f"{count} {_QP_STATES.get(state, f'{state:#x}')}"
            for state, count in sorted(self.states.items(), key=lambda each: (-each[1], each[0]))
        )
        return f", {counted(self.used, _ONE[self.table])} in use" + (f" ({told})" if told else "")
