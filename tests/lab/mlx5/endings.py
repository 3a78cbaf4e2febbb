"""Every state, and every way out of it: arcs, reset, the end of the device or of the data_fd."""

from typing import Any

from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import MAX_IMAGE_SIZE, RecordHeader, Tag, size_record
from precopy.mlx5_abi.status import Status
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.lab import inside
from tests.lab.inside import enter, outcome, state
from tests.lab.mlx5.vf import LONG, VFS, Marks, S, counts, info, power_on, read_some, saved


class Walker(inside.Walker):
    """Goes from state to state with a content that the VF takes."""

    def __init__(self, device: KernelVfioDevice) -> None:
        self.device = device
        device.set_state(S.STOP)
        self.content = saved(device)
        self.files = []


def arcs(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Every ordered pair of states: asked for at once, and walked one arc at a time."""
    walker = Walker(source)
    return {
        f"{int(origin)} {int(new)}": [
            *walker.at_once(origin, new),
            walker.step_by_step(origin, new),
        ]
        for origin in DeviceState
        if origin is not S.ERROR
        for new in (*DeviceState, 8)
    }


def _use(file: MigrationFile | None, origin: DeviceState, *, closed: bool = False) -> Any:
    """What a file says that is no good any more."""
    if file is None:
        return None
    if origin is S.RESUMING:
        return [outcome(lambda: file.write(b"x"))]
    told = [outcome(lambda: read_some(file, 9)), file.poll(timeout=0)]
    # Asked for on a device that was closed in PRE_COPY it brings the kernel down: see ``crash_by_close``.
    return [*told, None if closed and origin is S.PRE_COPY else outcome(lambda: info(file))]


def _works(device: KernelVfioDevice) -> Any:
    """A device is worth what its guest gets done."""
    guest = power_on(device, pairs=1)
    guest.step(4)
    return counts(guest)


def resets(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """VFIO_DEVICE_RESET in every state: where it leads, what is left of the data_fd."""
    told = {}
    for origin in DeviceState:
        if origin is S.ERROR:
            continue
        file = source.set_state(origin)
        if file is not None and origin is not S.RESUMING:
            read_some(file, 9)
        source.reset()
        marks(f"resets: {origin.name}")
        told[origin.name] = [state(source), _use(file, origin), _works(source)]
        source.reset()
        if file is not None:
            file.close()
    return told


def closing(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """The device is closed in every state, the data_fd only when a new session is under way."""
    told = {}
    for origin in DeviceState:
        if origin is S.ERROR:
            continue
        with open_kernel_device(VFS[2]) as device:
            file = device.set_state(origin)
        marks(f"closing: {origin.name}")
        dead = _use(file, origin, closed=True)
        with open_kernel_device(VFS[2]) as device:
            stands, works = state(device), _works(device)
            device.reset()
            with enter(device, S.PRE_COPY) as new:
                told[origin.name] = [stands, works, dead, _use(file, origin), info(new)[0] > 24]
        if file is not None:
            file.close()
    return told


def crash_by_close(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """VFIO_MIG_GET_PRECOPY_INFO of a data_fd whose device was closed in PRE_COPY."""
    file = enter(source, S.PRE_COPY)
    source.close()
    return info(file)


def crash_by_cancel(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """From PRE_COPY to RUNNING again, after the save that ends the tracking has failed."""
    with enter(source, S.PRE_COPY) as file:
        file.poll(timeout=LONG)
        marks.remote.plan(Opcode.SAVE_VHCA_STATE, 1, Status.INT_ERR)
        first = outcome(lambda: source.set_state(S.RUNNING))
        return [first, outcome(lambda: source.set_state(S.RUNNING)), state(source)]


def crash_by_record(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """41 bytes of a stream: the final image, it says, will need all that can be, and here is one."""
    with enter(target, S.RESUMING) as file:
        header = RecordHeader(MAX_IMAGE_SIZE, 0, Tag.FW_DATA).pack()
        return outcome(lambda: file.write(size_record(MAX_IMAGE_SIZE) + header + b"x"))


def early(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """A data_fd that is closed in the midst of its session does not matter to the device."""
    told = {}
    for origin in (S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY, S.RESUMING):
        enter(source, origin).close()
        told[origin.name] = [
            outcome(lambda: source.set_state(S.STOP)),
            outcome(lambda: source.set_state(S.RUNNING)),
        ]
    with enter(source, S.PRE_COPY):
        pass
    told["on to STOP_COPY"] = [outcome(lambda: source.set_state(S.STOP_COPY)), state(source)]
    source.set_state(S.RUNNING)
    told["works"] = _works(source)
    return told
