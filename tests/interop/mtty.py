"""The mtty device by precopy's kernel back end: its registers, and its state as images."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from precopy.vfio.device import MigrationFile
from precopy.vfio.states import DeviceState
from tests.interop import guest
from tests.interop.guest import Registers

_BAR = 0

#: More than an mtty device has to tell.
_BUFFER = 4096


@contextmanager
def opened(uuid: str) -> Iterator[KernelVfioDevice]:
    """The device, RUNNING."""
    with closing(open_kernel_device(uuid)) as device:
        if device.state != DeviceState.RUNNING:
            device.set_state(DeviceState.RUNNING)
        yield device


def set_registers(device: KernelVfioDevice, registers: Registers, scratch: int) -> None:
    """The first port's, and what is in its FIFO."""
    for offset, value in (
        (guest.FIFO_CONTROL, guest.FIFO_CLEAR),
        (guest.LINE_CONTROL, registers.line_control),
        (guest.MODEM_CONTROL, registers.modem_control),
        (guest.SCRATCH, scratch),
        *((guest.FIFO, value) for value in registers.fifo.encode("latin-1")),
    ):
        device.region_write(_BAR, offset, bytes([value]))


def registers_of(device: KernelVfioDevice) -> tuple[Registers, int]:
    """The first port's, and its scratch register; this empties the FIFO."""

    def at(offset: int) -> int:
        return device.region_read(_BAR, offset, 1)[0]

    return (
        Registers(
            at(guest.LINE_CONTROL),
            at(guest.MODEM_CONTROL),
            bytes(at(guest.FIFO) for _ in range(4)).decode("latin-1"),
        ),
        at(guest.SCRATCH),
    )


def wipe(uuid: str) -> None:
    """Empty registers, so that what is found there later has come by a migration."""
    with opened(uuid) as device:
        set_registers(device, Registers(0, 0, "\0\0\0\0"), 0)
        device.region_write(_BAR, guest.FIFO_CONTROL, bytes([guest.FIFO_CLEAR]))


def _read(file: MigrationFile | None) -> bytes:
    assert file is not None
    buffer = bytearray(_BUFFER)
    return bytes(buffer[: file.readinto(buffer)])


def save(device: KernelVfioDevice) -> list[bytes]:
    """Its initial and its final image. The device runs again afterwards."""
    file = device.set_state(DeviceState.PRE_COPY)
    initial = _read(file)
    device.set_state(DeviceState.STOP_COPY)
    final = _read(file)
    device.set_state(DeviceState.RUNNING)
    return [initial, final]


def load(device: KernelVfioDevice, images: list[bytes]) -> None:
    """Load ``images``; the device runs with them."""
    file = device.set_state(DeviceState.RESUMING)
    assert file is not None
    for image in images:
        if file.write(image) != len(image):
            raise OSError(f"the device took less than the {len(image)} bytes of an image")
    device.set_state(DeviceState.RUNNING)
