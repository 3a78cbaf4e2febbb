"""VFIO_DEVICE_FEATURE below the contract, and what makes a device work: what each backend has of it."""

import os
import struct

from precopy.backends.kernel.device import KernelVfioDevice
from precopy.backends.sim import SimDevice
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.conformance.check import NotApplicable, Raw, Registers, Workload
from precopy.connectx.adapter import Port
from precopy.guest import WorkloadGuest
from precopy.vfio.device import VfioDevice
from precopy.vfio.face import RegionIndex, RegionInfo
from precopy.vfio.function_face import FunctionFace
from precopy.vfio.guest import Opened
from precopy.vfio.uapi import VFIO_DEVICE_FEATURE
from precopy.vfio_user.messages import Command, DeviceFeature

_HEADER = struct.Struct("=II")

#: Room behind every argument: a kernel that writes a whole structure whatever argsz says, or an
#: argsz that says more than there is, must not reach other memory of this process.
_ROOM = 4096


#: Where the kernel's devices have nodes of their own.
_NODES = "/dev/vfio/devices/"


class KernelRaw:
    """The ioctl itself."""

    def __init__(self, device: KernelVfioDevice) -> None:
        self._device = device

    def feature(self, argsz: int, flags: int, data: bytes) -> bytes:
        argument = bytearray(_HEADER.pack(argsz, flags) + data + bytes(_ROOM))
        self._device.kernel.ioctl(self._device.fileno(), VFIO_DEVICE_FEATURE, argument)
        size = max(len(data), min(argsz, _ROOM) - _HEADER.size)
        return bytes(argument[_HEADER.size : _HEADER.size + max(size, 0)])

    def feature_at(self, address: int) -> None:
        """A call whose argument is at ``address``, whatever is there."""
        self._device.kernel.ioctl(self._device.fileno(), VFIO_DEVICE_FEATURE, address)

    def feature_in_place(self, argument: bytearray) -> None:
        """A call with ``argument``, header and payload, which is as the kernel left it also where it
        fails."""
        self._device.kernel.ioctl(self._device.fileno(), VFIO_DEVICE_FEATURE, argument)

    def feature_unbound(self, argsz: int, flags: int, data: bytes) -> None:
        """A call on another file of the device's own node, which has not been bound to an iommufd."""
        kernel = self._device.kernel
        node = os.readlink(f"/proc/self/fd/{self._device.fileno()}")
        if not node.startswith(_NODES):
            raise NotApplicable("the device was opened by its group, whose files are always bound")
        other = kernel.open(node)
        try:
            kernel.ioctl(other, VFIO_DEVICE_FEATURE, bytearray(_HEADER.pack(argsz, flags) + data))
        finally:
            kernel.close(other)


class VfioUserRaw:
    """A DEVICE_FEATURE message."""

    def __init__(self, device: VfioUserDevice) -> None:
        self._client = device.client

    def feature(self, argsz: int, flags: int, data: bytes) -> bytes:
        found = self._client.call(Command.DEVICE_FEATURE, DeviceFeature(argsz, flags, data))
        assert isinstance(found, DeviceFeature)
        return bytes(found.data)


def raw_of(device: VfioDevice) -> Raw | None:
    """The call below the contract; None where there is none: a device in this process has no ioctl."""
    if isinstance(device, KernelVfioDevice):
        return KernelRaw(device)
    if isinstance(device, VfioUserDevice):
        return VfioUserRaw(device)
    return None


# --- Regions ----------------------------------------------------------------------------------

#: BARs, ROM and config space.
_REGIONS = range(RegionIndex.CONFIG + 1)


class KernelRegisters:
    """Regions of the kernel's device, by pread and pwrite."""

    def __init__(self, device: KernelVfioDevice) -> None:
        self._device = device
        self.regions = [RegionInfo(device.region_size(index)) for index in _REGIONS]

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        return self._device.region_read(region, offset, size)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self._device.region_write(region, offset, data)


class VfioUserRegisters:
    """Regions of a served device, by messages."""

    def __init__(self, device: VfioUserDevice) -> None:
        self._client = device.client
        self.regions = []
        for index in _REGIONS:
            region = self._client.region_info(index)
            if region.fd is not None:
                os.close(region.fd)
            self.regions.append(RegionInfo(region.size, region.flags))

    def region_read(self, region: int, offset: int, size: int) -> bytes:
        return self._client.region_read(region, offset, size)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self._client.region_write(region, offset, data)


def face_of(device: VfioDevice) -> Registers | None:
    """Registers and config space; None where there are none: where the device is no PCI function."""
    found: Registers
    if isinstance(device, KernelVfioDevice):
        found = KernelRegisters(device)
    elif isinstance(device, VfioUserDevice):
        found = VfioUserRegisters(device)
    elif isinstance(device, SimDevice):
        adapter = device.adapter
        lock = adapter.vfs[0].vhca.lock
        found = FunctionFace(adapter.assigned_vf(0), flr=device.reset, barrier=lock)
    else:
        return None
    return found if found.regions[RegionIndex.CONFIG].size else None


def ends_when_closed(device: VfioDevice) -> bool:
    """Whether closing ``device`` ends what it does: one that is served outlives its clients."""
    return not isinstance(device, VfioUserDevice)


# --- Work -------------------------------------------------------------------------------------

#: Messages of one piece of work.
_MESSAGES = 32


class GuestWorkload:
    """A guest that sends messages over the device, by ``port``."""

    def __init__(self, guest: WorkloadGuest, port: Port) -> None:
        self._guest, self._dma = guest, port.dma
        self._interrupts = 0
        heard = port.vhca.interrupts.get(0)

        def interrupt() -> None:
            self._interrupts += 1
            if heard is not None:
                heard()

        port.set_interrupt(0, interrupt)

    @property
    def interrupts(self) -> int:
        """How many the guest has heard."""
        return self._interrupts

    def work(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []

        def wrote(address: int, length: int) -> None:
            found.append((address, length))

        self._dma.listen(wrote)
        try:
            # The second step takes up the completions of the first.
            for _ in range(2):
                self._guest.step(_MESSAGES)
        finally:
            self._dma.unlisten(wrote)
        return found


def workload_of(opened: Opened) -> Workload | None:
    """What makes the device work: the guest that it was opened with, where all that the device writes
    can be known, which is in this process only. None elsewhere."""
    if isinstance(opened.guest, WorkloadGuest) and isinstance(opened.device, SimDevice):
        return GuestWorkload(opened.guest, opened.device.adapter.vfs[0])
    return None
