"""VFIO_MIG_GET_PRECOPY_INFO on a structure that is not cleared: both counts are outputs."""

import fcntl
import struct
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

VFIO_MIG_GET_PRECOPY_INFO = ord(";") << 8 | 100 + 21

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.PRE_COPY).fileno()
info = bytearray(struct.pack("=IIQQ", 24, 0, 0xA5A5, 0xA5A5))
fcntl.ioctl(data_fd, VFIO_MIG_GET_PRECOPY_INFO, info)
_, _, initial_bytes, dirty_bytes = struct.unpack("=IIQQ", info)
print(
    "initial_bytes above 0:",
    initial_bytes > 0,
    f"and dirty_bytes, which has to be 0: {dirty_bytes:#x}",
)
