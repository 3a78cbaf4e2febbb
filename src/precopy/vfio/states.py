"""The states of a migrating device and the arcs between them.

Everything that decides which state may follow which lives in this module; all others ask it.
Source: ``enum vfio_device_mig_state`` and the text around it in include/uapi/linux/vfio.h, and
``vfio_mig_get_next_state`` in drivers/vfio/vfio_main.c (Linux 7.3).
"""

import enum
import errno

from precopy.vfio.errors import refuse


class DeviceState(enum.IntEnum):
    """``enum vfio_device_mig_state``."""

    #: Undefined inside; only a reset leads out.
    ERROR = 0
    #: Neither runs nor changes: no DMA, no interrupts.
    STOP = 1
    #: Works as if migration did not exist.
    RUNNING = 2
    #: Stopped; its whole remaining state can be read from the data_fd.
    STOP_COPY = 3
    #: Stopped; a state can be written to the data_fd.
    RESUMING = 4
    #: Runs, but starts no DMA to other devices.
    RUNNING_P2P = 5
    #: Runs, while its state is read ahead from the data_fd.
    PRE_COPY = 6
    #: PRE_COPY without DMA to other devices.
    PRE_COPY_P2P = 7


class MigrationFlags(enum.IntFlag):
    """What a device supports: ``VFIO_MIGRATION_*`` of feature 1."""

    STOP_COPY = 1
    P2P = 2
    PRE_COPY = 4


_E, _S, _R, _SC, _RES, _RP, _PC, _PCP = DeviceState

#: What each state needs the device to support. ERROR can't be asked for, so nothing grants it.
REQUIRED_FLAGS: dict[DeviceState, MigrationFlags] = {
    _S: MigrationFlags.STOP_COPY,
    _R: MigrationFlags.STOP_COPY,
    _SC: MigrationFlags.STOP_COPY,
    _RES: MigrationFlags.STOP_COPY,
    _RP: MigrationFlags.STOP_COPY | MigrationFlags.P2P,
    _PC: MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY,
    _PCP: MigrationFlags.STOP_COPY | MigrationFlags.PRE_COPY | MigrationFlags.P2P,
}

#: The one table: from a state (row), the step to take first to reach another (column).
#: A row lacks a column where no path exists.
FIRST_STEP: dict[DeviceState, dict[DeviceState, DeviceState]] = {
    _S: {_R: _RP, _PC: _RP, _PCP: _RP, _SC: _SC, _RES: _RES, _RP: _RP},
    _R: {_S: _RP, _PC: _PC, _PCP: _RP, _SC: _RP, _RES: _RP, _RP: _RP},
    _PC: {_S: _R, _R: _R, _PCP: _PCP, _SC: _PCP, _RES: _R, _RP: _R},
    _PCP: {_S: _RP, _R: _RP, _PC: _PC, _SC: _SC, _RES: _RP, _RP: _RP},
    _SC: {_S: _S, _R: _S, _RES: _S, _RP: _S},
    _RES: {_S: _S, _R: _S, _PC: _S, _PCP: _S, _SC: _S, _RP: _S},
    _RP: {_S: _S, _R: _R, _PC: _R, _PCP: _PCP, _SC: _S, _RES: _S},
    _E: {},
}

#: Arcs whose end hands out a new data_fd (and the state it starts in).
DATA_FD_ARCS: frozenset[tuple[DeviceState, DeviceState]] = frozenset(
    {(_R, _PC), (_RP, _PCP), (_S, _SC), (_S, _RES)}
)

#: States in which the device works: the guest's requests are carried out.
WORKING: frozenset[DeviceState] = frozenset({_R, _RP, _PC, _PCP})

#: States in which VFIO_MIG_GET_PRECOPY_INFO may be asked.
PRE_COPY_STATES: frozenset[DeviceState] = frozenset({_PC, _PCP})


def is_supported(state: DeviceState, flags: MigrationFlags) -> bool:
    """Whether a device with ``flags`` has ``state`` among those that may be asked for."""
    required = REQUIRED_FLAGS.get(state)
    return required is not None and flags & required == required


def supported_states(flags: MigrationFlags) -> tuple[DeviceState, ...]:
    """The states that a device with ``flags`` may be asked to enter, in the enum's order."""
    return tuple(state for state in DeviceState if is_supported(state, flags))


def next_state(current: DeviceState, new: int, flags: MigrationFlags) -> DeviceState:
    """The state to enter next on the way from ``current`` to ``new``.

    States that ``flags`` does not support are passed over. The result is ``new`` itself when one
    arc joins the two, and ``current`` when they are the same.

    Raises OSError EINVAL where ``new`` is unknown, unsupported or ERROR, where ``current`` is ERROR
    (only a reset leads out of it) or not supported, and where no path exists (from STOP_COPY back
    to PRE_COPY or PRE_COPY_P2P).
    """
    if new not in DeviceState._value2member_map_:
        raise refuse(errno.EINVAL, f"device state {new} does not exist")
    target = DeviceState(new)
    if current is _E:
        raise refuse(errno.EINVAL, f"device is in ERROR: reset it before asking for {target.name}")
    if not is_supported(target, flags) or not is_supported(current, flags):
        lacking = current if is_supported(target, flags) else target
        raise refuse(errno.EINVAL, f"device state {lacking.name} is not supported by this device")
    step = current
    while step is not target:
        following = FIRST_STEP[step].get(target)
        if following is None:
            raise refuse(errno.EINVAL, f"no arc leads from {current.name} to {target.name}")
        step = following
        if is_supported(step, flags):
            break
    return step


def path(current: DeviceState, new: int, flags: MigrationFlags) -> tuple[DeviceState, ...]:
    """Every state entered on the way from ``current`` to ``new``, in order, ``new`` last.

    Empty when they are the same. Raises OSError EINVAL as :func:`next_state` does.
    """
    steps: list[DeviceState] = []
    step = next_state(current, new, flags)
    while step is not current:
        steps.append(step)
        current, step = step, next_state(step, new, flags)
    return tuple(steps)


def direct_arcs(flags: MigrationFlags) -> tuple[tuple[DeviceState, DeviceState], ...]:
    """Every pair of states of a device with ``flags`` that one arc joins."""
    states = supported_states(flags)
    return tuple(
        (a, b)
        for a in states
        for b in states
        if a is not b and FIRST_STEP[a].get(b) is not None and next_state(a, b, flags) is b
    )
