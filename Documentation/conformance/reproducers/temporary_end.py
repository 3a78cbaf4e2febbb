"""A read at the temporary end of PRE_COPY: ENOMSG says so, 0 would say that the stream is over."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.PRE_COPY).fileno()
try:
    while count := len(os.read(data_fd, 4096)):
        print(f"read: {count} bytes", end=", ")
    print("then 0 in", device.state.name)
except OSError as error:
    print("then", error.strerror)
