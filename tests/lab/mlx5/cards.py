"""Kinds of card that no option of the adapter makes: capability pages with other values."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from precopy.connectx import capability_pages
from precopy.connectx.config import AdapterConfig
from precopy.mlx5_abi.capabilities import AdvVirtualizationCap, GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import CapType
from precopy.mlx5_abi.layout import Field


class _WithTypes(GeneralCap2):
    """With the kinds of objects from 0x40 on: 0x58 are events of PCIe congestion."""

    general_obj_types_127_64 = Field(0x1C0, 0x40)


def _congestion(page: Any) -> None:
    """mlx5_core of Linux 7.3 listens to OBJECT_CHANGE where there are objects of a few other kinds."""
    _WithTypes(page).general_obj_types_127_64 = 1 << 0x58 - 0x40


def _small_messages(page: Any) -> None:
    """A report's message holds 512 pages; little can be tracked."""
    caps = AdvVirtualizationCap(page)
    caps.pg_track_log_max_msg_size = 12
    caps.pg_track_log_max_addr_space = 40
    caps.pg_track_log_max_page_size = 20


def _no_tracking(page: Any) -> None:
    GeneralCap2(page).migration_tracking_state = 0


def _no_migration(page: Any) -> None:
    GeneralCap(page).migration = 0


@contextmanager
def _changed(kind: CapType, change: Callable[[Any], None]) -> Iterator[None]:
    """Capability pages of ``kind`` are changed as they are written."""
    write = capability_pages.PAGES[kind]

    def changed(page: Any, config: AdapterConfig, index: int, vhca_id: int) -> None:
        write(page, config, index, vhca_id)
        change(page)

    capability_pages.PAGES[kind] = changed
    try:
        yield
    finally:
        capability_pages.PAGES[kind] = write


CARDS: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "": nullcontext,
    "tells of objects": lambda: _changed(CapType.GENERAL_2, _congestion),
    "no tracking state": lambda: _changed(CapType.GENERAL_2, _no_tracking),
    "no migration": lambda: _changed(CapType.GENERAL, _no_migration),
    "small messages": lambda: _changed(CapType.ADV_VIRTUALIZATION, _small_messages),
}
