"""PF and VFs as PCI functions: ids, BAR 0 with initialization segment, command doorbell and UARs.

Where what stands in BAR 0: ``struct mlx5_init_seg`` of include/linux/mlx5/device.h (Linux 7.3); the
MSI-X table behind it; from page 16 on the UARs, one page each.
"""

import time
from collections.abc import Callable

from precopy.connectx.command_queue import LOG_ENTRIES, LOG_STRIDE, CommandQueue
from precopy.connectx.config import AdapterConfig
from precopy.connectx.controls import Controls
from precopy.connectx.firmware import Firmware, Function
from precopy.connectx.slots import FIRST_NUMBER, UAR_SLOTS
from precopy.mlx5_abi import wqe
from precopy.pci import capabilities
from precopy.pci.endpoint import Endpoint

VENDOR_ID, PF_DEVICE_ID, VF_DEVICE_ID = 0x15B3, 0x101D, 0x101E
_CLASS_ETHERNET = 0x020000

PAGE = 4096
#: One page a UAR, and the pages before them.
BAR_BYTES = UAR_SLOTS * PAGE

#: Vectors of a function. User-Mode Linux has 32 for all.
VECTORS = 4

#: VF n is at this many routing ids behind the PF, n times over: each in a slot of its own.
VF_STRIDE = 8
MAX_VFS = 7

# The initialization segment. All of it is big-endian.
_FW_REV, _CMDIF_REV, _CMDQ_HIGH, _CMDQ_LOW, _DOORBELL = 0x00, 0x04, 0x10, 0x14, 0x18
_COMMAND_TIMEOUT, _INIT_TIMEOUT = 0xFF8, 0xFFC
_TIMER_HIGH, _TIMER_LOW, _HEALTH_COUNTER = 0x1000, 0x1004, 0x1010
_INIT_SEGMENT = 0x2000

#: ``nic_interface``, 3 bits beside the command queue's address: 0 where a driver has the function.
_NIC_INTERFACE_SHIFT, _NIC_INTERFACE_MASK = 8, 7
_DISABLED = 1
_CMDIF_VERSION = 5
_SECONDS = 1 << 29

#: Doorbells of 8 bytes; those of EQs have 4.
_WIDE_DOORBELLS = frozenset(
    {wqe.UAR_SEND_DOORBELL, wqe.UAR_SEND_DOORBELL + 0x100, wqe.UAR_CQ_DOORBELL}
)

_UARS = FIRST_NUMBER["uar"] * PAGE


