"""Guests: software that works on a VF as a guest's driver would, and checks what the VF did.

``layout``
    where the workload keeps what in its memory
``messages``, ``pace``
    what a message holds and what one that arrives means; how many are due
``bringup``
    the commands that give it its objects
``workload``
    :class:`WorkloadGuest`: messages, their checks and counts
"""

from precopy.guest.layout import WorkloadConfig
from precopy.guest.workload import WorkloadGuest

__all__ = ["WorkloadConfig", "WorkloadGuest"]
