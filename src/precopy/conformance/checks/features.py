"""VFIO_DEVICE_FEATURE itself: sizes, flags and methods. The kernel's core answers most of it."""

import errno
from functools import partial
from itertools import product

from precopy.conformance.check import Context, Severity, check
from precopy.conformance.checks.common import R
from precopy.conformance.checks.memory import NONE, NOWHERE, PAGE, Pages
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import (
    FEATURE_METHODS,
    Feature,
    FeatureFlags,
    MigrationFeature,
    MigState,
    feature_header,
)

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


@check(2, severity=Severity.CONTRACT)
def a_header_that_is_nowhere(context: Context) -> None:
    """A structure that can't be read, or whose payload can't, fails with EFAULT and changes nothing."""
    call = context.need_raw_addresses().feature_at
    context.expect_errno("a header at address 16", errno.EFAULT, partial(call, NOWHERE))
    with Pages(2) as pages:
        pages.protect(1, NONE)
        middle = pages.address + PAGE
        context.expect_errno("a header that is half there", errno.EFAULT, partial(call, middle - 4))
    header = feature_header(Feature.MIG_DEVICE_STATE, SET, 8)
    with Pages(2, bytes(PAGE - _HEADER) + header) as pages:
        pages.protect(1, NONE)
        at = pages.address + PAGE - _HEADER
        context.expect_errno("a payload that is not there", errno.EFAULT, partial(call, at))
    context.expect("state", context.state(), R)


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
    """GET and SET of a feature at once, without PROBE, fail with EINVAL and change nothing."""
    raw = context.need_raw()
    stop = MigState(DeviceState.STOP, -1).pack()
    for feature, (_, size) in _present(context).items():
        data = stop if feature is Feature.MIG_DEVICE_STATE else bytes(size)
        context.expect_errno(
            f"GET|SET of {feature.name}",
            errno.EINVAL,
            partial(raw.feature, _HEADER + size, int(feature) | GET | SET, data),
        )
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
    call = context.need_raw_unbound().feature_unbound
    for feature, (methods, size) in _present(context).items():
        method = GET if methods & GET else SET
        for asked in (PROBE, method):
            context.expect_errno(
                f"{asked.name} of {feature.name}",
                errno.EINVAL,
                partial(call, _HEADER + size, int(feature) | asked, bytes(size)),
            )


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
