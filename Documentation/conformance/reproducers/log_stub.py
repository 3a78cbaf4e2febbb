"""Calls of DMA logging that have to fail: a REPORT of no log, a second START, an empty range."""

import os
import sys

from precopy.backends import open_device
from precopy.vfio.device import DmaRange

PAGE = 4096
device = open_device(sys.argv[1]).device


def tell(what, call):
    try:
        call()
        print(what, "succeeds")
    except OSError as error:
        print(what, "fails:", os.strerror(error.errno))


bitmap = memoryview(bytearray(8))
tell("REPORT without a log", lambda: device.log_report(0, PAGE, PAGE, bitmap))
device.log_start([DmaRange(0, PAGE)], PAGE)
tell("a second START", lambda: device.log_start([DmaRange(0, PAGE)], PAGE))
device.log_stop()
tell("START of an empty range", lambda: device.log_start([DmaRange(0, 0)], PAGE))
