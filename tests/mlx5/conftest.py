"""A VF of the mlx5 driver on a firmware that the test steers."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.records import RecordHeader
from precopy.vfio.device import MigrationFile
from tests.mlx5.fake_firmware import FakeFirmware


@dataclass
class StepWorker:
    """A worker whose work is done when the test says so."""

    work: deque[Callable[[], None]] = field(default_factory=deque)

    def submit(self, work: Callable[[], None], /) -> None:
        self.work.append(work)

    def shutdown(self, wait: bool = True) -> None:
        self.work.clear()

    def run(self) -> None:
        while self.work:
            self.work.popleft()()


@dataclass
class Rig:
    firmware: FakeFirmware
    worker: StepWorker
    device: Mlx5VfioDevice
    resets: list[None]


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    rigs: list[Rig] = []

    def make(**options: object) -> Rig:
        firmware = FakeFirmware(**options)  # type: ignore[arg-type]
        worker, resets = StepWorker(), list[None]()
        device = Mlx5VfioDevice(
            firmware, 0, name="vf", flr=lambda: resets.append(None), worker=worker
        )
        firmware.take_log()
        rigs.append(Rig(firmware, worker, device, resets))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.firmware.hold = False
        while rig.firmware.held:
            rig.firmware.complete()
        rig.device.close()
        # Whatever a test did, the driver gives back all that it took.
        if not rig.device._commands.detached:
            assert not rig.firmware.keys
            assert not rig.firmware.pds


def read_some(file: MigrationFile, size: int = 1 << 20) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: file.readinto(buffer)])


def read_all(file: MigrationFile, size: int = 1 << 20) -> bytes:
    """Everything up to the permanent end."""
    stream = b""
    while data := read_some(file, size):
        stream += data
    return stream


def records(stream: bytes) -> list[tuple[int, bytes]]:
    """Tag and payload of each record."""
    found, offset = [], 0
    while offset < len(stream):
        header = RecordHeader.parse(stream[offset:])
        found.append((header.tag, stream[offset + 16 : offset + 16 + header.size]))
        offset += 16 + header.size
    assert offset == len(stream)
    return found
