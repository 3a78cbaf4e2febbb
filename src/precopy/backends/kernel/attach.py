"""Opening a device: its own node bound to an iommufd, or its group in a container.

Sources: drivers/vfio/device_cdev.c, group.c, container.c and drivers/iommu/iommufd/vfio_compat.c
(Linux 7.3).
"""

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from precopy.backends.kernel.discovery import Found
from precopy.backends.kernel.ioctls import (
    BIND_IOMMUFD,
    GROUP_STATUS,
    NAMES,
    VFIO_CHECK_EXTENSION,
    VFIO_DEVICE_BIND_IOMMUFD,
    VFIO_GET_API_VERSION,
    VFIO_GROUP_FLAGS_VIABLE,
    VFIO_GROUP_GET_DEVICE_FD,
    VFIO_GROUP_GET_STATUS,
    VFIO_GROUP_SET_CONTAINER,
    VFIO_NOIOMMU_IOMMU,
    VFIO_SET_IOMMU,
    VFIO_TYPE1_IOMMU,
    VFIO_TYPE1V2_IOMMU,
    Kernel,
    close_all,
)
from precopy.vfio.errors import refuse

IOMMUFD = "/dev/iommu"

#: Where a container comes from, best first. An iommufd takes the part of one since Linux 6.2.
CONTAINERS = ("/dev/vfio/vfio", IOMMUFD)

#: IOMMU types that fit, best first: of a device without an IOMMU, and of others.
_TYPES = {True: (VFIO_NOIOMMU_IOMMU,), False: (VFIO_TYPE1V2_IOMMU, VFIO_TYPE1_IOMMU)}
_NO_TYPE = {
    True: "set vfio's parameter enable_unsafe_noiommu_mode",
    False: "load vfio_iommu_type1 or iommufd",
}

#: How the kernel says that there is no such node, or nothing behind it.
_MISSING = (errno.ENOENT, errno.ENXIO, errno.ENODEV)

_HINTS = {
    errno.ENOENT: "it is not there: is VFIO in this kernel?",
    errno.EACCES: "no permission: run as root, or give the node to your user",
    errno.EPERM: "no permission: an unsafe no-IOMMU device needs CAP_SYS_RAWIO",
    errno.EBUSY: "it is in use, or another device of its IOMMU group has a host driver",
}
_BIND_HINTS = _HINTS | {
    # The kernel has no word of its own for a device that is open already.
    errno.EINVAL: "it is in use by another process, or its driver does not let it be opened",
    errno.EBUSY: "it is in use by way of its group, or another device of that has a host driver",
    errno.EACCES: "its PF is bound to vfio-pci, which asks for a VF token",
}


@dataclass(frozen=True, slots=True)
class Attached:
    """``fds``: the device's first, then those that keep it attached. ``node``: what was opened."""

    fds: list[int]
    node: str


def attach(kernel: Kernel, found: Found, way: str | None = None) -> Attached:
    """Open ``found`` by ``way``, "cdev" or "group"; None: by cdev where that can be had.

    Raises OSError with the kernel's errno and one line (without the device's name, which the caller
    has); then nothing is left open.
    """
    fds: list[int] = []
    first = way or ("group" if found.cdev is None and found.group is not None else "cdev")
    try:
        try:
            return _WAYS[first](kernel, found, fds)
        except OSError as error:
            # Without an iommufd the older way may be there.
            missing = error.errno in (*_MISSING, errno.ENOTTY)
            if way is not None or first == "group" or found.group is None or not missing:
                raise
            close_all(kernel, fds)
        return _by_group(kernel, found, fds)
    except BaseException:
        close_all(kernel, fds)
        raise


def _open(kernel: Kernel, path: str) -> int:
    try:
        return kernel.open(path)
    except OSError as error:
        code = error.errno or errno.EIO
        raise refuse(code, f"{path}: {_HINTS.get(code, 'can not be opened')}") from error


def _ask(
    kernel: Kernel,
    fd: int,
    request: int,
    argument: int | bytearray,
    hints: Mapping[int, str] = _HINTS,
) -> int:
    """One ioctl."""
    try:
        return kernel.ioctl(fd, request, argument)
    except OSError as error:
        code = error.errno or errno.EIO
        raise refuse(
            code, f"{NAMES[request]}: {hints.get(code, 'failed in the kernel')}"
        ) from error


def _node(node: str | None, where: str) -> str:
    if node is None:
        raise refuse(
            errno.ENOENT,
            f"{where} has no node for it: the kernel makes none, or this /dev is not its own",
        )
    return node


def _by_cdev(kernel: Kernel, found: Found, fds: list[int]) -> Attached:
    node = _node(found.cdev, "/dev/vfio/devices")
    fds.append(_open(kernel, node))
    fds.append(_open(kernel, IOMMUFD))
    data = bytearray(BIND_IOMMUFD.pack(BIND_IOMMUFD.size, 0, fds[1], 0))
    _ask(kernel, fds[0], VFIO_DEVICE_BIND_IOMMUFD, data, _BIND_HINTS)
    return Attached(fds, node)


def _container(kernel: Kernel, found: Found, fds: list[int]) -> int:
    """Open a container for ``found``, first of ``fds``; the IOMMU type that it is to be set to."""
    seen = ""
    for path in CONTAINERS:
        try:
            container = _open(kernel, path)
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            continue
        fds.append(container)
        seen = f"{seen} and {path}" if seen else path
        version = _ask(kernel, container, VFIO_GET_API_VERSION, 0)
        if version != 0:
            raise refuse(errno.EINVAL, f"this kernel's VFIO has API version {version}")
        for kind in _TYPES[found.noiommu]:
            if _ask(kernel, container, VFIO_CHECK_EXTENSION, kind):
                return kind
        close_all(kernel, fds)
    if not seen:
        paths = " nor ".join(CONTAINERS)
        raise refuse(errno.ENOENT, f"neither {paths} is there: is VFIO in this kernel?")
    raise refuse(errno.ENOTTY, f"{seen} offers no IOMMU type that fits: {_NO_TYPE[found.noiommu]}")


def _by_group(kernel: Kernel, found: Found, fds: list[int]) -> Attached:
    node = _node(found.group, "/dev/vfio")
    kind = _container(kernel, found, fds)
    container = fds[0]
    group = _open(kernel, node)
    fds.append(group)
    status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    _ask(kernel, group, VFIO_GROUP_GET_STATUS, status)
    if not GROUP_STATUS.unpack(status)[1] & VFIO_GROUP_FLAGS_VIABLE:
        raise refuse(errno.EBUSY, "another device of its IOMMU group is bound to a host driver")
    number = bytearray(container.to_bytes(4, "little"))
    _ask(kernel, group, VFIO_GROUP_SET_CONTAINER, number)
    _ask(kernel, container, VFIO_SET_IOMMU, kind)
    bare = bytearray(found.sysfs.name.encode() + b"\0")
    fds.insert(0, _ask(kernel, group, VFIO_GROUP_GET_DEVICE_FD, bare))
    return Attached(fds, node)


_WAYS: dict[str, Callable[[Kernel, Found, list[int]], Attached]] = {
    "cdev": _by_cdev,
    "group": _by_group,
}
