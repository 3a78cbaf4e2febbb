"""A device on the fake kernel: features, states, reset, regions."""

import errno
import os
import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.backends.kernel import KernelVfioDevice
from precopy.vfio.device import DeviceIdentity, MigrationFile, VfioDevice
from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags, path
from precopy.vfio.uapi import Feature, FeatureFlags, PrecopyInfoFlags
from tests.backends.kernel.conftest import NAME
from tests.backends.kernel.fake_device import HEADER
from tests.backends.kernel.fake_kernel import (
    BIND_IOMMUFD,
    CDEV,
    DATA_SIZE,
    FEATURE,
    GET,
    GET_REGION_INFO,
    IOMMUFD,
    LOG_START,
    MIGRATION,
    RESET,
    FakeKernel,
)

ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
S = DeviceState


def read_all(file: MigrationFile) -> bytes:
    stream, buffer = b"", bytearray(7)
    while count := file.readinto(buffer):
        stream += buffer[:count]
    return stream


def bound(kernel: FakeKernel, *, vendor: int = 0x15B3) -> KernelVfioDevice:
    """A device without a sysfs."""
    fds = [kernel.open(CDEV), kernel.open(IOMMUFD)]
    kernel.ioctl(fds[0], BIND_IOMMUFD, bytearray(struct.pack("=IIiI", 16, 0, fds[1], 0)))
    who = DeviceIdentity(vendor, 0x101E if vendor else 0, "mlx5_vfio_pci", "", "", "mlx5")
    return KernelVfioDevice(kernel, fds, "device", who)


def test_features(device: VfioDevice) -> None:
    g, s = FeatureFlags.GET, FeatureFlags.SET
    assert device.features() == {
        Feature.MIGRATION: g,
        Feature.MIG_DEVICE_STATE: g | s,
        Feature.DMA_LOGGING_START: s,
        Feature.DMA_LOGGING_STOP: s,
        Feature.DMA_LOGGING_REPORT: g,
        Feature.MIG_DATA_SIZE: g,
        Feature.MIG_PRECOPY_INFO_V2: s,
    }
    assert device.probe(Feature.MIG_DATA_SIZE, FeatureFlags.GET)
    assert not device.probe(Feature.MIG_DATA_SIZE, FeatureFlags.SET)
    assert not device.probe(99)


def test_features_that_a_device_lacks(device: VfioDevice, kernel: FakeKernel) -> None:
    for feature in (LOG_START, DATA_SIZE):
        del kernel.features[feature]
    assert Feature.DMA_LOGGING_START not in device.features()
    assert not device.probe(Feature.MIG_DATA_SIZE)
    with pytest.raises(OSError, match="GET MIG_DATA_SIZE failed in the kernel") as caught:
        device.data_size()
    assert caught.value.errno == errno.ENOTTY
    # A kernel is asked once.
    kernel.errors[FEATURE] = errno.EIO
    assert Feature.MIGRATION in device.features()


def test_a_probe_that_fails_is_no_answer(device: VfioDevice, kernel: FakeKernel) -> None:
    kernel.errors[FEATURE] = errno.EIO
    with pytest.raises(OSError, match="GET MIGRATION failed in the kernel") as caught:
        device.features()
    assert caught.value.errno == errno.EIO


@pytest.mark.parametrize("flags", [ALL, MigrationFlags.STOP_COPY])
def test_migration_flags(device: VfioDevice, kernel: FakeKernel, flags: MigrationFlags) -> None:
    """Bits that this version does not know are left out."""
    kernel.device.flags = flags
    assert int(device.migration_flags) == int(flags)


def test_a_device_that_can_not_be_migrated(device: VfioDevice, kernel: FakeKernel) -> None:
    kernel.features.clear()
    assert device.features() == {}
    calls: list[Callable[[], object]] = [
        lambda: device.migration_flags,
        lambda: device.state,
        lambda: device.set_state(S.STOP),
        device.data_size,
        device.enable_precopy_info_v2,
        device.log_stop,
    ]
    for ask in calls:
        with pytest.raises(OSError, match=NAME) as caught:
            ask()
        assert caught.value.errno == errno.ENOTTY


