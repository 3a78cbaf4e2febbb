"""What a source says of its device, and why a target refuses it before anything has changed."""

from collections.abc import Callable
from typing import Any

from precopy.engine.messages import Message
from precopy.pci.memory import RegionSpec
from precopy.vfio.device import VfioDevice
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState, MigrationFlags

#: Most guest memory that a target takes, in bytes, unless told otherwise.
MAX_MEMORY = 1 << 40


def describe(opened: Opened, precopy: bool) -> dict[str, Any]:
    """The manifest of ``opened``. OSError ENOTTY where its device can't be migrated."""
    device = opened.device
    who = device.identity
    memory = opened.guest.memory.specs if opened.guest else ()
    return {
        "name": device.name,
        "vendor_id": who.vendor_id,
        "device_id": who.device_id,
        "driver": who.driver,
        "firmware": who.firmware,
        "serial": who.serial,
        "stream": who.stream,
        "stream_version": who.stream_version,
        "needs": sorted(who.needs),
        "flags": int(device.migration_flags),
        "details": dict(who.details),
        "precopy": precopy,
        "guest": opened.guest is not None,
        "memory": [list(spec) for spec in memory],
    }


def _kind(device: VfioDevice, wanted: Message) -> str | None:
    who = device.identity
    if (who.vendor_id, who.device_id) == (wanted["vendor_id"], wanted["device_id"]):
        return None
    return (
        f"the source is a {wanted['vendor_id']:04x}:{wanted['device_id']:04x},"
        f" this is a {who.vendor_id:04x}:{who.device_id:04x}"
    )


def _stream(device: VfioDevice, wanted: Message) -> str | None:
    who = device.identity
    if who.stream != wanted["stream"]:
        return f"the source's state is a {wanted['stream']} stream, this device reads {who.stream}"
    if wanted["stream_version"] > who.stream_version:
        return (
            f"the source's stream has version {wanted['stream_version']},"
            f" this device reads up to {who.stream_version}: update its driver"
        )
    return None


def _needs(device: VfioDevice, wanted: Message) -> str | None:
    lacking = sorted(set(wanted["needs"]) - device.identity.offers)
    return f"this device lacks {', '.join(lacking)}" if lacking else None


def _flags(device: VfioDevice, wanted: Message) -> str | None:
    if not device.migration_flags & MigrationFlags.STOP_COPY:
        return "this device can't be migrated"
    return None


def _state(device: VfioDevice, wanted: Message) -> str | None:
    if device.state is not DeviceState.RUNNING:
        return f"this device is in {device.state.name}, not RUNNING: another migration?"
    return None


_CHECKS: tuple[Callable[[VfioDevice, Message], str | None], ...] = (
    _flags,
    _kind,
    _stream,
    _needs,
    _state,
)


def why_not(opened: Opened, wanted: Message, max_memory: int = MAX_MEMORY) -> str | None:
    """The first reason for which ``opened`` can't take what ``wanted`` describes, or None."""
    for check in _CHECKS:
        reason = check(opened.device, wanted)
        if reason is not None:
            return reason
    if wanted["guest"]:
        if opened.adopt_guest is None:
            return "the source has a guest, which this device can't take over"
        size = sum(length for _, length in wanted["memory"])
        if size > max_memory:
            return f"the guest's memory of {size} bytes is more than the limit of {max_memory}"
    return None


def regions(wanted: Message) -> list[RegionSpec]:
    return [RegionSpec(*region) for region in wanted["memory"]]
