"""What a device says of itself, and the state it is in at first."""

import errno
import struct
import time
from functools import partial

from precopy.conformance.check import Context, NotApplicable, Severity, check
from precopy.conformance.checks.common import RES, E, R, bring
from precopy.vfio.states import MigrationFlags
from precopy.vfio.uapi import FEATURE_METHODS, Feature, FeatureFlags, MigState

#: Seconds over which a state is looked at.
WATCHED = 0.1


@check(12)
def migration_flags(context: Context) -> None:
    """Feature MIGRATION tells STOP_COPY, and only flags that exist."""
    flags = int(context.flags)
    context.expect_that("flags", bool(flags & MigrationFlags.STOP_COPY), "STOP_COPY", flags)
    context.expect("flags beyond STOP_COPY, P2P and PRE_COPY", flags & ~7, 0)


@check(8, 10, severity=Severity.CONTRACT)
def features_have_their_methods(context: Context) -> None:
    """Each feature that the device has, has exactly the methods of the uAPI; others are not there."""
    for feature, methods in context.device.features().items():
        context.expect(f"methods of {feature.name}", methods, FEATURE_METHODS[feature][0])
        for asked in (FeatureFlags.GET, FeatureFlags.SET):
            has = bool(asked & FEATURE_METHODS[feature][0])
            context.expect(
                f"probe {feature.name} {asked.name}", context.device.probe(feature, asked), has
            )
    context.expect("probe of feature 0xfff0", context.device.probe(0xFFF0), False)


@check(12)
def a_device_that_migrates_has_a_state_and_a_size(context: Context) -> None:
    """A device with MIGRATION has MIG_DEVICE_STATE and MIG_DATA_SIZE."""
    for feature in (Feature.MIGRATION, Feature.MIG_DEVICE_STATE, Feature.MIG_DATA_SIZE):
        context.expect_that(
            f"{feature.name}", feature in context.device.features(), "there", "none"
        )


@check(13, severity=Severity.CONTRACT)
def running_at_first(context: Context) -> None:
    """A device is RUNNING once it has been reset."""
    context.expect("state", context.state(), R)


@check(14)
def get_tells_no_data_fd(context: Context) -> None:
    """GET of MIG_DEVICE_STATE answers the state and a data_fd of -1, also in a session."""
    raw = context.need_raw()
    for state in context.states():
        bring(context, state)
        found = raw.feature(16, Feature.MIG_DEVICE_STATE | FeatureFlags.GET, bytes(8))
        context.expect(f"GET in {state.name}", MigState.parse(found), MigState(state, -1))


@check(23, 14)
def no_state_changes_by_itself(context: Context) -> None:
    """A state stays what was set, however often it is asked for and whatever time goes by."""
    for state in context.states():
        bring(context, state)
        ends = time.monotonic() + WATCHED
        for _ in range(20):
            context.expect(f"GET after SET {state.name}", context.state(), state)
        while time.monotonic() < ends:
            context.expect(f"GET after SET {state.name}", context.state(), state)
            time.sleep(0.01)


@check(15)
def error_cant_be_asked_for(context: Context) -> None:
    """SET of ERROR fails with EINVAL, and the state stays."""
    for state in context.states():
        bring(context, state)
        context.expect_errno(
            f"SET ERROR in {state.name}", errno.EINVAL, lambda: context.set_state(E)
        )
        context.expect(f"GET after it in {state.name}", context.state(), state)


@check(16, severity=Severity.CONTRACT)
def states_that_there_are_not(context: Context) -> None:
    """SET of a number beyond the states fails with EINVAL, and the state stays."""
    for state in context.states():
        bring(context, state)
        for number in (8, 9, 255, 1 << 31, (1 << 32) - 1):
            what = f"SET {number} in {state.name}"
            context.expect_errno(what, errno.EINVAL, partial(context.set_state, number))
            context.expect(f"GET after {what}", context.state(), state)


@check(17)
def states_not_claimed(context: Context) -> None:
    """SET of a state whose flag the device does not have fails with EINVAL, and the state stays."""
    lacking = [each for each in type(R) if each is not E and each not in context.states()]
    if not lacking:
        raise NotApplicable("the device has all states")
    for state in context.states():
        for new in lacking:
            bring(context, state)
            what = f"SET {new.name} in {state.name}"
            context.expect_errno(what, errno.EINVAL, partial(context.set_state, new))
            context.expect(f"GET after {what}", context.state(), state)


@check(21, severity=Severity.CONTRACT)
def a_failed_set_has_no_data_fd(context: Context) -> None:
    """A SET that fails leaves a data_fd of -1 in the structure."""
    in_place = context.need_raw_in_place().feature_in_place
    for state in (R, RES):
        bring(context, state)
        flags = Feature.MIG_DEVICE_STATE | FeatureFlags.SET
        argument = bytearray(struct.pack("=II", 16, flags) + MigState(int(E), 77).pack())
        context.expect_errno("SET ERROR", errno.EINVAL, partial(in_place, argument))
        context.expect("data_fd after it", MigState.parse(bytes(argument[8:])).data_fd, -1)
