"""What a source says of its device, and why a target refuses it before anything has changed."""

from collections.abc import Callable
from typing import Any

from precopy.engine.messages import Message
from precopy.engine.outcome import reason_of
from precopy.engine.report import human
from precopy.pci.memory import PAGE_SIZE, RegionSpec
from precopy.vfio.device import VfioDevice
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState, MigrationFlags

#: Most guest memory that a target takes, in bytes, unless told otherwise.
MAX_MEMORY = 1 << 40

#: Most regions of it: each costs a mapping.
MAX_REGIONS = 256


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
    offers = device.identity.offers
    if offers is None:
        # A device that can't say what it has says at the stream's loading.
        return None
    lacking = sorted(set(wanted["needs"]) - offers)
    return f"this device lacks {', '.join(lacking)}" if lacking else None


def _flags(device: VfioDevice, wanted: Message) -> str | None:
    try:
        flags = device.migration_flags
    except OSError as error:
        return reason_of(error)
    return None if flags & MigrationFlags.STOP_COPY else "this device can't be migrated"


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


def _memory(specs: list[RegionSpec], limit: int) -> str | None:
    """Why a guest with this memory is not taken: looked at before any of it is mapped."""
    if not specs:
        return "the guest has no memory"
    if len(specs) > MAX_REGIONS:
        return f"the guest's memory has {len(specs)} regions, more than {MAX_REGIONS}"
    end = 0
    for spec in sorted(specs):
        where = f"the guest's memory at {spec.iova:#x}, {spec.length:#x} bytes,"
        if not spec.length or spec.iova % PAGE_SIZE or spec.length % PAGE_SIZE:
            return f"{where} is not made of whole pages"
        if spec.iova < end:
            return f"{where} overlaps another region"
        end = spec.iova + spec.length
        if end > 1 << 64:
            return f"{where} goes beyond the end of 64 bits"
    size = sum(spec.length for spec in specs)
    if size > limit:
        return (
            f"the guest's memory of {human(size)} is more than the limit here, {human(limit)}"
            " (receive --max-memory)"
        )
    return None


def why_not(opened: Opened, wanted: Message, max_memory: int = MAX_MEMORY) -> str | None:
    """The first reason for which ``opened`` can't take what ``wanted`` describes, or None."""
    for check in _CHECKS:
        reason = check(opened.device, wanted)
        if reason is not None:
            return reason
    if not wanted["guest"]:
        return "the manifest has memory without a guest" if wanted["memory"] else None
    if opened.adopt_guest is None:
        return "the source has a guest, which this device can't take over"
    return _memory(regions(wanted), max_memory)


def regions(wanted: Message) -> list[RegionSpec]:
    return [RegionSpec(*region) for region in wanted["memory"]]
