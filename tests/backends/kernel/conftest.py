"""A device on a fake kernel, opened under its name in a fake sysfs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from tests.backends.kernel.fake_kernel import CDEV, CONTAINER, GROUP, IOMMUFD, FakeKernel
from tests.backends.kernel.sysfs import Tree

NAME = "vfio:0000:06:00.2"

OpenDevice = Callable[..., KernelVfioDevice]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A machine with one VF on a VFIO driver, all nodes there."""
    tree = Tree(tmp_path)
    for path in (CONTAINER, IOMMUFD):
        tree.node(path)
    tree.pci("0000:06:00.2", CDEV, GROUP, driver="mlx5_vfio_pci", vfio="vfio0")
    return tree


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    kernel = FakeKernel()
    yield kernel
    # Whatever a test did, every file is closed again.
    assert not kernel.open_files


@pytest.fixture
def open_device(tree: Tree, kernel: FakeKernel) -> Iterator[OpenDevice]:
    opened: list[KernelVfioDevice] = []

    def open_device(name: str = NAME) -> KernelVfioDevice:
        opened.append(open_kernel_device(name, root=tree.root, kernel=kernel))
        return opened[-1]

    yield open_device
    for each in opened:
        each.close()


@pytest.fixture
def device(open_device: OpenDevice) -> KernelVfioDevice:
    return open_device()
