"""Which VFIO devices the kernel has, by sysfs, and what a name means."""

import errno
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

from precopy.backends.errors import DeviceNameError
from precopy.vfio.device import DeviceIdentity
from precopy.vfio.errors import refuse

PREFIX = "vfio:"
_NODE = re.compile(r"/dev/vfio/devices/(noiommu-)?vfio\d+")
_BDF = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

#: What may stand behind ``?`` in a name, and the values that it takes.
OPTIONS: dict[str, tuple[str, ...]] = {"attach": ("cdev", "group")}

#: The format of a driver's state (``precopy inspect --formats``), where its name is not that of the
#: driver. Drivers as sysfs names them, Linux 7.3.4.
_STREAMS = {
    "hisi_acc_vfio_pci": "hisi_acc",
    "mlx5_vfio_pci": "mlx5",
    "pds_vfio_pci": "pds",
    "qat_vfio_pci": "qat",
    "virtio_vfio_pci": "virtio",
    "xe-vfio-pci": "xe",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A device's name, taken apart. ``attach``: the way in, None where any will do."""

    device: str
    attach: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A device: ``cdev`` is its own node, ``group`` its group's, each None where it has none.

    ``vfio``: whether a VFIO driver has it (a group may have its node for the sake of another
    device). ``kind`` is the type of an mdev, else empty.
    """

    name: str
    sysfs: Path
    driver: str
    cdev: str | None
    group: str | None
    noiommu: bool
    vfio: bool
    kind: str = ""


def is_kernel_name(name: str) -> bool:
    """Whether ``name`` is one of a kernel's device, whatever its options."""
    device = name.partition("?")[0]
    bare = device.removeprefix(PREFIX).lower()
    return bool(_NODE.fullmatch(device) or _BDF.fullmatch(bare) or _UUID.fullmatch(bare))


def parse(name: str) -> Name:
    """Take ``name`` apart. DeviceNameError says which option is wrong."""
    device, _, query = name.partition("?")
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise DeviceNameError(f"{name}: {error}") from error
    for option, value in given.items():
        if option not in OPTIONS:
            raise DeviceNameError(
                f"{name}: unknown option {option!r}; there is {', '.join(OPTIONS)}"
            )
        if value not in OPTIONS[option]:
            choices = " or ".join(OPTIONS[option])
            raise DeviceNameError(f"{name}: {option} is {choices}, not {value!r}")
    return Name(device, given.get("attach"))


def _link_name(path: Path) -> str:
    return path.resolve().name if path.exists() else ""


def _driver(real: Path) -> str:
    """The driver that knows the device: that of an mdev's parent, where an mdev has no own."""
    driver = _link_name(real / "driver")
    if driver != "vfio_mdev":
        return driver
    parent = (real / "mdev_type").resolve().parent.parent
    return _link_name(parent / "driver") or parent.name


def _describe(sysfs: Path, root: Path) -> Found:
    real = sysfs.resolve()
    cdev = None
    for node in sorted(real.glob("vfio-dev/*")):
        path = f"dev/vfio/devices/{node.name}"
        if (root / path).exists():
            cdev = f"/{path}"
    driver = _driver(real)
    is_mdev = bool(_UUID.fullmatch(real.name))
    # Kernels before 6.1 have no vfio-dev; every VFIO driver of PCI tells by its name.
    vfio = (real / "vfio-dev").exists() or "vfio" in driver or (is_mdev and bool(driver))
    number = _link_name(real / "iommu_group")
    group = None
    for path in (f"dev/vfio/{number}", f"dev/vfio/noiommu-{number}"):
        if number and (root / path).exists():
            group = f"/{path}"
    return Found(
        name=real.name if is_mdev else f"{PREFIX}{real.name}",
        sysfs=real,
        driver=driver,
        cdev=cdev,
        group=group,
        noiommu=any(node is not None and "noiommu-" in node for node in (cdev, group)),
        vfio=vfio,
        kind=_link_name(real / "mdev_type"),
    )


def list_found(root: Path = Path("/")) -> list[Found]:
    """Every device that a VFIO driver has, also where it can't be opened."""
    places = ("sys/class/vfio-dev/*/device", "sys/bus/mdev/devices/*", "sys/bus/pci/devices/*")
    paths = {path.resolve() for place in places for path in root.glob(place)}
    found = (_describe(path, root) for path in paths)
    return sorted((each for each in found if each.vfio), key=lambda each: each.name)


def find(name: Name, root: Path = Path("/")) -> Found:
    """The device that ``name`` means. OSError ENODEV says why there is none, and what to do."""
    if _NODE.fullmatch(name.device):
        return _by_node(name, root)
    bare = name.device.removeprefix(PREFIX).lower()
    bus = "mdev" if _UUID.fullmatch(bare) else "pci"
    sysfs = root / "sys/bus" / bus / "devices" / bare
    if not sysfs.exists():
        raise refuse(errno.ENODEV, f"no such {bus} device on this machine")
    found = _describe(sysfs, root)
    if not found.vfio:
        bound = f"bound to {found.driver}" if found.driver else "bound to no driver"
        raise refuse(
            errno.ENODEV,
            f"it is {bound}, not to a VFIO driver: write its driver's name"
            " (mlx5_vfio_pci, vfio-pci, ...) into driver_override and the device's name into"
            " drivers_probe",
        )
    return found


def _by_node(name: Name, root: Path) -> Found:
    node = Path(name.device).name
    sysfs = root / "sys/class/vfio-dev" / node / "device"
    if not sysfs.exists():
        raise refuse(errno.ENODEV, "no such VFIO device on this machine")
    return _describe(sysfs, root)


def _hex(path: Path) -> int:
    try:
        return int(path.read_text(), 16)
    except (OSError, ValueError):
        return 0


def identity(found: Found, node: str) -> DeviceIdentity:
    """Who the device is, by sysfs; ``node`` is how it was opened. An mdev has no ids there: 0."""
    # The mdevs of one driver differ in what they have; those of one type do not.
    kind = frozenset({f"mdev type {found.kind}"} if found.kind else ())
    return DeviceIdentity(
        vendor_id=_hex(found.sysfs / "vendor"),
        device_id=_hex(found.sysfs / "device"),
        driver=found.driver,
        firmware="",
        serial="",
        stream=_STREAMS.get(found.driver, found.driver),
        needs=kind,
        offers=kind,
        details={"node": node},
    )
