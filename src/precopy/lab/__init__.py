"""The lab: a real Linux kernel with real VFIO drivers, as a process (User-Mode Linux).

``source``, ``build``
    the kernel: Debian's linux-source, configured, compiled, cached
``machine``
    a running kernel and the command in it; two of them, linked
``link``
    the network between two: of one process, or of two that meet at a socket
``namespace``, ``init``
    programs that stand alone: the read-only file system outside, the first process inside
"""

from precopy.lab.errors import LabError
from precopy.lab.link import Link, meet
from precopy.lab.machine import MTTY_UUIDS, Job, Machine, Result, run, run_linked

__all__ = [
    "MTTY_UUIDS",
    "Job",
    "LabError",
    "Link",
    "Machine",
    "Result",
    "meet",
    "run",
    "run_linked",
]
