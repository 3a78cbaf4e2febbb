"""The two ways to a device, and every way in which they fail."""

import errno
from collections.abc import Callable

import pytest

from precopy.backends import DeviceNameError
from precopy.backends.kernel import list_devices, open_kernel_device
from tests.backends.kernel.conftest import NAME, OpenDevice
from tests.backends.kernel.fake_kernel import (
    BIND_IOMMUFD,
    CDEV,
    CHECK_EXTENSION,
    CONTAINER,
    GET_API_VERSION,
    GROUP,
    GROUP_GET_DEVICE_FD,
    GROUP_GET_STATUS,
    GROUP_SET_CONTAINER,
    IOMMUFD,
    NOIOMMU,
    NOIOMMU_GROUP,
    SET_IOMMU,
    TYPE1,
    FakeKernel,
)
from tests.backends.kernel.sysfs import Tree

BY_GROUP = f"{NAME}?attach=group"


def opened(kernel: FakeKernel) -> list[str]:
    return [node.what for node in kernel.open_files.values()]


@pytest.mark.parametrize(
    ("name", "node", "files"),
    [
        (NAME, CDEV, [CDEV, IOMMUFD]),
        (f"{NAME}?attach=cdev", CDEV, [CDEV, IOMMUFD]),
        (BY_GROUP, GROUP, [CONTAINER, GROUP, "device"]),
    ],
)
def test_each_way(
    open_device: OpenDevice, kernel: FakeKernel, name: str, node: str, files: list[str]
) -> None:
    device = open_device(name)
    assert device.name == name
    assert device.identity.details == {"node": node}
    assert opened(kernel) == files
    assert kernel.open_files[device.fileno()].attached
    device.close()
    device.close()
    assert opened(kernel) == []
    with pytest.raises(OSError, match="is closed") as caught:
        device.fileno()
    assert caught.value.errno == errno.ENODEV


def test_the_device_s_own_file_is_closed_first(open_device: OpenDevice, kernel: FakeKernel) -> None:
    device = open_device(BY_GROUP)
    own = device.fileno()
    device.close()
    assert kernel.closed[0] == own
    assert len(kernel.closed) == 3


@pytest.mark.parametrize("code", [errno.ENOENT, errno.ENXIO, errno.ENODEV])
def test_without_an_iommufd_the_group_is_taken(
    open_device: OpenDevice, kernel: FakeKernel, code: int
) -> None:
    kernel.errors[IOMMUFD] = code
    assert open_device().identity.details == {"node": GROUP}
    assert opened(kernel) == [CONTAINER, GROUP, "device"]


def test_a_kernel_without_bind_takes_the_group(open_device: OpenDevice, kernel: FakeKernel) -> None:
    kernel.errors[BIND_IOMMUFD] = errno.ENOTTY
    assert open_device().identity.details == {"node": GROUP}
    assert opened(kernel) == [CONTAINER, GROUP, "device"]


def test_without_a_node_of_its_own_the_group_is_taken(open_device: OpenDevice, tree: Tree) -> None:
    (tree.root / CDEV[1:]).unlink()
    assert open_device().identity.details == {"node": GROUP}


@pytest.mark.parametrize("types", [set[int](), {NOIOMMU}])
def test_an_iommufd_takes_the_part_of_a_container(
    open_device: OpenDevice, kernel: FakeKernel, types: set[int]
) -> None:
    """Where the container has no IOMMU type that fits; and where there is none."""
    kernel.types = types
    open_device(BY_GROUP).close()
    kernel.nodes.remove(CONTAINER)
    open_device(BY_GROUP)
    assert opened(kernel) == [IOMMUFD, GROUP, "device"]


def test_type1_where_there_is_no_better(open_device: OpenDevice, kernel: FakeKernel) -> None:
    kernel.types = {TYPE1}
    open_device(BY_GROUP)
    assert opened(kernel) == [CONTAINER, GROUP, "device"]
    # One question for each type, one type set.
    assert [kernel.calls.count(each) for each in (CHECK_EXTENSION, SET_IOMMU)] == [2, 1]


