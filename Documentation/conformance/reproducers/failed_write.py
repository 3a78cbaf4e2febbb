"""RESUMING is left for STOP after a write that failed."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.RESUMING).fileno()
try:
    os.write(data_fd, b"\xff" * 16)
except OSError as error:
    print("write:", error.strerror, end=", ")
device.set_state(DeviceState.STOP)
print("then", device.state.name)
