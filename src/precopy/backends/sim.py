"""``sim:mlx5?...``: a software ConnectX with one VF, the mlx5 driver on it, and a guest."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

from precopy.backends.errors import DeviceNameError
from precopy.connectx import Adapter, AdapterConfig, FaultPlan
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.bringup import BringUpError
from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.records import RecordCounter
from precopy.pci.memory import RegionSpec
from precopy.vfio.guest import Guest, Opened

PREFIX = "sim:"

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def _number(text: str) -> int:
    return int(text, 0)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text)
    if not found:
        raise ValueError("a size is a number with K, M or G behind it")
    size = int(found.group(1)) * _UNITS[found.group(2)]
    return -(-size // 4096) * 4096


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("a switch is 0 or 1")
    return text == "1"


@dataclass(frozen=True, slots=True)
class Parameter:
    """``parse`` raises ValueError; ``default`` is a text as a user would write it."""

    parse: Callable[[str], object]
    default: str
    help: str


#: Everything that may stand behind ``sim:mlx5?``.
PARAMETERS: dict[str, Parameter] = {
    "qps": Parameter(_number, "16", "QP pairs of the guest"),
    "active": Parameter(_number, "-1", "pairs that send messages (-1: all, at most 64)"),
    "rate": Parameter(_number, "2000", "messages a second, all pairs together (0: no pause)"),
    "size": Parameter(_number, "256", "bytes of a message"),
    "mix": Parameter(str, "siwr", "s SEND, i SEND with immediate, w RDMA WRITE, r RDMA READ"),
    "guest": Parameter(_switch, "1", "0: no guest"),
    "state": Parameter(_bytes, "0", "bulk state of the VF besides its contexts, such as 300M"),
    "chunks": Parameter(_switch, "1", "chunk mode (migration_in_chunks)"),
    "migration_state": Parameter(_switch, "1", "the capability behind REINIT"),
    "migratable": Parameter(_switch, "1", "whether the VF may be migrated"),
    "multi_load": Parameter(_switch, "1", "0: firmware too old for PRE_COPY"),
    "image_version": Parameter(_number, "1", "version of the firmware's images"),
    "log_max_qp": Parameter(_number, "18", "QPs of the card, as a power of two"),
    "fault": Parameter(FaultPlan.parse, "", "OPCODE:NTH:STATUS,...: commands that fail"),
    "fw": Parameter(str, "28.43.1014", "firmware version"),
    "serial": Parameter(str, "MT2243X00001", "serial number"),
    "seed": Parameter(_number, "1", "of messages and bulk state"),
}


def parse(name: str) -> dict[str, object]:
    """The parameters of a name. DeviceNameError says which is wrong."""
    model, _, query = name.removeprefix(PREFIX).partition("?")
    if model != "mlx5":
        raise DeviceNameError(f"{name}: there is no simulated {model!r}; write sim:mlx5")
    given: dict[str, str] = {}
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise DeviceNameError(f"{name}: {error}") from error
    unknown = given.keys() - PARAMETERS.keys()
    if unknown:
        raise DeviceNameError(
            f"{name}: unknown parameter {min(unknown)!r}; there are {', '.join(PARAMETERS)}"
        )
    found: dict[str, object] = {}
    for key, parameter in PARAMETERS.items():
        try:
            found[key] = parameter.parse(given.get(key, parameter.default))
        except ValueError as error:
            raise DeviceNameError(f"{name}: {key}: {error}") from error
    return found


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


def open_sim(name: str, *, target: bool = False) -> Opened:
    """Open a simulated device; ``target``: without a guest of its own. DeviceNameError, OSError."""
    found = parse(name)
    faults = found["fault"]
    assert isinstance(faults, FaultPlan)
    pairs = _int(found["qps"])
    log_max_qp = _int(found["log_max_qp"])
    if not 4 <= log_max_qp <= 20:
        raise DeviceNameError(f"{name}: log_max_qp: 4 to 20")
    try:
        workload = None
        if found["guest"] and not target and pairs:
            active = _int(found["active"])
            workload = WorkloadConfig(
                pairs=pairs,
                active=min(pairs, 64) if active < 0 else active,
                rate=_int(found["rate"]),
                size=_int(found["size"]),
                mix=str(found["mix"]),
                seed=_int(found["seed"]),
            )
    except ValueError as error:
        raise DeviceNameError(f"{name}: {error}") from error
    config = AdapterConfig(
        log_max_qp=log_max_qp,
        log_max_cq=log_max_qp,
        # A target takes whatever bulk state comes; an untouched table costs nothing.
        state_bytes=_int(found["state"]),
        seed=_int(found["seed"]),
        firmware=str(found["fw"]),
        serial=str(found["serial"]),
        migratable=bool(found["migratable"]),
        multi_load=bool(found["multi_load"]),
        chunk_mode=bool(found["chunks"]),
        migration_state=bool(found["migration_state"]),
        image_version=_int(found["image_version"]),
        blank=target,
    )
    adapter = Adapter(config, faults=faults)
    port = adapter.vfs[0]
    device = SimDevice(adapter, name)
    opened = Opened(device, count_records=RecordCounter)
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

    def __init__(self, adapter: Adapter, name: str) -> None:
        config = adapter.config
        super().__init__(
            adapter.pf,
            0,
            name=name,
            flr=lambda: adapter.flr(0),
            firmware=config.firmware,
            serial=config.serial,
        )
        self.adapter = adapter

    def close(self) -> None:
        super().close()
        self.adapter.close()
