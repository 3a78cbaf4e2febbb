"""General objects: what CREATE, MODIFY, QUERY and DESTROY_GENERAL_OBJECT carry; the page tracker is one.

Source: ``page_track`` and what is around it in include/linux/mlx5/mlx5_ifc.h, ``mlx5_eqe_obj_change``
in device.h (Linux 7.3). The headers of the four commands stand in ``commands``.
"""

import enum
import struct
from collections.abc import Sequence

from precopy.mlx5_abi.layout import Field, Layout
from precopy.mlx5_abi.wqe import EQE_DATA


class ObjectType(enum.IntEnum):
    """``obj_type``."""

    PAGE_TRACK = 0x46


class PageTrackState(enum.IntEnum):
    """``page_track.state``; also the immediate of a report's message, shifted by IMMEDIATE_SHIFT."""

    #: Written pages are marked. In an immediate: the report is complete.
    TRACKING = 0
    #: A report is under way. In an immediate: more follows.
    REPORTING = 1
    #: What was marked is lost.
    ERROR = 2


IMMEDIATE_SHIFT = 28

#: ``track_type``: pages that the function writes.
TRACK_WRITES = 1

#: ``modify_field_select``: the state, and the range to report.
SELECT_STATE, SELECT_RANGE = 1, 2


class PageTrack(Layout):
    """``page_track``: a tracker. ``num_ranges`` ranges follow (see :data:`RANGE`)."""

    SIZE = 48
    modify_field_select = Field(0x00, 0x40)
    #: Whose writes are tracked.
    vhca_id = Field(0x50, 0x10)
    state = Field(0x80, 4)
    track_type = Field(0x84, 4)
    #: The lengths of all ranges together, rounded up to a power of two.
    log_addr_space_size = Field(0x88, 8)
    log_page_size = Field(0x93, 5)
    #: The most bytes of a report's message.
    log_msg_size = Field(0x9B, 5)
    #: The QP that reports are sent from.
    reporting_qpn = Field(0xA8, 0x18)
    num_ranges = Field(0xD8, 8)
    #: The range to report.
    range_start_address = Field(0x100, 0x40)
    length = Field(0x140, 0x40)


#: ``page_track_range``: start address, length.
RANGE = struct.Struct(">QQ")

#: ``page_track_report_entry``: the address of a page; high and low half make one be64.
ENTRY_BYTES = 8
ENTRY_DTYPE = ">u8"

#: Data of an OBJECT_CHANGE event: be16 type and be32 number of the object.
EQE_OBJECT_ID = EQE_DATA + 4
OBJECT_CHANGE = struct.Struct(">2xHI")


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """``page_track_range`` for each (start, length)."""
    return b"".join(RANGE.pack(*each) for each in ranges)
