"""The capability pages that QUERY_HCA_CAP answers: what migration and its guests look at.

Offsets: ``cmd_hca_cap``, ``cmd_hca_cap_2`` and ``adv_virtualization_cap`` of mlx5_ifc.h (Linux 7.3).
"""

from precopy.mlx5_abi.layout import Field, Layout

#: A capability page.
PAGE_BYTES = 4096


class GeneralCap(Layout):
    """``cmd_hca_cap``, type 0x0."""

    SIZE = PAGE_BYTES
    hca_cap_2 = Field(0x20, 1)
    vhca_id = Field(0x30, 0x10)
    log_max_qp_sz = Field(0x88, 8)
    log_max_qp = Field(0x9B, 5)
    log_max_cq_sz = Field(0xC8, 8)
    log_max_cq = Field(0xDB, 5)
    log_max_eq_sz = Field(0xE0, 8)
    log_max_mkey = Field(0xEA, 6)
    log_max_eq = Field(0xFC, 4)
    port_type = Field(0x1B6, 2)
    log_max_msg = Field(0x1C3, 5)
    cqe_version = Field(0x1FC, 4)
    log_max_pd = Field(0x32B, 5)
    #: Ticks of the initialization segment's timer; 0: it is no clock.
    device_frequency_khz = Field(0x4E0, 0x20)
    adv_virtualization = Field(0x579, 1)
    migration = Field(0x68D, 1)


class GeneralCap2(Layout):
    """``cmd_hca_cap_2``, type 0x20."""

    SIZE = PAGE_BYTES
    migratable = Field(0x80, 1)
    migration_multi_load = Field(0xC8, 1)
    migration_tracking_state = Field(0xC9, 1)
    migration_in_chunks = Field(0xD0, 1)
    migration_state = Field(0xD9, 1)


class AdvVirtualizationCap(Layout):
    """``adv_virtualization_cap``, type 0x26: what the page tracker can do."""

    SIZE = PAGE_BYTES
    pg_track_log_max_num = Field(0x03, 5)
    pg_track_max_num_range = Field(0x08, 8)
    pg_track_log_min_addr_space = Field(0x10, 8)
    pg_track_log_max_addr_space = Field(0x18, 8)
    pg_track_log_min_msg_size = Field(0x23, 5)
    pg_track_log_max_msg_size = Field(0x2B, 5)
    pg_track_log_min_page_size = Field(0x33, 5)
    pg_track_log_max_page_size = Field(0x3B, 5)
