"""VFs of the software ConnectX inside a lab kernel: marks, streams, guests."""

import errno
import itertools
from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.backends.vfio_guest import VfioBus
from precopy.connectx.controls import Remote
from precopy.connectx.slots import ZERO_LENGTH_RQ
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.bringup import run
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.commands import CreateQpIn, Opcode
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.lab.inside import enter

S = DeviceState
VFS = tuple(f"vfio:0000:00:{slot:02x}.0" for slot in range(1, 8))
MIB = 1 << 20

#: Sizes that fit nothing, to read and to write with, one after another.
ODD = (1, 3, 16, 4095, 4097, 65537, MIB - 1, MIB)

#: Seconds in which a save is surely done.
LONG = 30.0


class Marks:
    """Names of the marks in the card's trace, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.remote = Remote()

    def __call__(self, name: str) -> None:
        self.remote.mark(len(self.names))
        self.names.append(name)

    def act(self, action: int) -> None:
        """Have something done to the card (``actions``): it is, on return."""
        self.remote.mark(action)


# --- Streams --------------------------------------------------------------------------------------


def descriptor(file: MigrationFile) -> int:
    fd = file.fileno()
    assert fd is not None
    return fd


def info(file: MigrationFile) -> list[int]:
    now = file.precopy_info()
    return [now.initial_bytes, now.dirty_bytes, int(now.flags)]


def read_some(file: MigrationFile, size: int) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: file.readinto(buffer)])


def read_all(file: MigrationFile, sizes: Iterable[int] = (MIB,)) -> tuple[bytes, str]:
    """Everything up to an end, and which end it was: ENOMSG or EOF."""
    data = bytearray()
    for size in itertools.cycle(sizes):
        try:
            piece = read_some(file, size)
        except OSError as error:
            return bytes(data), errno.errorcode[error.errno or errno.EIO]
        if not piece:
            return bytes(data), "EOF"
        data += piece
    raise AssertionError


def write_all(file: MigrationFile, data: bytes, sizes: Iterable[int] = (MIB,)) -> None:
    view = memoryview(data)
    for size in itertools.cycle(sizes):
        if not view:
            return
        view = view[file.write(view[:size]) :]


def records(data: bytes) -> list[list[int]]:
    """Tag, flags and size of every record that is whole."""
    found, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 8], "little")
        flags = int.from_bytes(data[at + 8 : at + 12], "little")
        tag = int.from_bytes(data[at + 12 : at + 16], "little")
        at += 16 + size
        if at <= len(data):
            found.append([tag, flags, size])
    return found


def load(device: KernelVfioDevice, data: bytes, sizes: Iterable[int] = (MIB,)) -> None:
    """RESUMING, ``data``, STOP."""
    with enter(device, S.RESUMING) as file:
        write_all(file, data, sizes)
        device.set_state(S.STOP)


def saved(device: KernelVfioDevice) -> bytes:
    """The stream of a device that stands, which it goes on to be: STOP."""
    with enter(device, S.STOP_COPY) as file:
        data, end = read_all(file)
        assert end == "EOF"
        device.set_state(S.STOP)
    return data


# --- Guests ---------------------------------------------------------------------------------------


def power_on(device: KernelVfioDevice, pairs: int = 4) -> WorkloadGuest:
    config = WorkloadConfig(pairs=pairs, active=min(pairs, 4), rate=0)
    return WorkloadGuest.power_on(PciPort(VfioBus(device)), config)


def move_guest(guest: WorkloadGuest, device: KernelVfioDevice) -> WorkloadGuest:
    """The same guest with its VF ``device``; the old one is closed."""
    specs = [region.spec for region in guest.memory.regions]
    moved = WorkloadGuest.attach(PciPort(VfioBus(device)), specs)
    for old, new in zip(guest.memory.regions, moved.memory.regions, strict=True):
        new.view[:] = old.view
    guest.close()
    return moved


def counts(guest: WorkloadGuest) -> dict[str, int]:
    """Everything that was sent has to arrive; what the guest says in the end."""
    found = asdict(guest.settle(LONG))
    guest.close()
    return found


def new_qps(port: PciPort, pd: int, count: int) -> None:
    """QPs of a guest: two to a page that no image has held so far."""
    inbox = CreateQpIn()
    inbox.qpc.pd, inbox.qpc.no_sq, inbox.qpc.rq_type = pd, 1, ZERO_LENGTH_RQ
    for _ in range(count):
        run(port, Opcode.CREATE_QP, inbox)


#: What a program asks of two VFs that have just been reset.
Fact = Callable[[Marks, KernelVfioDevice, KernelVfioDevice], Any]
