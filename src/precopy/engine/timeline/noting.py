"""Who notes what happens: a device that notes its arcs, a channel's frames, an engine's progress."""

import json
from collections.abc import Mapping, Sequence

from precopy.engine.channel import CONTROL, HEADER_BYTES, Channel
from precopy.engine.messages import OF_TIMELINES
from precopy.engine.progress import Progress, Snapshot
from precopy.engine.timeline.events import MAX_TEXT, Notes
from precopy.vfio.device import DeviceIdentity, DmaRange, MigrationFile, VfioDevice
from precopy.vfio.guest import Opened
from precopy.vfio.states import DeviceState, MigrationFlags
from precopy.vfio.uapi import Feature, FeatureFlags

#: Messages that are not noted: the timeline's own, and those that the counters show.
_QUIET = OF_TIMELINES | {"pages", "loaded"}

_STATES = frozenset(int(state) for state in DeviceState)


class NotingDevice(VfioDevice):
    """``device``, every state change of which is noted: from where, to where, what became of it."""

    def __init__(self, device: VfioDevice, notes: Notes) -> None:
        self._device, self._notes = device, notes

    def _stands(self) -> str:
        try:
            return self._device.state.name
        except OSError:
            return "?"

    def set_state(self, new: int) -> MigrationFile | None:
        before = self._stands()
        wanted = DeviceState(new).name if new in _STATES else str(new)
        began = self._notes.now()
        try:
            found = self._device.set_state(new)
        except OSError as error:
            ended = self._notes.now()
            self._note(
                f"{before}->{wanted}",
                began,
                ended,
                error=(error.strerror or str(error))[:MAX_TEXT],
                stands=self._stands(),
            )
            raise
        self._note(f"{before}->{wanted}", began, self._notes.now())
        return found

    def reset(self) -> None:
        before = self._stands()
        began = self._notes.now()
        try:
            self._device.reset()
        finally:
            self._note(f"{before}->RUNNING (reset)", began, self._notes.now())

    def _note(self, name: str, began: float, ended: float, **details: str) -> None:
        self._notes.span("arcs", name, began, ended, **details)

    # --- The rest is the device's ---------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._device.name

    @property
    def identity(self) -> DeviceIdentity:
        return self._device.identity

    @property
    def migration_flags(self) -> MigrationFlags:
        return self._device.migration_flags

    def features(self) -> Mapping[Feature, FeatureFlags]:
        return self._device.features()

    @property
    def state(self) -> DeviceState:
        return self._device.state

    def data_size(self) -> int:
        return self._device.data_size()

    def enable_precopy_info_v2(self) -> None:
        self._device.enable_precopy_info_v2()

    def log_start(self, ranges: Sequence[DmaRange], page_size: int) -> int:
        return self._device.log_start(ranges, page_size)

    def log_stop(self) -> None:
        self._device.log_stop()

    def log_report(self, iova: int, length: int, page_size: int, bitmap: memoryview) -> None:
        self._device.log_report(iova, length, page_size, bitmap)

    def close(self) -> None:
        self._device.close()


def watch(channel: Channel, notes: Notes) -> None:
    """Note the messages of ``channel`` and the bytes of its streams, besides whoever watches it."""
    before = channel.tap
    moved = 0

    def tap(sent: bool, header: bytes | memoryview, payload: bytes | memoryview) -> None:
        nonlocal moved
        if before is not None:
            before(sent, header, payload)
        if header[2] == CONTROL:
            _note_message(notes, sent, payload)
            return
        moved += HEADER_BYTES + len(payload)
        notes.count("bytes", moved)

    channel.tap = tap


def _note_message(notes: Notes, sent: bool, payload: bytes | memoryview) -> None:
    try:
        found = json.loads(bytes(payload))
    except (ValueError, RecursionError):
        return  # the channel's reader says what is wrong with it
    kind = found.get("kind") if isinstance(found, dict) else None
    if isinstance(kind, str) and kind not in _QUIET:
        notes.moment(f"{'sent' if sent else 'heard'} {kind[:40]}")


def watch_commands(opened: Opened, notes: Notes) -> None:
    """Note the firmware's commands from now on, where the device shows them."""
    if opened.watch_commands is None:
        return
    notes.commands = True

    def noted(name: str, began: float, ended: float, status: str) -> None:
        details = {} if status == "OK" else {"status": status}
        notes.span("firmware", name, began, ended, **details)

    opened.watch_commands(noted)


def telling(notes: Notes, progress: Progress) -> Progress:
    """``progress``, with every phase noted, and what is left of the device's state."""
    last = (0, 0)

    def tell(now: Snapshot) -> None:
        nonlocal last
        notes.phase(now.phase)
        left = now.initial_bytes, now.dirty_bytes
        if left != last:
            last = left
            notes.count("initial_bytes", left[0])
            notes.count("dirty_bytes", left[1])
        progress(now)

    return tell
