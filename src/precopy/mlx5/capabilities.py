"""What the adapter lets the migration driver do, asked once when the driver takes the VF.

The queries and their order are those of mlx5vf_cmd_set_migratable (drivers/vfio/pci/mlx5/cmd.c).
"""

from dataclasses import dataclass

from precopy.mlx5.commands import Commands
from precopy.mlx5_abi.capabilities import AdvVirtualizationCap, GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import CapType
from precopy.mlx5_abi.general_object import ENTRY_BYTES


@dataclass(frozen=True, slots=True)
class PageTrackLimits:
    """What PAGE_TRACK objects may be; sizes in bytes, as powers of two."""

    max_ranges: int
    log_min_addr_space: int
    log_max_addr_space: int
    log_max_msg_size: int
    log_min_page_size: int
    log_max_page_size: int

    @property
    def usable(self) -> bool:
        return (
            self.max_ranges > 0
            and 1 << self.log_max_msg_size >= ENTRY_BYTES
            and self.log_min_page_size <= self.log_max_page_size
            and self.log_min_addr_space <= self.log_max_addr_space
        )


@dataclass(frozen=True, slots=True)
class Capabilities:
    """``migratable`` needs all of: migration, multi_load, tracking_state, and the VF's own consent."""

    migratable: bool
    #: Why it is not.
    reason: str = ""
    vhca_id: int = 0
    #: What the page tracker can do; None: there is none.
    page_track: PageTrackLimits | None = None
    chunk_mode: bool = False
    migration_state: bool = False
    log_max_qp: int = 0
    #: The PF's own: largest message, and format of completions.
    log_max_msg: int = 0
    cqe_version: int = 0


def query(commands: Commands, vf_index: int) -> Capabilities:
    """Ask for VF ``vf_index`` (from 0). OSError as :class:`Commands` raises it."""
    general = GeneralCap(commands.query_cap(CapType.GENERAL))
    if not general.migration:
        return Capabilities(False, "the adapter's firmware can't migrate (migration)")
    general2 = GeneralCap2(commands.query_cap(CapType.GENERAL_2))
    for name in ("migration_multi_load", "migration_tracking_state"):
        if not getattr(general2, name):
            return Capabilities(False, f"the adapter's firmware is too old for PRE_COPY ({name})")
    function = vf_index + 1
    own2 = GeneralCap2(commands.query_cap(CapType.GENERAL_2, maximum=True, function=function))
    if not own2.migratable:
        return Capabilities(False, f"VF {vf_index} is not migratable (set it on the PF's port)")
    own = GeneralCap(commands.query_cap(CapType.GENERAL, function=function))
    return Capabilities(
        True,
        vhca_id=own.vhca_id,
        page_track=_page_track(commands) if general.adv_virtualization else None,
        chunk_mode=bool(general2.migration_in_chunks),
        migration_state=bool(general2.migration_state),
        log_max_qp=own.log_max_qp,
        log_max_msg=general.log_max_msg,
        cqe_version=general.cqe_version,
    )


def _page_track(commands: Commands) -> PageTrackLimits | None:
    """None, too, for limits that nothing could keep."""
    page = AdvVirtualizationCap(commands.query_cap(CapType.ADV_VIRTUALIZATION))
    limits = PageTrackLimits(
        max_ranges=page.pg_track_max_num_range,
        log_min_addr_space=page.pg_track_log_min_addr_space,
        log_max_addr_space=page.pg_track_log_max_addr_space,
        log_max_msg_size=page.pg_track_log_max_msg_size,
        log_min_page_size=page.pg_track_log_min_page_size,
        log_max_page_size=page.pg_track_log_max_page_size,
    )
    return limits if limits.usable else None
