"""Names, and what sysfs tells of a device."""

import errno
from pathlib import Path

import pytest

from precopy.backends import DeviceNameError
from precopy.backends.kernel.discovery import (
    Name,
    find,
    identity,
    is_kernel_name,
    list_found,
    parse,
)
from tests.backends.kernel.fake_kernel import CDEV, GROUP, NOIOMMU_GROUP
from tests.backends.kernel.sysfs import Tree

VF, UUID = "0000:06:00.2", "83b8f4f2-509f-382f-3c1e-e6bfe0fa1001"


@pytest.fixture
def empty(tmp_path: Path) -> Tree:
    (tmp_path / "sys").mkdir()
    return Tree(tmp_path)


def mtty(tree: Tree, *nodes: str, **options: str) -> Path:
    return tree.mdev(UUID, *nodes, parent=tree.root / "sys/devices/virtual/mtty/mtty", **options)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        (f"vfio:{VF}", True),
        (VF, True),
        (VF.upper(), True),
        ("vfio:10000:01:00.0", True),
        (UUID, True),
        (UUID.upper(), True),
        (f"vfio:{UUID}?attach=group", True),
        ("/dev/vfio/devices/vfio0", True),
        ("/dev/vfio/devices/noiommu-vfio3", True),
        # A wrong option is told of as that, not as a name that nobody knows.
        (f"{VF}?nonsense", True),
        ("vfio:06:00.2", False),
        ("vfio:0000:06:00.8", False),
        ("vfio:/dev/vfio/devices/vfio0", False),
        ("/dev/vfio/12", False),
        ("/dev/vfio/devices/vfio0/..", False),
        ("sim:mlx5", False),
        ("", False),
    ],
)
def test_which_names_are_the_kernel_s(name: str, known: bool) -> None:
    assert is_kernel_name(name) is known


@pytest.mark.parametrize(
    ("name", "attach"),
    [(VF, None), (f"{VF}?attach=cdev", "cdev"), (f"{VF}?attach=group", "group"), (f"{VF}?", None)],
)
def test_the_option_of_a_name(name: str, attach: str | None) -> None:
    assert parse(name) == Name(VF, attach)


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("nonsense=1", "unknown option 'nonsense'; there is attach"),
        ("attach=iommufd", "attach is cdev or group, not 'iommufd'"),
        ("attach=", "attach is cdev or group, not ''"),
        ("attach", "attach"),
        ("attach=cdev&group", "group"),
    ],
)
def test_a_wrong_option_is_one_clear_line(query: str, text: str) -> None:
    with pytest.raises(DeviceNameError) as caught:
        parse(f"vfio:{VF}?{query}")
    said = str(caught.value)
    assert said.startswith(f"vfio:{VF}?{query}: ")
    assert text in said
    assert "\n" not in said


def test_a_device_that_a_vfio_driver_has(empty: Tree) -> None:
    real = empty.pci(VF, CDEV, GROUP, driver="mlx5_vfio_pci", vfio="vfio0")
    for name in (f"vfio:{VF}", VF, "/dev/vfio/devices/vfio0"):
        found = find(parse(name), empty.root)
        assert (found.name, found.sysfs, found.driver) == (f"vfio:{VF}", real, "mlx5_vfio_pci")
        assert (found.cdev, found.group, found.noiommu) == (CDEV, GROUP, False)


@pytest.mark.parametrize(
    ("driver", "bound"), [("mlx5_core", "bound to mlx5_core"), ("", "bound to no driver")]
)
def test_a_device_that_no_vfio_driver_has(empty: Tree, driver: str, bound: str) -> None:
    # Its group has a node, for the sake of the device beside it.
    empty.pci(VF, driver=driver)
    empty.pci("0000:06:00.3", CDEV, GROUP, driver="vfio-pci", vfio="vfio0")
    text = f"it is {bound}, not to a VFIO driver: .* into driver_override"
    with pytest.raises(OSError, match=text) as caught:
        find(parse(VF), empty.root)
    assert caught.value.errno == errno.ENODEV
    assert [each.name for each in list_found(empty.root)] == ["vfio:0000:06:00.3"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (VF, "no such pci device"),
        (UUID, "no such mdev device"),
        ("/dev/vfio/devices/vfio0", "no such VFIO device"),
        ("/dev/vfio/devices/noiommu-vfio0", "no such VFIO device"),
    ],
)
def test_a_device_that_is_not_there(empty: Tree, name: str, text: str) -> None:
    with pytest.raises(OSError, match=text) as caught:
        find(parse(name), empty.root)
    assert caught.value.errno == errno.ENODEV
    assert list_found(empty.root) == []


