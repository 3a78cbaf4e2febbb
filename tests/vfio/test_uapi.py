"""Structures and numbers of linux/vfio.h, against literal bytes."""

import pytest

from precopy.vfio import uapi
from precopy.vfio.uapi import Feature, FeatureFlags


def test_ioctl_numbers() -> None:
    assert uapi.VFIO_DEVICE_RESET == 0x3B6F
    assert uapi.VFIO_DEVICE_FEATURE == 0x3B75
    assert uapi.VFIO_MIG_GET_PRECOPY_INFO == 0x3B79


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (uapi.MigrationFeature(7), "0700000000000000"),
        (uapi.MigState(6, -1), "06000000ffffffff"),
        (uapi.LoggingControl(4096, 2, 0x1000), "00100000000000000200000000000000" + "0010000000000000"),
        (uapi.LoggingRange(1, 2), "01000000000000000200000000000000"),
        (uapi.LoggingReport(1, 2, 3, 4), "".join(f"0{n}00000000000000" for n in (1, 2, 3, 4))),
        (uapi.DataSize(5), "0500000000000000"),
        (uapi.PrecopyInfoStruct(24, 1, 2, 3), "1800000001000000" + "0200000000000000" + "0300000000000000"),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_structures_cross_as_the_kernel_sees_them(value: uapi.MigState, literal: str) -> None:
    assert value.pack().hex() == literal
    assert type(value).parse(value.pack()) == value


def test_feature_header() -> None:
    header = uapi.feature_header(Feature.MIG_DEVICE_STATE, FeatureFlags.SET, 8)
    assert header.hex() == "1000000002000200"


def test_every_feature_has_its_methods_and_size() -> None:
    sizes = {feature: size for feature, (_, size) in uapi.FEATURE_METHODS.items()}
    assert sizes == {1: 8, 2: 8, 6: 24, 7: 0, 8: 32, 9: 8, 12: 0}
    assert uapi.PRECOPY_INFO_SIZE == 24
