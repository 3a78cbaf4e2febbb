"""QEMU, a kernel for its guest, and a server, each test's own; what is missing is said in one line."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from precopy.lab import LabError
from precopy.lab import guest_kernel as kernels
from precopy.lab.guest_kernel import GuestKernel
from precopy.lab.qemu import require
from tests.interop.vfio_user.machine import INIT, Machine
from tests.interop.vfio_user.served import Served

#: Starts a QEMU on the server, with what :class:`Machine` takes besides.
Start = Callable[..., Machine]


@pytest.fixture(scope="session")
def qemu() -> Path:
    try:
        return require()
    except LabError as error:
        pytest.exit(f"precopy: lab: {error}", returncode=1)


@pytest.fixture(scope="session")
def guest_kernel() -> GuestKernel:
    try:
        return GuestKernel(kernels.require())
    except LabError as error:
        pytest.exit(f"precopy: lab: {error}", returncode=1)


@pytest.fixture(scope="session")
def initramfs(guest_kernel: GuestKernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("guest") / "initramfs"
    path.write_bytes(guest_kernel.initramfs(INIT, ["mlx5_core"]))
    return path


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server; it has to live to the end of the test, and to end as it is asked to."""
    with Served(tmp_path) as made:
        yield made
        assert made.lives, made.last_words()
        assert made.close() == 0, made.last_words()


@pytest.fixture
def start(
    qemu: Path, guest_kernel: GuestKernel, initramfs: Path, served: Served, tmp_path: Path
) -> Start:
    def machine(**options: bool) -> Machine:
        return Machine(qemu, guest_kernel, initramfs, served, tmp_path, **options)

    return machine