def test_a_migration(device: KernelVfioDevice) -> None:
    device.region_write(0, 0, b"12345678")
    file = device.set_state(S.PRE_COPY)
    assert file is not None
    with file:
        initial = bytearray(64)
        assert initial[: file.readinto(initial)] == HEADER
        assert device.set_state(S.STOP_COPY) is None
        final = read_all(file)
    assert final == b"12345678"
    device.reset()
    assert device.region_read(0, 0, 8) == bytes(8)
    file = device.set_state(S.RESUMING)
    assert file is not None
    with file:
        for piece in (HEADER, memoryview(final)[:3], bytearray(final[3:])):
            assert file.write(piece) == len(piece)
        assert device.set_state(S.RUNNING) is None
    assert device.region_read(0, 0, 8) == b"12345678"


@given(
    flags=st.sampled_from(
        [ALL, ALL & ~MigrationFlags.P2P, ALL & ~MigrationFlags.PRE_COPY, MigrationFlags.STOP_COPY]
    ),
    wanted=st.lists(st.sampled_from(DeviceState), max_size=12),
)
@settings(deadline=None)
def test_any_walk(flags: MigrationFlags, wanted: list[DeviceState]) -> None:
    """A file is handed out by the arcs that do, no other; no file stays open."""
    kernel = FakeKernel()
    kernel.device.flags = flags
    device = bound(kernel)
    files: list[MigrationFile] = []
    for new in wanted:
        old = device.state
        try:
            steps = path(old, new, flags)
        except OSError:
            with pytest.raises(OSError, match=f"refused {new.name}") as caught:
                device.set_state(new)
            assert caught.value.errno == errno.EINVAL
            assert device.state is old
            continue
        file = device.set_state(new) if old is not S.RESUMING or not steps else None
        if old is S.RESUMING and steps:
            # Nothing has been written, so the way out is barred.
            with pytest.raises(OSError, match=f"refused {new.name}"):
                device.set_state(new)
            assert device.state is S.RESUMING
            continue
        ends = [(before, after) for before, after in zip((old, *steps), steps, strict=False)]
        assert (file is not None) == (bool(ends) and ends[-1] in DATA_FD_ARCS)
        assert device.state is new
        if file is not None:
            files.append(file)
    for file in files:
        file.close()
        file.close()
    device.close()
    assert not kernel.open_files


@pytest.mark.parametrize("new", [0, 8, -1, 1 << 31, 1 << 32, (1 << 32) + 1, 1 << 70])
def test_a_state_that_no_kernel_has(device: VfioDevice, new: int) -> None:
    with pytest.raises(OSError, match="the kernel's driver refused") as caught:
        device.set_state(new)
    assert caught.value.errno == errno.EINVAL
    assert device.state is S.RUNNING


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ETIMEDOUT, errno.ENOTCONN, errno.EIO])
def test_the_kernel_s_errno_comes_through(
    device: VfioDevice, kernel: FakeKernel, code: int
) -> None:
    kernel.errors.update({FEATURE: code, RESET: code})
    for ask in (lambda: device.set_state(S.STOP_COPY), device.reset, device.data_size):
        with pytest.raises(OSError, match=os.strerror(code)) as caught:
            ask()
        assert caught.value.errno == code
        assert NAME in str(caught.value)


def test_a_state_that_this_version_does_not_know(device: VfioDevice, kernel: FakeKernel) -> None:
    kernel.device.state = 9  # type: ignore[assignment]
    with pytest.raises(OSError, match="device state 9") as caught:
        _ = device.state
    assert caught.value.errno == errno.EPROTO


def test_data_size(device: VfioDevice) -> None:
    assert device.data_size() == len(HEADER) + 8


def test_a_closed_device(device: VfioDevice) -> None:
    device.close()
    for ask in (lambda: device.state, device.reset, device.data_size):
        with pytest.raises(OSError, match="is closed") as caught:
            ask()
        assert caught.value.errno == errno.ENODEV


# --- GET_PRECOPY_INFO -----------------------------------------------------------------------------


