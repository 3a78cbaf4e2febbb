"""VFIO_DEVICE_FEATURE itself: sizes, flags and methods. The kernel's core answers most of it."""

import errno
from functools import partial
from itertools import product

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import R
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import FEATURE_METHODS, Feature, FeatureFlags, MigrationFeature, MigState

GET, SET, PROBE = FeatureFlags
_HEADER = 8
#: An index that Linux does not have.
_UNKNOWN = 0xFFF0


@check(1, severity=Severity.CONTRACT)
def a_header_that_is_too_short(context: Context) -> None:
    """A call with argsz below the header's 8 bytes fails with EINVAL."""
    raw = context.need_raw()
    for argsz in range(_HEADER):
        flags = Feature.MIG_DEVICE_STATE | GET
        context.expect_errno(
            f"argsz {argsz}",
            errno.EINVAL,
            partial(raw.feature, argsz, flags, bytes(8)),
        )


@check(2, 52, 76, 82, severity=Severity.CONTRACT)
def bad_pointers(context: Context) -> None:
    """A pointer to memory that can't be read or written fails with EFAULT."""
    call = getattr(context.need_raw(), "feature_at", None)
    if call is None:
        raise NotApplicable("this backend takes no addresses, so none can be wrong")
    context.expect_errno("a header at address 16", errno.EFAULT, lambda: call(16))


@check(3, severity=Severity.CONTRACT)
def flag_bits_that_there_are_not(context: Context) -> None:
    """Any flag bit from 19 on fails with EINVAL."""
    raw = context.need_raw()
    for bit in range(19, 32):
        for methods in (GET, PROBE):
            flags = Feature.MIG_DEVICE_STATE | methods | 1 << bit
            context.expect_errno(
                f"flags {flags:#x}",
                errno.EINVAL,
                partial(raw.feature, 16, flags, bytes(8)),
            )


@check(4)
def both_methods_without_probe(context: Context) -> None:
    """GET and SET at once, without PROBE, fail with EINVAL and change nothing."""
    raw = context.need_raw()
    flags = Feature.MIG_DEVICE_STATE | GET | SET
    data = MigState(DeviceState.STOP, -1).pack()
    context.expect_errno("GET|SET", errno.EINVAL, lambda: raw.feature(16, flags, data))
    context.expect("state", context.state(), R)


@check(5, severity=Severity.CONTRACT)
def no_method(context: Context) -> None:
    """Neither GET nor SET nor PROBE fails with EINVAL."""
    raw = context.need_raw()
    for feature, (_, size) in _present(context).items():
        context.expect_errno(
            f"{feature.name}, no method",
            errno.EINVAL,
            partial(raw.feature, _HEADER + size, int(feature), bytes(size)),
        )


@check(6, 7, 10)
def probes(context: Context) -> None:
    """PROBE succeeds with the header alone for supported methods, and fails with EINVAL for others."""
    raw = context.need_raw()
    for feature, (methods, _) in _present(context).items():
        for asked in (0, GET, SET, GET | SET):
            what = f"PROBE|{asked:#x} of {feature.name}"
            context.step(what)
            flags = int(feature) | PROBE | asked
            if asked & ~methods:
                context.expect_errno(what, errno.EINVAL, partial(raw.feature, _HEADER, flags, b""))
            else:
                context.expect(f"the answer to {what}", raw.feature(_HEADER, flags, b""), b"")


@check(8, severity=Severity.CONTRACT)
def features_that_there_are_not(context: Context) -> None:
    """An index that the device has not fails with ENOTTY, whatever the methods."""
    raw = context.need_raw()
    lacking = [int(each) for each in FEATURE_METHODS if each not in context.device.features()]
    for index, methods in product([_UNKNOWN, *lacking], (0, GET, SET, PROBE, PROBE | GET | SET)):
        # Features of the core that the device's flags forbid are EINVAL when they are used.
        if index == Feature.MIG_PRECOPY_INFO_V2 and index in lacking:
            continue
        flags = index | methods
        context.expect_errno(
            f"feature {index}, methods {methods:#x}",
            errno.ENOTTY,
            partial(raw.feature, _HEADER + 32, flags, bytes(32)),
        )


@check(9, severity=Severity.CONTRACT)
def payload_sizes(context: Context) -> None:
    """A payload that is too short fails with EINVAL; room to spare is no harm."""
    raw = context.need_raw()
    for feature, (methods, size) in _present(context).items():
        method = GET if methods & GET else SET
        for short in range(0, size, 4):
            context.expect_errno(
                f"{feature.name} with {short} bytes",
                errno.EINVAL,
                partial(raw.feature, _HEADER + short, int(feature) | method, bytes(short)),
            )
    found = raw.feature(_HEADER + 64, Feature.MIGRATION | GET, bytes(64))
    context.expect("flags, room to spare", MigrationFeature.parse(found).flags, int(context.flags))


@check(10, severity=Severity.CONTRACT)
def methods_that_a_feature_has_not(context: Context) -> None:
    """GET of what can only be set, and SET of what can only be got, fail with EINVAL."""
    raw = context.need_raw()
    for feature, (methods, size) in _present(context).items():
        for method in (GET, SET):
            if not method & methods:
                context.expect_errno(
                    f"{method.name} of {feature.name}",
                    errno.EINVAL,
                    partial(raw.feature, _HEADER + size, int(feature) | method, bytes(size)),
                )


@check(11, severity=Severity.CONTRACT)
def a_device_that_is_not_bound(context: Context) -> None:
    """A character device that is not bound to an IOMMU context fails every call with EINVAL."""
    context.need_raw()
    raise NotApplicable("devices are opened bound; one that is not can't be asked here")


@check(63)
def precopy_info_v2_can_be_set_again(context: Context) -> None:
    """SET of MIG_PRECOPY_INFO_V2 succeeds any number of times, also after a reset, with any payload."""
    if not context.flags & MigrationFlags.PRE_COPY:
        codes = (errno.EINVAL, errno.ENOTTY)
        context.expect_errno("SET without PRE_COPY", codes, context.device.enable_precopy_info_v2)
        return
    context.need_feature(Feature.MIG_PRECOPY_INFO_V2)
    for _ in range(2):
        context.step("SET MIG_PRECOPY_INFO_V2, twice")
        context.device.enable_precopy_info_v2()
        context.device.enable_precopy_info_v2()
        context.reset()
    if context.raw is not None:
        context.step("SET MIG_PRECOPY_INFO_V2 with a payload")
        context.raw.feature(_HEADER + 8, Feature.MIG_PRECOPY_INFO_V2 | SET, b"\xa5" * 8)


def _present(context: Context) -> dict[Feature, tuple[FeatureFlags, int]]:
    return {each: FEATURE_METHODS[each] for each in context.device.features()}
