"""The VF's own driver, as little of it as changes a VF's state: a command queue."""

import errno

from precopy.guest.bringup import BringUpError
from precopy.guest.pci_port import COMMANDS_AT, Bus, PciPort
from precopy.pci.memory import GuestMemory

_CMDQ_HIGH, _CMDQ_LOW = 0x10, 0x14


class VfDriver:
    """Sets the command queue up when it is not there: after a reset, or in a state of before."""

    def __init__(self, port: PciPort, bus: Bus) -> None:
        self._port, self._bus = port, bus
        self.memory = GuestMemory(port.regions)
        port.connect_memory(self.memory)

    def _is_on(self) -> bool:
        high = int.from_bytes(self._bus.read(_CMDQ_HIGH, 4), "big")
        low = int.from_bytes(self._bus.read(_CMDQ_LOW, 4), "big")
        return high << 32 | low & 0xFFFF_F000 == COMMANDS_AT

    def execute(self, inbox: bytes) -> bytes:
        """One command. OSError ETIMEDOUT where the VF does not answer, as one that is suspended."""
        try:
            if not self._is_on():
                self._port.power_on()
            return self._port.execute(inbox)
        except BringUpError as error:
            raise OSError(errno.ETIMEDOUT, str(error)) from error

    def close(self) -> None:
        self.memory.close()
