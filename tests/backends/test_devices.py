"""Devices by name, and what ``precopy devices`` says of them."""

import errno
import json

import pytest
from click.testing import CliRunner

from precopy.backends import DeviceNameError, list_devices, open_device
from precopy.cli.devices import COLUMNS, describe, devices
from precopy.vfio.guest import Opened
from tests.backends.kernel.fake_kernel import CDEV, GROUP, IOMMUFD, FakeKernel
from tests.backends.kernel.test_device import bound

#: A device that no machine has: the last function of the last bus of the last domain.
NOWHERE = "vfio:ffff:ff:1f.7"


@pytest.mark.parametrize("name", ["", "nowhere", "vfio:", "vfio:06:00.2", "/dev/vfio/12"])
def test_a_name_that_nobody_knows(name: str) -> None:
    with pytest.raises(DeviceNameError, match="no such device; names are sim:mlx5, vfio-user:"):
        open_device(name)


@pytest.mark.parametrize("option", ["nonsense=1", "attach=vfio", "attach"])
def test_a_wrong_option(option: str) -> None:
    with pytest.raises(DeviceNameError, match=option.partition("=")[0]):
        open_device(f"{NOWHERE}?{option}")


@pytest.mark.parametrize("option", ["", "?attach=group"])
def test_a_device_that_is_not_there(option: str) -> None:
    with pytest.raises(OSError, match="no such pci device on this machine") as caught:
        open_device(f"{NOWHERE}{option}", target=True)
    assert caught.value.errno == errno.ENODEV
    assert caught.value.filename == f"{NOWHERE}{option}"


def test_the_simulated_device_is_always_there() -> None:
    done = CliRunner().invoke(devices, ["--json"])
    assert done.exit_code == 0
    rows = json.loads(done.stdout)["devices"]
    assert [row["name"] for row in rows] == ["sim:mlx5", *list_devices()]
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["id"], rows[0]["error"]) == ("15b3:101e", "")
    assert rows[0]["migration"] == "STOP_COPY P2P PRE_COPY"


def test_a_device_is_a_line_where_no_terminal_is() -> None:
    done = CliRunner().invoke(devices)
    assert done.exit_code == 0
    (line,) = (line for line in done.stdout.splitlines() if "sim:mlx5 " in line)
    assert "STOP_COPY P2P PRE_COPY" in line
    assert "15b3:101e" in line
    assert "migration_in_chunks" in done.stdout


def test_a_kernel_s_device() -> None:
    kernel = FakeKernel()
    row = describe("name", lambda name: Opened(bound(kernel)))
    assert row == {
        "name": "name",
        "driver": "mlx5_vfio_pci",
        "id": "15b3:101e",
        "migration": "STOP_COPY P2P PRE_COPY",
        "features": "DMA logging, DATA_SIZE, INFOv2",
        "notes": "",
        "error": "",
    }
    assert not kernel.open_files


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (0, "its driver can't migrate it"),
        (errno.EIO, "device: VFIO_DEVICE_FEATURE GET MIGRATION failed in the kernel"),
    ],
)
def test_a_device_that_answers_no(code: int, text: str) -> None:
    kernel = FakeKernel(CDEV, GROUP, IOMMUFD)
    device = bound(kernel)
    if code:
        kernel.errors[0x3B75] = code
    kernel.features.clear()
    row = describe("device", lambda name: Opened(device))
    assert row["error"].startswith(text)
    assert (row["driver"], row["id"], row["migration"]) == ("mlx5_vfio_pci", "15b3:101e", "")
    assert not kernel.open_files


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.EBUSY, "it is in use", "device"), "it is in use"),
        (OSError("two\nlines"), "two lines"),
        (DeviceNameError("device: unknown option"), "device: unknown option"),
    ],
)
def test_a_device_that_can_not_be_opened(error: Exception, text: str) -> None:
    def refuse(name: str) -> Opened:
        raise error

    row = describe("device", refuse)
    assert (row["name"], row["error"], row["driver"]) == ("device", text, "")
