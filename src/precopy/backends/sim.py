"""``sim:mlx5?...``: a software ConnectX with one VF, the mlx5 driver on it, and a guest."""

from collections.abc import Sequence

from precopy import options
from precopy.backends.errors import DeviceNameError
from precopy.connectx import Adapter
from precopy.connectx import options as card
from precopy.guest import WorkloadGuest
from precopy.guest.bringup import BringUpError
from precopy.guest.options import GUEST, workload_of
from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.records import RecordCounter
from precopy.options import Option, OptionError, switch
from precopy.pci.memory import RegionSpec
from precopy.vfio.function_face import FunctionFace
from precopy.vfio.guest import Guest, Opened

PREFIX = "sim:"

#: Options of the driver on the card.
DRIVER: dict[str, Option] = {
    "ahead": Option(switch, "1", "0: a target makes no room for the final image before that comes"),
}

#: Everything that may stand behind ``sim:mlx5?``.
PARAMETERS: dict[str, Option] = {**GUEST, **DRIVER, **card.CARD}


def parse(name: str) -> dict[str, object]:
    """The parameters of a name. DeviceNameError says which is wrong."""
    model, _, query = name.removeprefix(PREFIX).partition("?")
    if model != "mlx5":
        raise DeviceNameError(f"{name}: there is no simulated {model!r}; write sim:mlx5")
    try:
        return options.parse(query, PARAMETERS)
    except OptionError as error:
        raise DeviceNameError(f"{name}: {error}") from error


def open_sim(name: str, *, target: bool = False, served: bool = False) -> Opened:
    """Open a simulated device; ``target``: without a guest of its own; ``served``: for the guest of
    whoever attaches it. DeviceNameError, OSError."""
    found = parse(name)
    try:
        workload = None if target or served else workload_of(found)
    except ValueError as error:
        raise DeviceNameError(f"{name}: {error}") from error
    # A target takes whatever bulk state comes; an untouched table costs nothing.
    kind = card.config(found, blank=target, spare_room=served)
    adapter = Adapter(kind, faults=card.faults(found))
    port = adapter.vfs[0]
    device = SimDevice(adapter, name, ahead=bool(found["ahead"]))
    opened = Opened(device, count_records=RecordCounter, watch_commands=device.watch_commands)
    if served:
        opened.face = FunctionFace(adapter.assigned_vf(0), flr=device.reset, barrier=port.vhca.lock)
    if workload is not None:
        try:
            opened.guest = WorkloadGuest.power_on(port, workload)
        except BringUpError as error:
            device.close()
            raise DeviceNameError(f"{name}: the guest can't use the VF: {error}") from error

    def adopt(specs: Sequence[RegionSpec]) -> Guest:
        opened.guest = WorkloadGuest.attach(port, specs)
        return opened.guest

    if target:
        opened.adopt_guest = adopt
    return opened


class SimDevice(Mlx5VfioDevice):
    """The VF, with the card that it is on: both are closed together."""

    def __init__(self, adapter: Adapter, name: str, *, ahead: bool = True) -> None:
        config = adapter.config
        super().__init__(
            adapter.pf,
            0,
            name=name,
            flr=lambda: adapter.flr(0),
            firmware=config.firmware,
            serial=config.serial,
            ahead=ahead,
        )
        self.adapter = adapter

    def close(self) -> None:
        super().close()
        self.adapter.close()
