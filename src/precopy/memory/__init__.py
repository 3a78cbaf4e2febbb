"""Who wrote which page of guest memory, on the CPU's side.

``tracker``
    the interface, and the choice of what this machine has
``userfault``
    write protection that the kernel lifts by itself (Linux 6.7)
``softdirty``
    soft-dirty bits, where the kernel was built with them and writers can be held still
``checksums``
    a checksum of every page: needs nothing of the kernel

What devices write is told by their own DMA logs: they have a mapping of their own
(``Region.device_view``).
"""

from precopy.memory.tracker import KINDS, WriteTracker, tracker_for

__all__ = ["WriteTracker", "tracker_for", "KINDS"]
