"""Opening a device: its own node bound to an iommufd, or its group in a container."""

import contextlib
import errno
import os

from precopy.backends.kernel.discovery import Found
from precopy.backends.kernel.ioctls import (
    BIND_IOMMUFD,
    GROUP_STATUS,
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
    call,
)
from precopy.vfio.errors import refuse

_HINTS = {
    errno.ENOENT: "it is not there: is VFIO in this kernel?",
    errno.EACCES: "no permission: run as root, or give the node to your user",
    errno.EPERM: "no permission: an unsafe no-IOMMU device needs CAP_SYS_RAWIO",
    errno.EBUSY: "it is in use by another process",
}


def _open(kernel: Kernel, path: str, device: str) -> int:
    try:
        return kernel.open(path)
    except OSError as error:
        code = error.errno or errno.EIO
        raise refuse(code, f"{device}: {path}: {_HINTS.get(code, os.strerror(code))}") from error


def attach(kernel: Kernel, found: Found) -> list[int]:
    """File descriptors: the device's first, then those that keep it attached. OSError."""
    fds: list[int] = []
    try:
        if found.cdev is not None:
            try:
                return _by_cdev(kernel, found, found.cdev, fds)
            except OSError as error:
                # Without iommufd the older way may be there.
                if found.group is None or error.errno not in (errno.ENOENT, errno.ENOTTY):
                    raise
                _close(kernel, fds)
        assert found.group is not None
        return _by_group(kernel, found, found.group, fds)
    except BaseException:
        _close(kernel, fds)
        raise


def _close(kernel: Kernel, fds: list[int]) -> None:
    while fds:
        with contextlib.suppress(OSError):
            kernel.close(fds.pop())


def _by_cdev(kernel: Kernel, found: Found, node: str, fds: list[int]) -> list[int]:
    fds.append(_open(kernel, node, found.name))
    fds.append(_open(kernel, "/dev/iommu", found.name))
    data = bytearray(BIND_IOMMUFD.pack(BIND_IOMMUFD.size, 0, fds[1], 0))
    call(kernel, fds[0], VFIO_DEVICE_BIND_IOMMUFD, data, "VFIO_DEVICE_BIND_IOMMUFD", found.name)
    return fds


def _by_group(kernel: Kernel, found: Found, node: str, fds: list[int]) -> list[int]:
    name = found.name
    fds.append(_open(kernel, "/dev/vfio/vfio", name))
    container = fds[0]
    if call(kernel, container, VFIO_GET_API_VERSION, 0, "VFIO_GET_API_VERSION", name) != 0:
        raise refuse(errno.EINVAL, f"{name}: this kernel's VFIO has another API version")
    fds.append(_open(kernel, node, name))
    group = fds[1]
    status = bytearray(GROUP_STATUS.pack(GROUP_STATUS.size, 0))
    call(kernel, group, VFIO_GROUP_GET_STATUS, status, "VFIO_GROUP_GET_STATUS", name)
    if not GROUP_STATUS.unpack(status)[1] & VFIO_GROUP_FLAGS_VIABLE:
        raise refuse(
            errno.EBUSY, f"{name}: another device of its IOMMU group is bound to a host driver"
        )
    number = bytearray(container.to_bytes(4, "little"))
    call(kernel, group, VFIO_GROUP_SET_CONTAINER, number, "VFIO_GROUP_SET_CONTAINER", name)
    kinds = (VFIO_NOIOMMU_IOMMU,) if found.noiommu else (VFIO_TYPE1V2_IOMMU, VFIO_TYPE1_IOMMU)
    for kind in kinds:
        if call(kernel, container, VFIO_CHECK_EXTENSION, kind, "VFIO_CHECK_EXTENSION", name):
            call(kernel, container, VFIO_SET_IOMMU, kind, "VFIO_SET_IOMMU", name)
            break
    else:
        raise refuse(errno.ENOTTY, f"{name}: the kernel offers no IOMMU type that fits")
    bare = bytearray(found.sysfs.name.encode() + b"\0")
    what = "VFIO_GROUP_GET_DEVICE_FD"
    fds.insert(0, call(kernel, group, VFIO_GROUP_GET_DEVICE_FD, bare, what, name))
    return fds
