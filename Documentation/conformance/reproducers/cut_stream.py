"""RESUMING is left for STOP: with nothing written, and with half a stream."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.STOP_COPY).fileno()
stream = b"".join(iter(lambda: os.read(data_fd, 1 << 20), b""))
for what, part in (("nothing", b""), ("half", stream[: len(stream) // 2])):
    data_fd = device.set_state(DeviceState.RESUMING).fileno()
    while part:
        part = part[os.write(data_fd, part) :]
    device.set_state(DeviceState.STOP)
    print(f"{what} written, then", device.state.name)
