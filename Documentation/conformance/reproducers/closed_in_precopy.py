"""VFIO_MIG_GET_PRECOPY_INFO on a data_fd whose device was closed in PRE_COPY."""

import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
saving = device.set_state(DeviceState.PRE_COPY)
device.close()
print(saving.precopy_info())
