"""A state of which a bit was flipped on its way."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
stream = bytearray(os.read(device.set_state(DeviceState.STOP_COPY).fileno(), 4096))
stream[-1] ^= 0x80
os.write(device.set_state(DeviceState.RESUMING).fileno(), stream)
device.set_state(DeviceState.STOP)
loaded = os.read(device.set_state(DeviceState.STOP_COPY).fileno(), 4096)
print("loaded, with the flipped bit:", loaded == stream)
