"""Drivers that come and go: VFs given to mlx5_core, SR-IOV, the PF's driver, a VF taken away."""

import os
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from precopy.backends.kernel.ioctls import call
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.status import Status
from precopy.vfio.device import DmaRange
from tests.lab.inside import enter, outcome, state
from tests.lab.mlx5 import devlink
from tests.lab.mlx5.vf import VFS, Marks, S, counts, info, power_on, read_some, saved

DEVICES = Path("/sys/bus/pci/devices")
PF = "0000:00:00.0"
FIRST = VFS[0].removeprefix("vfio:")

# VFIO_DEVICE_SET_IRQS: argsz, flags, index, start, count, and an eventfd.
_VFIO_DEVICE_SET_IRQS = ord(";") << 8 | 110
_EVENTFD_TRIGGER, _REQUEST_INDEX = 1 << 2 | 1 << 5, 4


def _driver(device: str) -> str:
    link = DEVICES / device / "driver"
    return link.resolve().name if link.exists() else ""


def _vfs() -> dict[str, str]:
    """The VFs that there are, and the driver of each."""
    found = sorted(DEVICES.glob(f"{PF}/virtfn*"))
    return {each.resolve().name: _driver(each.resolve().name) for each in found}


def _unbind(device: str) -> None:
    (DEVICES / device / "driver/unbind").write_text(device)


def _bind(device: str, driver: str) -> None:
    """Give ``device`` to ``driver``, whoever has it now."""
    if _driver(device):
        _unbind(device)
    (DEVICES / device / "driver_override").write_text(driver)
    Path("/sys/bus/pci/drivers_probe").write_text(device)


def _set_vfs(count: int, autoprobe: int = 0) -> None:
    (DEVICES / PF / "sriov_drivers_autoprobe").write_text(str(autoprobe))
    (DEVICES / PF / "sriov_numvfs").write_text(str(count))


def _works(name: str = VFS[0]) -> Any:
    """A VF on which a guest works, and that can be saved."""
    with open_kernel_device(name) as device:
        guest = power_on(device)
        guest.step(8)
        found = counts(guest)
        device.set_state(S.STOP)
        return [found, len(saved(device)) > 24]


def _offers(device: KernelVfioDevice) -> Any:
    return {
        "features": {each.name: int(has) for each, has in device.features().items()},
        "flags": outcome(lambda: int(device.migration_flags)),
        "state": outcome(lambda: state(device)),
        "STOP": outcome(lambda: device.set_state(S.STOP)),
        "data size": outcome(lambda: device.data_size() > 0),
        "INFOv2": outcome(device.enable_precopy_info_v2),
        "log": outcome(lambda: device.log_start([DmaRange(0, 1 << 20)], 4096)),
    }


def offers(marks: Marks) -> Any:
    """What the driver says that a VF of this card can do."""
    with open_kernel_device(VFS[0]) as device:
        return _offers(device)


def unasked(marks: Marks) -> Any:
    """The driver can't find out, when it is bound, whether a VF migrates, or by what number."""
    told = {}
    for nth, name in ((1, "migratable"), (2, "vhca_id")):
        _unbind(FIRST)
        marks.remote.plan(Opcode.QUERY_HCA_CAP, nth, Status.INT_ERR)
        _bind(FIRST, "mlx5_vfio_pci")
        told[name] = offers(marks)
    _bind(FIRST, "mlx5_vfio_pci")
    told["then"] = offers(marks)
    return told


def host_driver(marks: Marks) -> Any:
    """A VF with mlx5_core itself on it, and taken back; both VFs by autoprobe."""
    told: dict[str, Any] = {}
    marks("host driver: bind")
    _bind(FIRST, "mlx5_core")
    told["bound"] = _vfs()
    told["opened"] = outcome(lambda: open_kernel_device(VFS[0]))
    marks("host driver: take back")
    _bind(FIRST, "mlx5_vfio_pci")
    told["taken back"] = _vfs()
    marks("host driver: works")
    told["works"] = _works()
    _set_vfs(0)
    marks("host driver: autoprobe")
    _set_vfs(2, autoprobe=1)
    told["autoprobe"] = _vfs()
    for device in _vfs():
        _bind(device, "mlx5_vfio_pci")
    told["works then"] = [_works(name) for name in VFS[:2]]
    return told


def sriov(marks: Marks) -> Any:
    """SR-IOV off and on, with other counts."""
    told: dict[str, Any] = {
        "too many": outcome(lambda: _set_vfs(3)),
        "another count": outcome(lambda: _set_vfs(1)),
    }
    for number, count in enumerate((0, 1, 0, 2)):
        marks(f"sriov: {number}")
        _set_vfs(count)
        for device in _vfs():
            _bind(device, "mlx5_vfio_pci")
        told[str(number)] = [_vfs(), [_works(f"vfio:{device}") for device in _vfs()]]
    told["beyond"] = outcome(lambda: _set_vfs(99))
    return told


