"""A stream of 41 bytes: the final image will need nearly 4 GiB, and here is its first byte."""

import os
import struct
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

MOST = (1 << 32) - 1
device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.RESUMING).fileno()
size = struct.pack("<QIIQ", 8, 1, 1, MOST)
print("written:", os.write(data_fd, size + struct.pack("<QII", MOST, 0, 0) + b"x"))
