"""Ways to have the same device: in this process, and through a vfio-user socket."""

import contextlib
import errno
import select
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from precopy.backends.sim import open_sim
from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.frontends.vfio_user import Server
from precopy.vfio.device import MigrationFile, VfioDevice
from precopy.vfio_user import version

NAME = "sim:mlx5?log_max_qp=8&first_session=1&page_track=1&state=64K&guest=0"


@dataclass
class Way:
    """``device`` as it is held to the contract; ``behind``: the one that does the work."""

    device: VfioDevice
    behind: VfioDevice
    #: DMA that the device does to an address.
    dma_write: Callable[[int, bytes], None]
    #: Whether what the protocol itself lacks is there.
    whole: bool = True


@contextlib.contextmanager
def in_process(more: str = "") -> Iterator[Way]:
    opened = open_sim(f"{NAME}{more}", served=True)
    assert opened.face is not None
    with opened.device as device:
        opened.face.dma.map(0, memoryview(bytearray(1 << 20)))
        yield Way(device, device, opened.face.dma.write)


@contextlib.contextmanager
def through_a_socket(more: str = "", *, extension: int = 1) -> Iterator[Way]:
    opened = open_sim(f"{NAME}{more}", served=True)
    face = opened.face
    assert face is not None
    ours = replace(version.OURS, extension=extension)
    with opened.device as behind, tempfile.TemporaryDirectory(prefix="contract") as folder:
        server = Server(behind, face, f"{folder}/socket")
        thread = server.start()
        try:
            with VfioUserDevice(Client(server.path, ours), "vfio-user", stream="mlx5") as device:
                face.dma.map(0, memoryview(bytearray(1 << 20)))
                yield Way(device, behind, face.dma.write, whole=extension > 0)
        finally:
            server.stop()
            thread.join(20)


@contextlib.contextmanager
def without_extension(more: str = "") -> Iterator[Way]:
    with through_a_socket(more, extension=0) as way:
        yield way


WAYS: dict[str, Callable[..., AbstractContextManager[Way]]] = {
    "in process": in_process,
    "through a socket": through_a_socket,
    "without the extension": without_extension,
}


def read_some(file: MigrationFile, size: int = 1 << 16) -> bytes:
    buffer = bytearray(size)
    return bytes(buffer[: file.readinto(buffer)])


def read_all(file: MigrationFile, size: int = 1 << 16) -> bytes:
    """Everything up to an end, temporary or permanent."""
    stream = b""
    with contextlib.suppress(OSError):
        while piece := read_some(file, size):
            stream += piece
    return stream


def write_all(file: MigrationFile, stream: bytes, size: int = 1 << 20) -> None:
    view = memoryview(stream)
    while view:
        view = view[file.write(view[:size]) :]


def name_of(work: Callable[[], object]) -> str:
    """The errno's name that ``work`` raises, "" where it does not."""
    try:
        work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return ""


POLL_ENDED = select.POLLIN | select.POLLRDHUP
