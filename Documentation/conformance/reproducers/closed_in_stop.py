"""A device that is closed in STOP, and opened again: it has to be RUNNING."""

import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

with open_device(sys.argv[1]).device as device:
    device.set_state(DeviceState.STOP)
with open_device(sys.argv[1]).device as device:
    print("opened again:", device.state.name)
