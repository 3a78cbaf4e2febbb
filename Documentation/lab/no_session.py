"""A VF that stays in PRE_COPY without a saving session: the next question is a fault in the kernel."""

import sys

from precopy.backends import open_device
from precopy.connectx.controls import Remote
from precopy.mlx5_abi.commands import Opcode
from precopy.vfio.states import DeviceState

device = open_device("vfio:0000:00:01.0").device
saving = device.set_state(DeviceState.PRE_COPY)
Remote().plan(Opcode.SAVE_VHCA_STATE, 1, 0x1)
try:
    device.set_state(DeviceState.RUNNING)
except OSError as error:
    print(error)
print("state:", device.state.name, flush=True)
if "info" in sys.argv:
    print(saving.precopy_info())
else:
    print(device.set_state(DeviceState[sys.argv[1] if len(sys.argv) > 1 else "RUNNING"]))