def pf_driver(marks: Marks) -> Any:
    """The PF's driver goes, and its VFs with it; it comes back."""
    told: dict[str, Any] = {}
    marks("pf driver: unbind")
    _unbind(PF)
    told["unbound"] = [_driver(PF), _vfs(), (DEVICES / FIRST).exists()]
    marks("pf driver: bind")
    _bind(PF, "mlx5_core")
    told["bound"] = [_driver(PF), _vfs()]
    _set_vfs(2)
    for device in _vfs():
        _bind(device, "mlx5_vfio_pci")
    told["works"] = [_works(name) for name in VFS[:2]]
    return told


def _request_event(device: KernelVfioDevice) -> int:
    """An eventfd by which the kernel asks for the device to be closed."""
    event = os.eventfd(0, os.EFD_CLOEXEC)
    argument = bytearray(struct.pack("=IIIIIi", 24, _EVENTFD_TRIGGER, _REQUEST_INDEX, 0, 1, event))
    call(device.kernel, device.fileno(), _VFIO_DEVICE_SET_IRQS, argument, "SET_IRQS", device.name)
    return event


def held(marks: Marks) -> Any:
    """SR-IOV is switched off, and a driver unbound, while somebody has a VF open and a session on it."""
    told: dict[str, Any] = {}
    ways: dict[str, Callable[[], None]] = {
        "SR-IOV off": lambda: _set_vfs(0),
        "unbind": lambda: _unbind(FIRST),
    }
    for name, way in ways.items():
        device = open_kernel_device(VFS[0])
        file = enter(device, S.PRE_COPY)
        asked = _request_event(device)
        remover = threading.Thread(target=way)
        remover.start()
        os.eventfd_read(asked)
        waits = remover.is_alive()
        # It is as good as ever, for who has it open.
        used = [state(device), info(file)[0] > 24, len(read_some(file, 24))]
        device.set_state(S.STOP_COPY)
        marks(f"held: {name}")
        device.close()
        remover.join()
        told[name] = [waits, used, outcome(lambda: read_some(file, 9)), _vfs()]  # noqa: B023
        file.close()
        os.close(asked)
        _set_vfs(0)
        _set_vfs(2)
        for each in _vfs():
            _bind(each, "mlx5_vfio_pci")
        told[name].append(_works())
    return told


def detached(marks: Marks) -> Any:
    """The PF's driver is reloaded under an open VF; once so that it does not come up again."""
    told: dict[str, Any] = {}
    with open_kernel_device(VFS[0]) as device, open_kernel_device(VFS[1]) as other:
        files = [enter(device, S.STOP_COPY), enter(other, S.RESUMING)]
        other.log_start([DmaRange(0, 1 << 20)], 4096)
        marks.remote.plan(Opcode.INIT_HCA, 1, Status.INT_ERR)
        told["reload fails"] = outcome(lambda: devlink.reload(PF))
        told["sessions"] = [
            outcome(lambda: read_some(files[0], 9)),
            outcome(lambda: files[1].write(b"x")),
        ]
        told["states"] = [state(device), state(other)]
        told["arcs"] = {
            new.name: outcome(lambda: bool(device.set_state(new)))  # noqa: B023
            for new in (S.STOP, S.STOP_COPY, S.RESUMING, S.RUNNING_P2P)
        }
        told["log"] = [
            outcome(lambda: other.log_report(0, 4096, 4096, memoryview(bytearray(8)))),
            outcome(other.log_stop),
            outcome(lambda: other.log_start([DmaRange(0, 1 << 20)], 4096)),
        ]
        told["data size"] = outcome(device.data_size)
        device.reset()
        told["after a reset"] = {
            new.name: outcome(lambda: bool(device.set_state(new)))  # noqa: B023
            for new in (S.PRE_COPY, S.RUNNING_P2P)
        }
        for file in files:
            file.close()
        told["closed"] = outcome(other.close)
        marks("detached: reload")
        told["reload"] = outcome(lambda: devlink.reload(PF))
        device.reset()
        told["attached"] = [state(device), outcome(lambda: device.set_state(S.STOP))]
    told["works"] = [_works(name) for name in VFS[:2]]
    return told


def crash_by_reload(marks: Marks) -> Any:
    """PRE_COPY is left after the PF's driver has been reloaded."""
    with open_kernel_device(VFS[0]) as device, enter(device, S.PRE_COPY):
        devlink.reload(PF)
        return [state(device), outcome(lambda: device.set_state(S.RUNNING)), state(device)]


def crash_by_unbind(marks: Marks) -> Any:
    """A data_fd is written to whose device has gone: closed, and its driver unbound."""
    device = open_kernel_device(VFS[0])
    file = enter(device, S.RESUMING)
    device.close()
    _unbind(FIRST)
    return outcome(lambda: file.write(b"x"))
