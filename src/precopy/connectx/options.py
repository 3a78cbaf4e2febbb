"""Kinds of card by name: the options of ``sim:mlx5?...`` and of ``--adapter mlx5?...``."""

import re
from collections.abc import Mapping

from precopy.connectx.config import AdapterConfig, FaultPlan
from precopy.options import Option, size, switch, whole, within


def version(text: str) -> str:
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}\.\d{1,4}", text):
        raise ValueError("a firmware version is three numbers, as 28.43.1014")
    return text


#: Most bulk state that a card can have: a target has room for so much.
MAX_STATE = 16 << 30

#: Options of any card.
CARD: dict[str, Option] = {
    "state": Option(size(MAX_STATE), "0", "bulk state of a VF besides its contexts, such as 300M"),
    "chunks": Option(switch, "1", "chunk mode (migration_in_chunks)"),
    "migration_state": Option(switch, "1", "the capability behind REINIT"),
    "migratable": Option(switch, "1", "whether the VF may be migrated"),
    "multi_load": Option(switch, "1", "0: firmware too old for PRE_COPY"),
    "page_track": Option(switch, "1", "whether DMA can be logged (adv_virtualization)"),
    "image_version": Option(within(1, 0xFFFF), "1", "version of the firmware's images"),
    "log_max_qp": Option(within(4, 20), "18", "QPs of a function, as a power of two"),
    "fault": Option(
        FaultPlan.parse, "", "OPCODE:NTH:STATUS,...: commands that fail (STATUS never: no answer)"
    ),
    "fw": Option(version, "28.43.1014", "firmware version"),
    "serial": Option(str, "MT2243X00001", "serial number"),
    "seed": Option(within(0, 0xFFFF_FFFF), "1", "of messages and bulk state"),
    "reinit_pages": Option(
        within(1, 1 << 30), "256", "pages never sent before that make new initial state"
    ),
    "first_session": Option(
        within(0, 1 << 62), "0", "number of the first saving session (0: at random)"
    ),
}


def config(values: Mapping[str, object], **more: int | bool) -> AdapterConfig:
    """The card that ``values`` (of :data:`CARD`) and ``more`` fields describe."""

    return AdapterConfig(
        log_max_qp=whole(values, "log_max_qp"),
        log_max_cq=whole(values, "log_max_qp"),
        state_bytes=whole(values, "state"),
        seed=whole(values, "seed"),
        firmware=str(values["fw"]),
        serial=str(values["serial"]),
        migratable=bool(values["migratable"]),
        multi_load=bool(values["multi_load"]),
        chunk_mode=bool(values["chunks"]),
        migration_state=bool(values["migration_state"]),
        image_version=whole(values, "image_version"),
        page_track=bool(values["page_track"]),
        reinit_pages=whole(values, "reinit_pages"),
        first_session=whole(values, "first_session"),
        **more,  # type: ignore[arg-type]
    )


def faults(values: Mapping[str, object]) -> FaultPlan:
    """The faults that ``values`` describe."""
    plan = values["fault"]
    assert isinstance(plan, FaultPlan)
    return plan
