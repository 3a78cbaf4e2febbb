"""A log of a range of no bytes."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.device import DmaRange

device = open_device(sys.argv[1]).device
try:
    device.log_start([DmaRange(0, 0)], 4096)
    print("an empty range: taken")
except OSError as error:
    print("an empty range:", os.strerror(error.errno))
