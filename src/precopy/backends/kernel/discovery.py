"""Which VFIO devices the kernel has, by sysfs, and what a name means."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path

from precopy.vfio.device import DeviceIdentity
from precopy.vfio.errors import refuse

PREFIX = "vfio:"
_NODE = re.compile(r"/dev/vfio/devices/(noiommu-)?vfio\d+")
_BDF = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: The format of a driver's state, where its name is not that of the driver.
_STREAMS = {"mlx5_vfio_pci": "mlx5"}

#: Vendor and device that a sample mdev shows in its config space.
_MDEV_IDS = {"mtty": (0x4348, 0x3253)}


@dataclass(frozen=True, slots=True)
class Found:
    """A device: ``cdev`` is its own node, ``group`` its group's, each None where it has none."""

    name: str
    sysfs: Path
    driver: str
    cdev: str | None
    group: str | None
    noiommu: bool = False


def is_kernel_name(name: str) -> bool:
    """Whether ``name`` is one of a kernel's device."""
    bare = name.removeprefix(PREFIX).lower()
    return bool(_NODE.fullmatch(name) or _BDF.fullmatch(bare) or _UUID.fullmatch(bare))


def _link_name(path: Path) -> str:
    return path.resolve().name if path.exists() else ""


def _describe(sysfs: Path, root: Path) -> Found:
    real = sysfs.resolve()
    nodes = sorted(each.name for each in (real / "vfio-dev").glob("*")) if real.exists() else []
    cdev = None
    for node in nodes:
        for path in (f"dev/vfio/devices/{node}", f"dev/vfio/devices/noiommu-{node}"):
            if (root / path).exists():
                cdev = f"/{path}"
    number = _link_name(real / "iommu_group")
    group, noiommu = None, False
    for path in (f"dev/vfio/{number}", f"dev/vfio/noiommu-{number}"):
        if number and (root / path).exists():
            group, noiommu = f"/{path}", "noiommu-" in path
    noiommu = noiommu or bool(cdev and "noiommu-" in cdev)
    driver = _link_name(real / "driver")
    if driver == "vfio_mdev" or (real / "mdev_type").exists():
        # An mdev's own driver says little; the parent's names the device.
        driver = _link_name(real / "mdev_type" / "../..") or driver
    name = real.name if _UUID.fullmatch(real.name) else f"{PREFIX}{real.name}"
    return Found(name, real, driver, cdev, group, noiommu)


def list_found(root: Path = Path("/")) -> list[Found]:
    """Every device that a VFIO driver has."""
    devices = (root / "sys/class/vfio-dev").glob("*")
    found = {each.sysfs: each for each in (_describe(dev / "device", root) for dev in devices)}
    for mdev in (root / "sys/bus/mdev/devices").glob("*"):
        described = _describe(mdev, root)
        found.setdefault(described.sysfs, described)
    return sorted(found.values(), key=lambda each: each.name)


def find(name: str, root: Path = Path("/")) -> Found:
    """The device that ``name`` means. ENODEV says why there is none, and what to do."""
    if _NODE.fullmatch(name):
        vfio = Path(name).name.removeprefix("noiommu-")
        sysfs = root / "sys/class/vfio-dev" / vfio / "device"
        if not sysfs.exists():
            raise refuse(errno.ENODEV, f"{name}: no such VFIO device")
        return _describe(sysfs, root)
    bare = name.removeprefix(PREFIX).lower()
    bus = "mdev" if _UUID.fullmatch(bare) else "pci"
    sysfs = root / "sys/bus" / bus / "devices" / bare
    if not sysfs.exists():
        raise refuse(errno.ENODEV, f"{name}: no such {bus} device on this machine")
    found = _describe(sysfs, root)
    if found.cdev is None and found.group is None:
        bound = f"bound to {found.driver}" if found.driver else "bound to no driver"
        raise refuse(
            errno.ENODEV,
            f"{name} is {bound}, not to a VFIO driver: write its driver's name (mlx5_vfio_pci,"
            " vfio-pci, ...) into driver_override and the device's name into drivers_probe",
        )
    return found


def _hex(path: Path) -> int:
    try:
        return int(path.read_text(), 16)
    except (OSError, ValueError):
        return 0


def identity(found: Found) -> DeviceIdentity:
    """Who the device is, by sysfs."""
    vendor, device = _hex(found.sysfs / "vendor"), _hex(found.sysfs / "device")
    if not vendor:
        vendor, device = _MDEV_IDS.get(found.driver, (0, 0))
    return DeviceIdentity(
        vendor_id=vendor,
        device_id=device,
        driver=found.driver,
        firmware="",
        serial="",
        stream=_STREAMS.get(found.driver, found.driver),
        details={"node": found.cdev or found.group or ""},
    )
