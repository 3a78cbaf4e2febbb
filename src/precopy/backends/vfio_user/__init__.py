"""``vfio-user:/path``: a device that another process serves (``precopy serve``, libvfio-user, ...).

``client``
    the connection, each command as a call
``device``, ``file``, ``data``
    the device as a ``VfioDevice``, its sessions, and how their data is carried
``bus``
    what a guest in this process needs of it
"""

from collections.abc import Sequence
from dataclasses import replace

from precopy import options
from precopy.backends.errors import DeviceNameError
from precopy.backends.vfio_user.bus import VfioUserBus
from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.guest import WorkloadGuest
from precopy.guest.bringup import BringUpError
from precopy.guest.options import GUEST, workload_of
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.records import RecordCounter
from precopy.options import Option, OptionError, size, switch, within
from precopy.pci.memory import RegionSpec
from precopy.vfio.face import DeviceFlags
from precopy.vfio.guest import Guest, Opened
from precopy.vfio_user import version

PREFIX = "vfio-user:"

#: Everything that may stand behind ``vfio-user:/path?``.
PARAMETERS: dict[str, Option] = {
    **GUEST,
    "guest": Option(switch, "0", "1: a guest, on a VF of the software ConnectX"),
    "seed": Option(within(0, 0xFFFF_FFFF), "1", "of messages"),
    "extension": Option(switch, "1", "0: without this project's extension for PRE_COPY"),
    "area": Option(switch, "1", "0: data in messages, never through memory that both have"),
    "write": Option(size(64 << 20), "0", "most data of one MIG_DATA_WRITE; 0: what is safe"),
    "stream": Option(str, "", "what its state is, such as mlx5, where the server can't say"),
}


def open_vfio_user(name: str, *, target: bool = False) -> Opened:
    """Attach the device; ``target``: without a guest of its own. DeviceNameError, OSError."""
    path, _, query = name.removeprefix(PREFIX).partition("?")
    if not path:
        raise DeviceNameError(f"{name}: write vfio-user:/path/of/socket")
    try:
        found = options.parse(query, PARAMETERS)
        workload = None if target else workload_of(found)
    except (OptionError, ValueError) as error:
        raise DeviceNameError(f"{name}: {error}") from error
    ours = version.OURS if found["extension"] else replace(version.OURS, extension=0)
    client = Client(path, ours)
    device = VfioUserDevice(
        client,
        f"{PREFIX}{path}",
        stream=str(found["stream"]),
        write_bytes=options.whole(found, "write"),
        area=bool(found["area"]),
    )
    opened = Opened(device)
    try:
        if device.identity.stream == "mlx5":
            opened.count_records = RecordCounter
        if workload is not None:
            opened.guest = WorkloadGuest.power_on(PciPort(VfioUserBus(client)), workload)
        elif target and client.device_info().flags & DeviceFlags.PCI:
            opened.adopt_guest = lambda specs: _adopt(opened, client, specs)
    except BringUpError as error:
        device.close()
        raise DeviceNameError(f"{name}: the guest can't use the device: {error}") from error
    except BaseException:
        device.close()
        raise
    return opened


def _adopt(opened: Opened, client: Client, specs: Sequence[RegionSpec]) -> Guest:
    opened.guest = WorkloadGuest.attach(PciPort(VfioUserBus(client)), specs)
    return opened.guest