@pytest.mark.parametrize("nodes", [(CONTAINER, IOMMUFD), (IOMMUFD,)])
def test_a_group_without_an_iommu(tree: Tree, kernel: FakeKernel, nodes: tuple[str, ...]) -> None:
    tree.pci("0000:07:00.0", NOIOMMU_GROUP, driver="vfio-pci", group="12", vfio="")
    (tree.root / GROUP[1:]).unlink()
    kernel.nodes = {NOIOMMU_GROUP, *nodes}
    kernel.types = {NOIOMMU}
    kernel.device_name = "0000:07:00.0"
    device = open_kernel_device("vfio:0000:07:00.0", root=tree.root, kernel=kernel)
    assert opened(kernel) == [nodes[0], NOIOMMU_GROUP, "device"]
    device.close()


Change = Callable[[FakeKernel], object]


def failing(what: str | int, code: int) -> Change:
    return lambda kernel: kernel.errors.update({what: code})


def only(*nodes: str) -> Change:
    return lambda kernel: setattr(kernel, "nodes", set(nodes))


def having(name: str, value: object) -> Change:
    return lambda kernel: setattr(kernel, name, value)


@pytest.mark.parametrize(
    ("way", "change", "code", "text"),
    [
        # The nodes.
        ("cdev", failing(CDEV, errno.EACCES), errno.EACCES, f"{CDEV}: no permission: run as root"),
        ("cdev", failing(CDEV, errno.EPERM), errno.EPERM, "needs CAP_SYS_RAWIO"),
        ("cdev", failing(CDEV, errno.EIO), errno.EIO, f"{CDEV}: can not be opened"),
        ("cdev", only(IOMMUFD), errno.ENOENT, f"{CDEV}: it is not there"),
        ("cdev", only(CDEV), errno.ENOENT, f"{IOMMUFD}: it is not there"),
        ("cdev", failing(IOMMUFD, errno.EACCES), errno.EACCES, f"{IOMMUFD}: no permission"),
        ("group", failing(CONTAINER, errno.EACCES), errno.EACCES, f"{CONTAINER}: no permission"),
        ("group", failing(GROUP, errno.EACCES), errno.EACCES, f"{GROUP}: no permission"),
        ("group", failing(GROUP, errno.EBUSY), errno.EBUSY, f"{GROUP}: it is in use"),
        ("group", only(GROUP), errno.ENOENT, f"neither {CONTAINER} nor {IOMMUFD} is there"),
        # The calls.
        ("cdev", failing(BIND_IOMMUFD, errno.EINVAL), errno.EINVAL, "in use by another process"),
        ("cdev", failing(BIND_IOMMUFD, errno.EBUSY), errno.EBUSY, "in use by way of its group"),
        ("cdev", failing(BIND_IOMMUFD, errno.EACCES), errno.EACCES, "VF token"),
        ("cdev", failing(BIND_IOMMUFD, errno.ENOTTY), errno.ENOTTY, "BIND_IOMMUFD: failed"),
        ("group", having("viable", False), errno.EBUSY, "is bound to a host driver"),
        ("group", having("api_version", 1), errno.EINVAL, "API version 1"),
        ("group", failing(GET_API_VERSION, errno.ENOTTY), errno.ENOTTY, "VFIO_GET_API_VERSION"),
        ("group", failing(CHECK_EXTENSION, errno.EIO), errno.EIO, "VFIO_CHECK_EXTENSION: failed"),
        ("group", failing(GROUP_GET_STATUS, errno.ENODEV), errno.ENODEV, "VFIO_GROUP_GET_STATUS"),
        ("group", failing(GROUP_SET_CONTAINER, errno.EBUSY), errno.EBUSY, "has a host driver"),
        ("group", failing(SET_IOMMU, errno.EPERM), errno.EPERM, "VFIO_SET_IOMMU: no permission"),
        ("group", failing(GROUP_GET_DEVICE_FD, errno.EBUSY), errno.EBUSY, "it is in use"),
        ("group", having("device_name", "other"), errno.ENODEV, "VFIO_GROUP_GET_DEVICE_FD: failed"),
    ],
)
def test_what_is_in_the_way(
    open_device: OpenDevice, kernel: FakeKernel, way: str, change: Change, code: int, text: str
) -> None:
    change(kernel)
    name = f"{NAME}?attach={way}"
    with pytest.raises(OSError, match=r"\(E[A-Z]+: ") as caught:
        open_device(name)
    assert caught.value.errno == code
    said = caught.value.strerror or ""
    assert text in said
    assert "\n" not in said
    # Who shows the text has the name to put before it.
    assert caught.value.filename == name
    assert NAME not in said
    assert opened(kernel) == []


