"""What the adapter lets the migration driver do, asked once when the driver takes the VF.

The queries and their order are those of mlx5vf_cmd_set_migratable (drivers/vfio/pci/mlx5/cmd.c).
"""

from dataclasses import dataclass

from precopy.mlx5.commands import Commands
from precopy.mlx5_abi.capabilities import GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import CapType


@dataclass(frozen=True, slots=True)
class Capabilities:
    """``migratable`` needs all of: migration, multi_load, tracking_state, and the VF's own consent."""

    migratable: bool
    #: Why it is not.
    reason: str = ""
    vhca_id: int = 0
    adv_virtualization: bool = False
    chunk_mode: bool = False
    migration_state: bool = False
    log_max_qp: int = 0


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
        adv_virtualization=bool(general.adv_virtualization),
        chunk_mode=bool(general2.migration_in_chunks),
        migration_state=bool(general2.migration_state),
        log_max_qp=own.log_max_qp,
    )
