"""A stream that ends with a record of a firmware image of 0 bytes."""

import os
import struct
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.RESUMING).fileno()
print("written:", os.write(data_fd, struct.pack("<QII", 0, 0, 0)), "bytes", end=", ")
device.set_state(DeviceState.STOP)
print("then", device.state.name)
