"""What QUERY_HCA_CAP answers: the capability pages, from what kind of card it is."""

from collections.abc import Callable
from typing import Any

from precopy.connectx.config import AdapterConfig
from precopy.connectx.slots import EQ_SLOTS, MKEY_SLOTS, PD_SLOTS
from precopy.mlx5_abi.capabilities import AdvVirtualizationCap, GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import CapType

_PORT_TYPE_ETHERNET = 1

#: The timer of the initialization segment counts nanoseconds.
TIMER_KHZ = 1_000_000


def _log(count: int) -> int:
    return count.bit_length() - 1


def _general(page: Any, config: AdapterConfig, index: int, vhca_id: int) -> None:
    GeneralCap(
        page,
        hca_cap_2=1,
        vhca_id=vhca_id,
        log_max_qp_sz=15,
        log_max_qp=config.log_max_qp,
        log_max_cq_sz=22,
        log_max_cq=config.log_max_cq,
        log_max_eq_sz=13,
        log_max_mkey=_log(MKEY_SLOTS),
        log_max_eq=_log(EQ_SLOTS),
        log_max_pd=_log(PD_SLOTS),
        log_max_msg=30,
        port_type=_PORT_TYPE_ETHERNET,
        cqe_version=1,
        device_frequency_khz=0 if config.few_polls else TIMER_KHZ,
        adv_virtualization=config.page_track,
        migration=config.migration,
    )


def _general_2(page: Any, config: AdapterConfig, index: int, vhca_id: int) -> None:
    GeneralCap2(
        page,
        migratable=bool(index) and config.migratable,
        migration_multi_load=config.multi_load,
        migration_tracking_state=config.tracking_state,
        migration_in_chunks=config.chunk_mode,
        migration_state=config.migration_state,
    )


def _adv_virtualization(page: Any, config: AdapterConfig, index: int, vhca_id: int) -> None:
    if config.page_track:
        AdvVirtualizationCap(
            page,
            pg_track_log_max_num=5,
            pg_track_max_num_range=config.page_track_ranges,
            pg_track_log_min_addr_space=12,
            pg_track_log_max_addr_space=63,
            pg_track_log_min_msg_size=12,
            pg_track_log_max_msg_size=20,
            pg_track_log_min_page_size=12,
            pg_track_log_max_page_size=30,
        )


#: By type: writes the page of function ``index`` (0: the PF).
PAGES: dict[int, Callable[[Any, AdapterConfig, int, int], None]] = {
    CapType.GENERAL: _general,
    CapType.GENERAL_2: _general_2,
    CapType.ADV_VIRTUALIZATION: _adv_virtualization,
}
