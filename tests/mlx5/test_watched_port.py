"""A watched port does what the port does, and tells of every command once it is over."""

import errno
from collections.abc import Callable

import pytest

from precopy.mlx5.watched_port import WatchedPort
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.port import Done, DoorbellPort
from precopy.mlx5_abi.status import Status
from precopy.pci.dma import DmaSpace

SUSPEND, SAVE = (
    opcode.to_bytes(2, "big") for opcode in (Opcode.SUSPEND_VHCA, Opcode.SAVE_VHCA_STATE)
)


class Port:
    """Answers at once with ``status``; a submitted command when the test says so."""

    def __init__(self, status: int = Status.OK) -> None:
        self.dma = DmaSpace()
        self.outbox = bytes([status]) + bytes(15)
        self.rung: list[tuple[int, int, bytes]] = []
        self.handlers: dict[int, Callable[[], None] | None] = {}
        self.finish: Callable[[], None] = lambda: None

    def execute(self, inbox: bytes) -> bytes:
        return self.outbox

    def submit(self, inbox: bytes, done: Done) -> None:
        self.finish = lambda: done(self.outbox)

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        self.rung.append((uar, offset, data))

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        self.handlers[vector] = handler


class Gone(Port):
    def execute(self, inbox: bytes) -> bytes:
        raise OSError(errno.ENOTCONN, "it is gone")


Told = list[tuple[str, float, float, str]]


def watched(port: Port) -> tuple[WatchedPort, Told]:
    told: Told = []
    return WatchedPort(port, lambda *command: told.append(command)), told


def test_a_command_that_is_waited_for() -> None:
    port = Port()
    watch, told = watched(port)
    assert watch.execute(SUSPEND) == port.outbox
    [(name, began, ended, status)] = told
    assert (name, status) == ("SUSPEND_VHCA", "OK")
    assert began <= ended


def test_a_command_that_ends_later() -> None:
    port = Port()
    watch, told = watched(port)
    answers: list[bytes] = []
    watch.submit(SAVE, answers.append)
    assert not told
    port.finish()
    assert answers == [port.outbox]
    assert [(name, status) for name, _, _, status in told] == [("SAVE_VHCA_STATE", "OK")]


def test_a_status_that_is_not_ok() -> None:
    watch, told = watched(Port(Status.BAD_PARAM))
    watch.execute(SUSPEND)
    assert told[0][3] == "BAD_PARAM (0x3)"


def test_an_opcode_that_is_none() -> None:
    watch, told = watched(Port())
    watch.execute(b"\xff\xfe")
    assert told[0][0] == "opcode 0xfffe"


def test_a_function_that_is_gone() -> None:
    watch, told = watched(Gone())
    with pytest.raises(OSError, match="it is gone"):
        watch.execute(SUSPEND)
    assert told[0][3] == "it is gone"


def test_doorbells_interrupts_and_memory_are_the_ports() -> None:
    port = Port()
    watch, told = watched(port)
    # The driver asks so whether it can log DMA.
    assert isinstance(watch, DoorbellPort)

    def handler() -> None:
        """Never called here."""

    watch.ring(1, 0x800, b"12345678")
    watch.set_interrupt(3, handler)
    assert port.rung == [(1, 0x800, b"12345678")]
    assert port.handlers == {3: handler}
    assert watch.dma is port.dma
    assert not told
