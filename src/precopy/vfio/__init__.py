"""The migration contract of ``linux/vfio.h``, without I/O.

``states``
    every device state, every arc between two of them and the path that joins any pair
``uapi``
    the constants and structures that migration uses, as they cross an ioctl
``device``
    :class:`VfioDevice` and :class:`MigrationFile`: what every backend offers
``guest``
    what a migration needs of the guest that works on a device (imported from there: it uses ``pci``)
``errors``
    an ``OSError`` with the uAPI's errno and a sentence that says what was wrong
"""

from precopy.vfio.device import (
    DeviceIdentity,
    DmaRange,
    MigrationFile,
    PrecopyInfo,
    VfioDevice,
)
from precopy.vfio.errors import refuse
from precopy.vfio.states import DeviceState, MigrationFlags, next_state, path
from precopy.vfio.uapi import Feature, FeatureFlags

__all__ = [
    "VfioDevice",
    "MigrationFile",
    "DeviceState",
    "MigrationFlags",
    "DeviceIdentity",
    "PrecopyInfo",
    "DmaRange",
    "Feature",
    "FeatureFlags",
    "next_state",
    "path",
    "refuse",
]