class ConnectxFunction(Endpoint):
    """One function of the card as software sees it on the bus.

    ``assigned``: a VF as VFIO shows it to a guest that has it alone, with its ids and its BAR.
    """

    def __init__(
        self,
        config: AdapterConfig,
        firmware: Firmware,
        function: Function,
        *,
        assigned: bool = False,
    ) -> None:
        virtual = function.index > 0
        self._function, self._vhca = function, function.vhca
        super().__init__(
            f"vf{function.index - 1}" if virtual else "pf",
            function.vhca.dma,
            vendor_id=VENDOR_ID,
            device_id=VF_DEVICE_ID if virtual else PF_DEVICE_ID,
            class_code=_CLASS_ETHERNET,
            bar_bytes=BAR_BYTES,
            vectors=VECTORS,
            virtual=virtual and not assigned,
            remap=not assigned,
        )
        self._commands = CommandQueue(
            function.vhca, lambda inbox: firmware.execute(function, inbox)
        )
        function.on_resume = self._commands.catch_up
        function.vhca.msix = self.msix.fire
        major, minor, sub = (int(part) for part in config.firmware.split("."))
        self._fixed = {
            _FW_REV: minor << 16 | major,
            _CMDIF_REV: _CMDIF_VERSION << 16 | sub,
            _COMMAND_TIMEOUT: _SECONDS | config.command_timeout,
            _INIT_TIMEOUT: _SECONDS | config.command_timeout,
        }
        self._health = 0
        #: The first half of a doorbell: UAR, offset, bytes.
        self._half: tuple[int, int, bytes] | None = None
        self._cmdq_high = 0

    def on_reset(self) -> None:
        self._vhca.reset()
        self._cmdq_high = 0

    # --- BAR 0 --------------------------------------------------------------------------------

    def _word(self, offset: int) -> int:
        """A 32-bit register of the initialization segment."""
        if offset == _HEALTH_COUNTER:
            # A firmware that is alive counts.
            self._health = (self._health + 1) & 0xFFFF_FFFF
            return self._health
        if offset == _TIMER_HIGH:
            return time.monotonic_ns() >> 32 & 0xFFFF_FFFF
        if offset == _TIMER_LOW:
            return time.monotonic_ns() & 0xFFFF_FFFF
        if offset == _CMDQ_HIGH:
            return self._vhca.hca.cmdq_addr >> 32
        if offset == _CMDQ_LOW:
            return self._command_queue_low()
        return self._fixed.get(offset, 0)

    def _command_queue_low(self) -> int:
        """The queue's low address, nic_interface, and the queue's sizes.

        By nic_interface a driver learns that the function was reset behind its back, and is free for it
        to begin anew (mlx5_health_check_fatal_sensors() of mlx5/core/health.c, Linux 7.3).
        """
        address = self._vhca.hca.cmdq_addr
        state = 0 if address else _DISABLED << _NIC_INTERFACE_SHIFT
        return address & 0xFFFF_F000 | state | LOG_ENTRIES << 4 | LOG_STRIDE

    def mmio_read(self, offset: int, size: int) -> bytes:
        if offset >= _INIT_SEGMENT:
            return bytes(size)
        if size == 4 and not offset % 4:
            return self._word(offset).to_bytes(4, "big")
        first, last = offset // 4 * 4, (offset + size + 3) // 4 * 4
        words = b"".join(self._word(at).to_bytes(4, "big") for at in range(first, last, 4))
        return words[offset - first : offset - first + size]

    def mmio_write(self, offset: int, data: bytes) -> None:
        if offset >= _UARS:
            self._ring(offset // PAGE, offset % PAGE, data)
            return
        for at in range(0, len(data) - 3, 4):
            write = _REGISTERS.get(offset + at)
            if write is not None:
                write(self, int.from_bytes(data[at : at + 4], "big"))

    def _ring(self, uar: int, offset: int, data: bytes) -> None:
        """A doorbell; one of 8 bytes may come in two halves, where the bus carries no more."""
        if len(data) == 4 and offset in _WIDE_DOORBELLS:
            self._half = uar, offset, data
            return
        if len(data) == 4 and self._half is not None and self._half[:2] == (uar, offset - 4):
            offset, data = offset - 4, self._half[2] + data
        self._half = None
        self._function.transport.ring(uar, offset, data)

    def _write_cmdq_high(self, value: int) -> None:
        self._cmdq_high = value

    def _write_cmdq_low(self, value: int) -> None:
        if value >> _NIC_INTERFACE_SHIFT & _NIC_INTERFACE_MASK == _DISABLED:
            # A driver that has no time to take everything down by commands.
            self._vhca.teardown()
            with self._vhca.lock:
                hca = self._vhca.edit_hca()
                hca.cmdq_addr = hca.initialized = hca.enabled = 0
            return
        with self._vhca.lock:
            self._vhca.edit_hca().cmdq_addr = self._cmdq_high << 32 | value & 0xFFFF_F000

    def _write_doorbell(self, value: int) -> None:
        self._commands.ring(value)


_REGISTERS: dict[int, Callable[[ConnectxFunction, int], None]] = {
    _CMDQ_HIGH: ConnectxFunction._write_cmdq_high,
    _CMDQ_LOW: ConnectxFunction._write_cmdq_low,
    _DOORBELL: ConnectxFunction._write_doorbell,
}


class PhysicalFunction(ConnectxFunction):
    """The PF, whose SR-IOV capability makes ``vfs`` come and go."""

    def __init__(
        self,
        config: AdapterConfig,
        firmware: Firmware,
        function: Function,
        vfs: list[ConnectxFunction],
    ) -> None:
        super().__init__(config, firmware, function)
        self._vfs = vfs
        self.controls = Controls(self.config, firmware.faults)
        self._sriov = capabilities.sriov(
            self.config,
            total=len(vfs),
            device_id=VF_DEVICE_ID,
            bar_bytes=BAR_BYTES,
            offset=VF_STRIDE,
            stride=VF_STRIDE,
        )
        self.config.on_write(self._sriov.control, 2, self._sriov_control)
        for vf in vfs:
            vf.present = False

    def _sriov_control(self) -> None:
        enabled = self.config.get(self._sriov.control, 2) & capabilities.SRIOV_VF_ENABLE
        count = self.config.get(self._sriov.num_vfs, 2) if enabled else 0
        for index, vf in enumerate(self._vfs):
            present = index < count
            if vf.present != present:
                vf.present = present
                vf.reset()

    def on_reset(self) -> None:
        super().on_reset()
        self.config.set(self._sriov.control, 2, 0)
        self._sriov_control()
