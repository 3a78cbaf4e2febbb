"""A VF of the mlx5 driver on a firmware that the test steers."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.records import RecordHeader
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.mlx5.fake_firmware import FakeFirmware

#: The shortest stream that is a device to the fake firmware.
IMAGE = RecordHeader(5, 0, 0).pack() + b"image"


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

    def go(self, state: DeviceState) -> MigrationFile | None:
        """Go to ``state``, with an image loaded where it is RESUMING; its file, where there is one."""
        file = self.device.set_state(state)
        if state is DeviceState.RESUMING:
            assert file is not None
            file.write(IMAGE)
        return file

    def close(self) -> None:
        """Whatever a test did, the driver gives back all that it took."""
        self.firmware.hold = False
        while self.firmware.held:
            self.firmware.complete()
        self.device.close()
        assert not self.firmware.dma.mapped
        if not self.firmware.gone:
            assert not self.firmware.keys
            assert not self.firmware.pds


def new_rig(**options: object) -> Rig:
    """A VF on a firmware with ``options`` (``ahead``: the driver's); the test closes it."""
    ahead = bool(options.pop("ahead", True))
    firmware = FakeFirmware(**options)  # type: ignore[arg-type]
    worker, resets = StepWorker(), list[None]()
    device = Mlx5VfioDevice(
        firmware, 0, name="vf", flr=lambda: resets.append(None), worker=worker, ahead=ahead
    )
    firmware.take_log()
    return Rig(firmware, worker, device, resets)


MakeRig = Callable[..., Rig]


@pytest.fixture
def make_rig() -> Iterator[MakeRig]:
    """Rigs that are closed when the test is over."""
    rigs: list[Rig] = []

    def make(**options: object) -> Rig:
        rigs.append(new_rig(**options))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


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
