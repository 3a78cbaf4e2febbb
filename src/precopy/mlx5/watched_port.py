"""A command port that tells of every command: its name, when it began and ended, its status."""

import time
from collections.abc import Callable

from precopy.mlx5_abi.commands import COMMANDS
from precopy.mlx5_abi.port import Done, DoorbellPort
from precopy.mlx5_abi.status import Status, name_of
from precopy.pci.dma import DmaSpace

#: Told of a command that is over: name, seconds of ``time.monotonic`` at both ends, status.
Told = Callable[[str, float, float, str], None]


def _name(inbox: bytes) -> str:
    opcode = int.from_bytes(inbox[:2], "big")
    command = COMMANDS.get(opcode)
    return command.opcode.name if command is not None else f"opcode {opcode:#x}"


def _status(outbox: bytes) -> str:
    return name_of(outbox[0]) if outbox[0] else Status.OK.name


class WatchedPort:
    """``port``, with ``told`` called after each command, from the thread in which it ended."""

    def __init__(self, port: DoorbellPort, told: Told) -> None:
        self._port, self._told = port, told

    @property
    def dma(self) -> DmaSpace:
        return self._port.dma

    def execute(self, inbox: bytes) -> bytes:
        began = time.monotonic()
        try:
            outbox = self._port.execute(inbox)
        except OSError as error:
            self._told(_name(inbox), began, time.monotonic(), error.strerror or str(error))
            raise
        self._told(_name(inbox), began, time.monotonic(), _status(outbox))
        return outbox

    def submit(self, inbox: bytes, done: Done) -> None:
        began = time.monotonic()

        def completed(outbox: bytes) -> None:
            self._told(_name(inbox), began, time.monotonic(), _status(outbox))
            done(outbox)

        self._port.submit(inbox, completed)

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        self._port.ring(uar, offset, data)

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        self._port.set_interrupt(vector, handler)
