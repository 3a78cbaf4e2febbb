"""A read into a buffer whose second page is not there fails: nothing of the stream may be lost."""

import ctypes
import mmap
import os
import sys

from precopy.backends import open_device
from precopy.vfio.states import DeviceState

PAGE = mmap.PAGESIZE
device = open_device(sys.argv[1]).device
libc = ctypes.CDLL(None, use_errno=True)
buffer = mmap.mmap(-1, 2 * PAGE)
start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
libc.mprotect(ctypes.c_void_p(start + PAGE), PAGE, 0)


def length(faults):
    data_fd, total = device.set_state(DeviceState.STOP_COPY).fileno(), 0
    # The record of 24 bytes is there before the image is, which begins with 16 of its own.
    while count := len(os.read(data_fd, {0: 24, 24: 40}.get(total, 1 << 20))):
        total += count
        if total >= 64 and faults:
            faults -= 1
            libc.read(data_fd, ctypes.c_void_p(start), 2 * PAGE)
            print("read:", os.strerror(ctypes.get_errno()), end=", ")
    device.set_state(DeviceState.STOP)
    return total


print("bytes lost:", length(faults=0) - length(faults=1))
