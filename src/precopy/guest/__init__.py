"""Guests: software that works on a VF as a guest's driver would, and checks what the VF did.

``layout``
    where the workload keeps what in its memory
``messages``, ``pace``
    what a message holds and what one that arrives means; how many are due
``bringup``
    the commands that give it its objects
``traffic``
    messages on their way, and their completions
``pages``, ``scribe``
    the memory that it works on: what has to be in it, and the thread that writes it
``share``
    the time that it gets
``workload``
    :class:`WorkloadGuest`: all of these together
"""

from precopy.guest.layout import WorkloadConfig
from precopy.guest.pages import MemoryCheck
from precopy.guest.workload import WorkloadGuest

__all__ = ["MemoryCheck", "WorkloadConfig", "WorkloadGuest"]
