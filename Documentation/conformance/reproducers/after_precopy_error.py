"""The first save of a session fails in a way that lets the device go on; then back to RUNNING."""

import os
import sys

from precopy.backends import open_device
from precopy.connectx.controls import Remote
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.status import Status
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
Remote().plan(Opcode.SAVE_VHCA_STATE, 1, Status.BAD_RES_STATE)
data_fd = device.set_state(DeviceState.PRE_COPY).fileno()
try:
    while os.read(data_fd, 1 << 20):
        pass
except OSError as error:
    print("read:", error.strerror, end=", ")
try:
    device.set_state(DeviceState.RUNNING)
    print("then", device.state.name)
except OSError as error:
    print("back to RUNNING:", os.strerror(error.errno), "in", device.state.name)
