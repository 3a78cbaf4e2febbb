"""What GET_PRECOPY_INFO announces can be read; a user takes ENOMSG for nothing left until later."""

import errno
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

file = open_device(sys.argv[1]).device.set_state(DeviceState.PRE_COPY)
room = bytearray(1 << 16)
while (info := file.precopy_info()).initial_bytes:
    file.readinto(room)
print("dirty_bytes:", info.dirty_bytes, end=", ")
try:
    print("read:", file.readinto(room) > 0)
except OSError as error:
    print("read:", errno.errorcode[error.errno])