@pytest.mark.parametrize(
    ("nodes", "text"),
    [
        ((CONTAINER, IOMMUFD), f"{CONTAINER} and {IOMMUFD} offers no IOMMU type that fits"),
        ((CONTAINER,), f"{CONTAINER} offers no IOMMU type that fits: load vfio_iommu_type1"),
    ],
)
def test_no_iommu_type_that_fits(
    open_device: OpenDevice, kernel: FakeKernel, nodes: tuple[str, ...], text: str
) -> None:
    kernel.types, kernel.iommufd_types = {NOIOMMU}, set()
    kernel.nodes = {GROUP, *nodes}
    with pytest.raises(OSError, match=text) as caught:
        open_device(BY_GROUP)
    assert caught.value.errno == errno.ENOTTY
    assert opened(kernel) == []


def test_no_iommu_type_for_a_device_without_an_iommu(tree: Tree, kernel: FakeKernel) -> None:
    tree.pci("0000:07:00.0", NOIOMMU_GROUP, driver="vfio-pci", group="12", vfio="")
    (tree.root / GROUP[1:]).unlink()
    kernel.nodes = {CONTAINER, NOIOMMU_GROUP}
    with pytest.raises(OSError, match="enable_unsafe_noiommu_mode") as caught:
        open_kernel_device("vfio:0000:07:00.0", root=tree.root, kernel=kernel)
    assert caught.value.errno == errno.ENOTTY


@pytest.mark.parametrize(("way", "gone"), [("cdev", CDEV), ("group", GROUP)])
def test_a_way_that_the_kernel_does_not_offer(
    open_device: OpenDevice, tree: Tree, kernel: FakeKernel, way: str, gone: str
) -> None:
    """What was asked for by name is not replaced by something else."""
    (tree.root / gone[1:]).unlink()
    with pytest.raises(OSError, match="has no node for it") as caught:
        open_device(f"{NAME}?attach={way}")
    assert caught.value.errno == errno.ENOENT
    assert kernel.calls == []


def test_no_node_at_all(open_device: OpenDevice, tree: Tree) -> None:
    for path in (CDEV, GROUP):
        (tree.root / path[1:]).unlink()
    assert list_devices(tree.root) == [NAME]
    with pytest.raises(OSError, match="/dev/vfio/devices has no node for it"):
        open_device()


def test_a_wrong_option_opens_nothing(open_device: OpenDevice, kernel: FakeKernel) -> None:
    with pytest.raises(DeviceNameError, match="unknown option"):
        open_device(f"{NAME}?attached=group")
    assert kernel.calls == []


def test_a_device_is_opened_once(open_device: OpenDevice, kernel: FakeKernel) -> None:
    open_device()
    with pytest.raises(OSError, match="in use by another process") as caught:
        open_device()
    assert caught.value.errno == errno.EINVAL
    assert opened(kernel) == [CDEV, IOMMUFD]


def test_a_file_that_can_not_be_closed_hides_nothing(
    open_device: OpenDevice, kernel: FakeKernel
) -> None:
    device = open_device(BY_GROUP)
    kernel.errors["close"] = errno.EIO
    device.close()
    assert opened(kernel) == []
