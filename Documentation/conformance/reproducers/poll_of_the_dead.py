"""poll of a data_fd at its temporary end, and of one whose session is over."""

import os
import select
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

device = open_device(sys.argv[1]).device
data_fd = device.set_state(DeviceState.PRE_COPY).fileno()
poll = select.poll()
poll.register(data_fd, select.POLLIN | select.POLLRDHUP)
os.read(data_fd, 4096)
at_end = bool(poll.poll(0))
device.set_state(DeviceState.RUNNING)
hangup = any(events & select.POLLRDHUP for _, events in poll.poll(0))
print(f"readable at the temporary end: {at_end}, RDHUP when the session is over: {hangup}")
