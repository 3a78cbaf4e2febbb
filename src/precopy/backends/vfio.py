"""A kernel's device with its guest, where the name asks for one: ``vfio:0000:00:01.0?guest=1&qps=8``."""

from collections.abc import Sequence
from urllib.parse import parse_qsl, urlencode

from precopy import options
from precopy.backends.errors import DeviceNameError
from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from precopy.backends.kernel.discovery import OPTIONS as ATTACH_OPTIONS
from precopy.backends.vfio_guest import VfioBus
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.bringup import BringUpError
from precopy.guest.options import GUEST as GUEST_OPTIONS
from precopy.guest.options import workload_of
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.records import RecordCounter
from precopy.options import Option, OptionError, within
from precopy.pci.memory import RegionSpec
from precopy.vfio.guest import Guest, Opened

#: The guest's parameters; a kernel's device has none unless asked for.
GUEST: dict[str, Option] = {
    **GUEST_OPTIONS,
    "guest": Option(options.switch, "0", "1: a guest, on a VF of the lab's software ConnectX"),
    "seed": Option(within(0, 0xFFFF_FFFF), "1", "of messages"),
}


def _split(name: str) -> tuple[str, WorkloadConfig | None]:
    """The device's name without the guest's parameters, and the guest. DeviceNameError."""
    device, _, query = name.partition("?")
    try:
        given = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise DeviceNameError(f"{name}: {error}") from error
    for key, _ in given:
        if key not in GUEST and key not in ATTACH_OPTIONS:
            known = ", ".join(sorted([*ATTACH_OPTIONS, *GUEST]))
            raise DeviceNameError(f"{name}: unknown option {key!r}; there are {known}")
    mine = [(key, value) for key, value in given if key in GUEST]
    rest = [(key, value) for key, value in given if key not in GUEST]
    try:
        workload = workload_of(options.parse(urlencode(mine), GUEST))
    except (OptionError, ValueError) as error:
        raise DeviceNameError(f"{name}: {error}") from error
    return f"{device}?{urlencode(rest)}" if rest else device, workload


def open_vfio(name: str, *, target: bool = False) -> Opened:
    """Open a kernel's device; ``target``: without a guest of its own. DeviceNameError, OSError."""
    bare, workload = _split(name)
    device = open_kernel_device(bare)
    opened = Opened(device)
    if device.identity.stream == "mlx5":
        opened.count_records = RecordCounter
    try:
        if workload is not None and not target:
            opened.guest = WorkloadGuest.power_on(PciPort(VfioBus(device)), workload)
        elif target and _can_have_guest(device):
            opened.adopt_guest = lambda specs: _adopt(opened, device, specs)
    except BringUpError as error:
        device.close()
        raise DeviceNameError(f"{name}: the guest can't use the VF: {error}") from error
    except BaseException:
        device.close()
        raise
    return opened


def _can_have_guest(device: KernelVfioDevice) -> bool:
    try:
        VfioBus(device)
    except OSError:
        return False
    return True


def _adopt(opened: Opened, device: KernelVfioDevice, specs: Sequence[RegionSpec]) -> Guest:
    opened.guest = WorkloadGuest.attach(PciPort(VfioBus(device)), specs)
    return opened.guest
