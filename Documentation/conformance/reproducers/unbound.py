"""A write to a data_fd whose device was closed, and whose driver is gone."""

import os
import sys
from pathlib import Path

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

address = sys.argv[1].removeprefix("vfio:")
device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.RESUMING).fileno()
device.close()
Path("/sys/bus/pci/devices", address, "driver/unbind").write_text(address)
print("written:", os.write(data_fd, b"x"))
