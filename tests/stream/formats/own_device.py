"""Streams that the project's own device makes, with a guest at work."""

import errno
import select
import time

from precopy.backends import open_device
from precopy.vfio.device import MigrationFile
from precopy.vfio.guest import Guest
from precopy.vfio.states import DeviceState

#: How long anything here may take.
_PATIENCE = 20.0


def _drain(file: MigrationFile) -> bytes:
    """All there is, up to the end for now or for good."""
    found, buffer = [], bytearray(1 << 20)
    try:
        while count := file.readinto(buffer):
            found.append(bytes(buffer[:count]))
    except OSError as error:
        if error.errno != errno.ENOMSG:
            raise
    return b"".join(found)


def _work(guest: Guest | None) -> None:
    """Until the guest has sent something more, if there is one."""
    if guest is None:
        return
    before, end = guest.counts().sent, time.monotonic() + _PATIENCE
    while guest.counts().sent == before:
        assert time.monotonic() < end, "the guest does not work"
        # Its thread works meanwhile.
        time.sleep(0)


def _middle(file: MigrationFile, guest: Guest | None) -> None:
    """Until there is a middle image to read. What was sent may not have changed the device yet."""
    end = time.monotonic() + _PATIENCE
    _work(guest)
    file.precopy_info()
    while not file.poll(select.POLLIN, 0.1):
        assert time.monotonic() < end, "no middle image"
        _work(guest)
        file.precopy_info()


def precopy_stream(name: str, middle: int = 3) -> bytes:
    """PRE_COPY, under a working guest if the device has one, ``middle`` images, then STOP_COPY to the end."""
    opened = open_device(name)
    try:
        device, guest = opened.device, opened.guest
        if guest is not None:
            guest.start()
        file = device.set_state(DeviceState.PRE_COPY)
        assert file is not None
        found = [_drain(file)]
        for _ in range(middle):
            _middle(file, guest)
            found.append(_drain(file))
        _work(guest)
        if guest is not None:
            guest.pause()
        device.set_state(DeviceState.STOP_COPY)
        found.append(_drain(file))
        return b"".join(found)
    finally:
        opened.close()


def stopped_stream(name: str) -> bytes:
    """STOP_COPY from RUNNING: the whole state at once."""
    opened = open_device(name)
    try:
        file = opened.device.set_state(DeviceState.STOP_COPY)
        assert file is not None
        return _drain(file)
    finally:
        opened.close()