def test_precopy_info(device: VfioDevice, kernel: FakeKernel) -> None:
    file = device.set_state(S.PRE_COPY)
    assert file is not None
    with file:
        info = file.precopy_info()
        # Without INFOv2 the kernel may leave anything in the flags.
        assert (info.initial_bytes, info.dirty_bytes, info.flags) == (len(HEADER), 0, 0)
        file.readinto(bytearray(5))
        assert file.precopy_info().initial_bytes == len(HEADER) - 5
        assert kernel.device.session is not None
        kernel.device.session.data += bytes(100)
        assert file.precopy_info().dirty_bytes == 100
        # The flags mean something from then on, also of a file that is open.
        device.enable_precopy_info_v2()
        assert file.precopy_info().flags == 0
        kernel.device.reinit = True
        assert file.precopy_info().flags is PrecopyInfoFlags.REINIT
        device.set_state(S.STOP_COPY)
        with pytest.raises(OSError, match="VFIO_MIG_GET_PRECOPY_INFO failed") as caught:
            file.precopy_info()
        assert caught.value.errno == errno.EINVAL


def test_precopy_info_of_a_device_without_precopy(device: VfioDevice, kernel: FakeKernel) -> None:
    kernel.device.flags = MigrationFlags.STOP_COPY
    with pytest.raises(OSError, match="SET MIG_PRECOPY_INFO_V2") as caught:
        device.enable_precopy_info_v2()
    assert caught.value.errno == errno.EINVAL


# --- Regions --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "offset", "length", "fits"),
    [
        (0, 0, 8, True),
        (0, 7, 1, True),
        (0, 8, 0, True),
        (0, 7, 2, False),
        (0, 9, 0, False),
        (0, -1, 1, False),
        (1, 0, 1, False),
        (9, 0, 1, False),
    ],
)
def test_regions_and_their_ends(
    device: KernelVfioDevice, index: int, offset: int, length: int, fits: bool
) -> None:
    if fits:
        device.region_write(index, offset, bytes(range(1, length + 1)))
        assert device.region_read(index, offset, length) == bytes(range(1, length + 1))
        return
    for ask in (
        lambda: device.region_read(index, offset, length),
        lambda: device.region_write(index, offset, bytes(length)),
    ):
        with pytest.raises(OSError, match=NAME) as caught:
            ask()
        assert caught.value.errno == errno.EINVAL


def test_a_region_that_fails(device: KernelVfioDevice, kernel: FakeKernel) -> None:
    kernel.errors.update({"pread": errno.EIO, "pwrite": errno.EFAULT})
    with pytest.raises(OSError, match=f"{NAME}: reading region 0 failed in the kernel") as caught:
        device.region_read(0, 0, 1)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match=f"{NAME}: writing region 0 failed in the kernel") as caught:
        device.region_write(0, 0, b"x")
    assert caught.value.errno == errno.EFAULT


def test_a_region_that_gives_less(device: KernelVfioDevice, kernel: FakeKernel) -> None:
    """A driver that answers only a part: nothing is made up for the rest."""
    kernel.short = 1
    with pytest.raises(OSError, match="region 0 gave 3 of 4 bytes") as caught:
        device.region_read(0, 0, 4)
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError, match="region 0 took 3 of 4 bytes"):
        device.region_write(0, 0, bytes(4))


def test_ids_from_config_space() -> None:
    """An mdev has none in sysfs."""
    kernel = FakeKernel()
    with bound(kernel, vendor=0) as device:
        who = device.identity
        assert (who.vendor_id, who.device_id, who.stream) == (0x15B3, 0x101E, "mlx5")
    assert not kernel.open_files
    kernel.errors[GET_REGION_INFO] = errno.EINVAL
    with bound(kernel, vendor=0) as device:
        assert (device.identity.vendor_id, device.identity.device_id) == (0, 0)


def test_the_fake_is_strict(kernel: FakeKernel) -> None:
    """What the package must not do would be found: an unbound cdev, a structure of another size."""
    fd = kernel.open(CDEV)
    header = struct.pack("=II", 16, MIGRATION | GET)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - a kernel's error has no text
        kernel.ioctl(fd, FEATURE, bytearray(header + bytes(8)))
    assert caught.value.errno == errno.EINVAL
    kernel.close(fd)
    with bound(kernel) as device, pytest.raises(OSError) as caught:  # noqa: PT011
        kernel.ioctl(device.fileno(), FEATURE, bytearray(header + bytes(7)))
    assert caught.value.errno == errno.EINVAL
