"""Ways to reach a device, found by its name.

``sim``
    ``sim:mlx5?...``: the software ConnectX in this process
``kernel``
    ``vfio:0000:06:00.2``, an mdev's UUID, a /dev/vfio/devices node: the kernel's drivers
"""

from precopy.backends import sim
from precopy.backends.errors import DeviceNameError
from precopy.vfio.guest import Opened

__all__ = ["DeviceNameError", "open_device"]


def open_device(name: str, *, target: bool = False) -> Opened:
    """Open the device ``name``; ``target``: to be filled by a migration.

    Raises DeviceNameError for a name that nobody understands, OSError where the device can't be
    opened.
    """
    if name.startswith(sim.PREFIX):
        return sim.open_sim(name, target=target)
    from precopy.backends import kernel

    if kernel.is_kernel_name(name):
        return Opened(kernel.open_kernel_device(name))
    raise DeviceNameError(
        f"{name}: no such device; names are sim:mlx5, vfio:0000:06:00.2, an mdev's UUID or"
        " /dev/vfio/devices/vfio0"
    )


def list_devices() -> list[str]:
    """Names of the kernel's VFIO devices that are here."""
    from precopy.backends import kernel

    return kernel.list_devices()
