"""Ways to reach a device, found by its name.

``sim``
    ``sim:mlx5?...``: the software ConnectX in this process
``kernel``
    ``vfio:0000:06:00.2``, an mdev's UUID, a /dev/vfio/devices node: the kernel's drivers; each
    with ``?attach=cdev`` or ``?attach=group`` behind it where that matters
``vfio_user``
    ``vfio-user:/path``: a device that another process serves on a unix socket
``vfio``, ``vfio_guest``
    a kernel's device, opened with the guest that its name asks for
"""

from precopy.backends.errors import DeviceNameError
from precopy.backends.kernel import is_kernel_name
from precopy.backends.kernel import list_devices as list_kernel_devices
from precopy.vfio.guest import Opened

__all__ = ["DeviceNameError", "list_devices", "open_device"]


def open_device(name: str, *, target: bool = False, served: bool = False) -> Opened:
    """Open the device ``name``; ``target``: to be filled by a migration; ``served``: to be offered to
    others, with its PCI face if it has one and without a guest.

    Raises DeviceNameError for a name that nobody understands, OSError where the device can't be
    opened.
    """
    # Imported when wanted: each brings a good part of the package with it.
    if name.startswith("sim:"):
        from precopy.backends import sim

        return sim.open_sim(name, target=target, served=served)
    if name.startswith("vfio-user:"):
        from precopy.backends.vfio_user import open_vfio_user

        return open_vfio_user(name, target=target or served)
    if is_kernel_name(name):
        from precopy.backends import vfio

        return vfio.open_vfio(name, target=target or served)
    raise DeviceNameError(
        f"{name}: no such device; names are sim:mlx5, vfio-user:/path, vfio:0000:06:00.2, an mdev's"
        " UUID or /dev/vfio/devices/vfio0"
    )


def list_devices() -> list[str]:
    """Names of the kernel's VFIO devices that are here, also of those that can't be opened."""
    return list_kernel_devices()
