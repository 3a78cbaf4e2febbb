"""A capability of the PF through which who works on a driver disturbs the card from inside::

    +0  id 0x09, next, length, kind 'F'     +4  opcode, u16    +6  nth, u16, counted from now
    +8  status, or 0x100 for no answer: writing it plans the fault; 0 takes every fault away
    +12 a mark: writing it puts a line into the trace

Result at +8: reads 0 when the fault is planned, 0xffffffff when there is no such command.
"""

from collections.abc import Callable
from pathlib import Path

from precopy.connectx.config import NEVER, FaultPlan
from precopy.mlx5_abi.commands import Opcode
from precopy.pci import capabilities
from precopy.pci.config_space import CAPABILITIES, ConfigSpace

KIND = ord("F")
LENGTH = 16
OPCODE, NTH, STATUS, MARK = 4, 6, 8, 12

_REFUSED = 0xFFFF_FFFF


class Controls:
    """The capability in ``space``; ``marked`` hears of marks."""

    def __init__(self, space: ConfigSpace, faults: FaultPlan) -> None:
        self._space, self._faults = space, faults
        self.marked: Callable[[int], object] | None = None
        self._at = at = capabilities.vendor_specific(space, KIND, LENGTH)
        space.put(at + OPCODE, 2, 0, 0xFFFF)
        space.put(at + NTH, 2, 0, 0xFFFF)
        space.put(at + STATUS, 4, 0, 0xFFFF_FFFF)
        space.put(at + MARK, 4, 0, 0xFFFF_FFFF)
        space.on_write(at + STATUS, 4, self._plan)
        space.on_write(at + MARK, 4, self._mark)

    def _plan(self) -> None:
        space, at = self._space, self._at
        status = space.get(at + STATUS, 4)
        space.set(at + STATUS, 4, 0)
        if not status:
            self._faults.clear()
            return
        try:
            opcode = Opcode(space.get(at + OPCODE, 2))
            self._faults.add_next(opcode, space.get(at + NTH, 2), status)
        except ValueError:
            space.set(at + STATUS, 4, _REFUSED)

    def _mark(self) -> None:
        if self.marked is not None:
            self.marked(self._space.get(self._at + MARK, 4))


class Remote:
    """The same from inside a kernel, through the PF's config space as sysfs has it. OSError."""

    def __init__(self, pf: Path = Path("/sys/bus/pci/devices/0000:00:00.0")) -> None:
        self._config = pf / "config"
        self._at = self._find()

    def _find(self) -> int:
        space = self._config.read_bytes()
        at = space[CAPABILITIES]
        while at:
            if space[at] == 0x09 and space[at + 3] == KIND:
                return at
            at = space[at + 1]
        raise OSError(0, f"{self._config}: no software ConnectX there")

    def _write(self, register: int, value: int, size: int) -> None:
        with open(self._config, "r+b", buffering=0) as file:
            file.seek(self._at + register)
            file.write(value.to_bytes(size, "little"))

    def plan(self, opcode: Opcode, nth: int, status: int) -> None:
        """The ``nth`` command of ``opcode`` from now fails with ``status`` (NEVER: no answer)."""
        if not 1 <= status <= NEVER:
            raise ValueError(f"status {status:#x}: 1 to 0xff, or never")
        self._write(OPCODE, opcode, 2)
        self._write(NTH, nth, 2)
        self._write(STATUS, status, 4)

    def clear(self) -> None:
        """No more faults."""
        self._write(STATUS, 0, 4)

    def mark(self, number: int) -> None:
        """A line in the trace."""
        self._write(MARK, number, 4)
