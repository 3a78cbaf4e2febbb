"""The kernel's VFIO devices.

``discovery``
    which there are, and what a name means
``attach``
    cdev and iommufd, or group and container
``device``, ``file``
    the contract, each call an ioctl
``ioctls``
    numbers, structures and system calls
"""

from pathlib import Path

from precopy.backends.kernel.attach import attach
from precopy.backends.kernel.device import KernelVfioDevice
from precopy.backends.kernel.discovery import find, identity, is_kernel_name, list_found
from precopy.backends.kernel.ioctls import Kernel, SystemCalls

__all__ = ["KernelVfioDevice", "is_kernel_name", "list_devices", "open_kernel_device"]


def list_devices(root: Path = Path("/")) -> list[str]:
    """Names of the devices that are here."""
    return [found.name for found in list_found(root)]


def open_kernel_device(
    name: str, *, root: Path = Path("/"), kernel: Kernel | None = None
) -> KernelVfioDevice:
    """Open and attach ``name``. OSError says what is in the way."""
    system = kernel or SystemCalls()
    found = find(name, root)
    return KernelVfioDevice(system, attach(system, found), name, identity(found))
