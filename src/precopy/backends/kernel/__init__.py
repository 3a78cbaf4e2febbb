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
from precopy.backends.kernel.discovery import find, identity, is_kernel_name, list_found, parse
from precopy.backends.kernel.ioctls import Kernel, SystemCalls

__all__ = ["KernelVfioDevice", "is_kernel_name", "list_devices", "open_kernel_device"]


def list_devices(root: Path = Path("/")) -> list[str]:
    """Names of the devices that a VFIO driver has, also of those that can't be opened."""
    return [found.name for found in list_found(root)]


def open_kernel_device(
    name: str, *, root: Path = Path("/"), kernel: Kernel | None = None
) -> KernelVfioDevice:
    """Open and attach ``name``.

    DeviceNameError for an option that nobody understands; OSError says what is in the way, with
    ``name`` as its filename.
    """
    system = kernel or SystemCalls()
    asked = parse(name)
    try:
        found = find(asked, root)
        attached = attach(system, found, asked.attach)
    except OSError as error:
        error.filename = name
        raise
    return KernelVfioDevice(system, attached.fds, name, identity(found, attached.node))
