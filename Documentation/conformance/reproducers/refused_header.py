"""A header that is refused, more bytes behind it, and the SET of STOP: it has to fail."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.RESUMING).fileno()
try:
    os.write(data_fd, b"no mtty!" + bytes(16))
except OSError as error:
    print("header:", error.strerror, end=", ")
os.write(data_fd, bytes(device.data_size() - 24))
try:
    device.set_state(DeviceState.STOP)
    print("then", device.state.name, "with a state that nobody saved")
except OSError as error:
    print("then", error.strerror)