def test_an_mdev(empty: Tree) -> None:
    mtty(empty, CDEV, GROUP)
    found = find(parse(f"vfio:{UUID.upper()}"), empty.root)
    assert (found.name, found.driver, found.kind) == (UUID, "mtty", "mtty-2")
    assert list_found(empty.root) == [found]
    # What its type has is what its state needs, so another type refuses it.
    who = identity(found, CDEV)
    assert who.needs == who.offers == frozenset({"mdev type mtty-2"})
    assert (who.vendor_id, who.stream, who.details) == (0, "mtty", {"node": CDEV})


@pytest.mark.parametrize(("parent_driver", "driver"), [("i915", "i915"), ("", "0000:00:02.0")])
def test_an_mdev_of_a_kernel_with_one_driver_for_all(
    empty: Tree, parent_driver: str, driver: str
) -> None:
    """vfio_mdev says nothing of the device (before Linux 5.19); the parent does."""
    parent = empty.pci("0000:00:02.0", driver=parent_driver, group="3")
    empty.mdev(UUID, GROUP, parent=parent, driver="vfio_mdev", kind="i915-GVTg_V5_4", vfio="")
    found = find(parse(UUID), empty.root)
    assert (found.driver, found.cdev, found.group) == (driver, None, GROUP)


def test_a_device_without_an_iommu(empty: Tree) -> None:
    node = "/dev/vfio/devices/noiommu-vfio0"
    empty.pci(VF, node, NOIOMMU_GROUP, driver="vfio-pci", vfio="noiommu-vfio0")
    for name in (VF, node):
        found = find(parse(name), empty.root)
        assert (found.cdev, found.group, found.noiommu) == (node, NOIOMMU_GROUP, True)
    with pytest.raises(OSError, match="no such VFIO device"):
        find(parse("/dev/vfio/devices/vfio0"), empty.root)


def test_a_kernel_that_has_groups_only(empty: Tree) -> None:
    empty.pci(VF, GROUP, driver="vfio-pci", vfio="")
    empty.pci("0000:00:01.0", driver="pcieport")
    (found,) = list_found(empty.root)
    assert (found.name, found.cdev, found.group) == (f"vfio:{VF}", None, GROUP)
    assert find(parse(VF), empty.root) == found


def test_a_device_without_nodes_is_listed(empty: Tree) -> None:
    """In a container that has a /dev of its own: it is there, and can't be opened."""
    empty.pci(VF, driver="mlx5_vfio_pci", vfio="vfio0")
    (found,) = list_found(empty.root)
    assert (found.cdev, found.group) == (None, None)
    assert find(parse(VF), empty.root) == found


def test_a_device_is_listed_once(empty: Tree) -> None:
    empty.pci("0000:06:00.4", driver="mlx5_vfio_pci", vfio="vfio2", group="13")
    mtty(empty, vfio="vfio1")
    empty.pci(VF, driver="vfio-pci", vfio="vfio0")
    assert [each.name for each in list_found(empty.root)] == [
        UUID,
        f"vfio:{VF}",
        "vfio:0000:06:00.4",
    ]


@pytest.mark.parametrize(
    ("driver", "stream"),
    [
        ("mlx5_vfio_pci", "mlx5"),
        ("hisi_acc_vfio_pci", "hisi_acc"),
        ("xe-vfio-pci", "xe"),
        ("later_vfio_pci", "later_vfio_pci"),
    ],
)
def test_who_a_device_is(empty: Tree, driver: str, stream: str) -> None:
    empty.pci(VF, CDEV, driver=driver, vfio="vfio0", ids=("0x19e5", "0xa251"))
    who = identity(find(parse(VF), empty.root), CDEV)
    assert (who.vendor_id, who.device_id) == (0x19E5, 0xA251)
    assert (who.driver, who.stream, who.needs) == (driver, stream, frozenset())


@pytest.mark.parametrize("text", ["", "nonsense\n"])
def test_ids_that_say_nothing(empty: Tree, text: str) -> None:
    real = empty.pci(VF, CDEV, driver="vfio-pci", vfio="vfio0")
    (real / "vendor").write_text(text)
    assert identity(find(parse(VF), empty.root), CDEV).vendor_id == 0
