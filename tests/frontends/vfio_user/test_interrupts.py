"""DEVICE_SET_IRQS in every shape, and interrupts by eventfd."""

import contextlib
import os
import struct
from collections.abc import Iterator

import pytest

from precopy.vfio.face import IrqIndex
from precopy.vfio_user.messages import Command, SetIrqs
from tests.frontends.vfio_user.fakes import VECTORS, FakeFace
from tests.frontends.vfio_user.rig import RawClient, Served
from tests.vfio_user.wires import open_fds

NONE, BOOL, EVENTFD, MASK, UNMASK, TRIGGER = (1 << bit for bit in range(6))
INTX, MSI, MSIX, ERR, REQ = IrqIndex


@pytest.fixture
def events() -> Iterator[list[int]]:
    made = [os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(40)]
    yield made
    for fd in made:
        os.close(fd)


def rung(event: int) -> int:
    """How often, since the last time that was asked."""
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(event)
    return 0


def irqs(
    flags: int, irq: int, start: int = 0, vectors: int = 1, data: bytes = b"", argsz: int = 20
) -> SetIrqs:
    return SetIrqs(argsz + len(data), flags, irq, start, vectors, data)


def set_irqs(client: RawClient, request: SetIrqs, fds: list[int] | None = None) -> None:
    assert client.ask(Command.DEVICE_SET_IRQS, request, fds or []) == ()


E, T = EVENTFD | TRIGGER, NONE | TRIGGER
WRONG: list[tuple[SetIrqs, int]] = [
    # Index, start, count.
    (irqs(E, 5), 1),
    (irqs(E, 0xFFFF_FFFF), 1),
    (irqs(E, MSI, 4), 1),
    (irqs(E, MSI, 3, 2), 2),
    (irqs(T, MSI, 0, 5), 0),
    (irqs(T, MSI, 0xFFFF_FFFF, 1), 0),
    (irqs(T, MSI, 1, 0xFFFF_FFFF), 0),
    (irqs(T, MSI, 4, 0), 0),
    (irqs(T, INTX, 1), 0),
    # No data, two kinds of it; no action, two of them; a flag that there is not.
    (irqs(TRIGGER, MSI), 0),
    (irqs(NONE | BOOL | TRIGGER, MSI, data=b"\1"), 0),
    (irqs(NONE | EVENTFD | TRIGGER, MSI), 1),
    (irqs(BOOL | EVENTFD | TRIGGER, MSI, data=b"\1"), 1),
    (irqs(NONE, MSI), 0),
    (irqs(NONE | MASK | UNMASK, MSI), 0),
    (irqs(NONE | MASK | TRIGGER, MSI), 0),
    (irqs(EVENTFD, MSI), 1),
    (irqs(0, MSI), 0),
    (irqs(T | 0x40, MSI), 0),
    (irqs(T | 1 << 31, MSI), 0),
    # Data that is too short, too long, or not to be there.
    (irqs(BOOL | TRIGGER, MSI, 0, 2, b"\1"), 0),
    (irqs(BOOL | TRIGGER, MSI, 0, 2, b"\1\1\1"), 0),
    (irqs(BOOL | TRIGGER, MSI, 0, 2), 0),
    (irqs(T, MSI, data=b"\1"), 0),
    (irqs(E, MSI, data=b"\1\0\0\0"), 1),
    # Descriptors where none are expected, and another number of them.
    (irqs(T, MSI), 1),
    (irqs(BOOL | TRIGGER, MSI, data=b"\1"), 1),
    (irqs(E, MSI, 0, 2), 1),
    (irqs(E, MSI, 0, 2), 3),
    (irqs(E, MSIX, 0, 40), 16),
    # Nothing is asked for, but not of all.
    (irqs(E, MSI, 0, 0), 0),
    (irqs(NONE | MASK, MSI, 0, 0), 0),
    (irqs(NONE | UNMASK, INTX, 0, 0), 0),
    (irqs(BOOL | TRIGGER, MSI, 0, 0), 0),
    # What can't be masked, and masks by eventfd.
    (irqs(NONE | MASK, ERR), 0),
    (irqs(NONE | UNMASK, REQ), 0),
    (irqs(EVENTFD | MASK, INTX), 1),
    (irqs(EVENTFD | UNMASK, INTX), 1),
]


@pytest.mark.parametrize(("request_", "fds"), WRONG, ids=range(len(WRONG)))
def test_every_wrong_shape(
    client: RawClient, face: FakeFace, events: list[int], request_: SetIrqs, fds: int
) -> None:
    """It is refused, nothing is kept of it, and what was set up still is."""
    set_irqs(client, irqs(E, MSI, 0, 4), events[:4])
    before = open_fds()
    assert client.refused(Command.DEVICE_SET_IRQS, request_, events[4 : 4 + fds]) == "EINVAL"
    assert open_fds() == before
    for vector in range(4):
        face.raise_vector(MSI, vector)
    assert [rung(event) for event in events] == [1] * 4 + [0] * 36


def test_what_is_no_eventfd(client: RawClient, face: FakeFace, events: list[int]) -> None:
    file = os.memfd_create("file")
    before = open_fds()
    assert client.refused(Command.DEVICE_SET_IRQS, irqs(E, MSI), [file]) == "EINVAL"
    two = [events[0], file]
    assert client.refused(Command.DEVICE_SET_IRQS, irqs(E, MSI, 0, 2), two) == "EINVAL"
    assert open_fds() == before
    face.raise_vector(MSI, 0)
    assert rung(events[0]) == 0
    os.close(file)


@pytest.mark.parametrize("argsz", [0, 19, 4096])
def test_argsz_is_not_believed(client: RawClient, events: list[int], argsz: int) -> None:
    """What counts is what came."""
    set_irqs(client, irqs(E, MSI, argsz=argsz), events[:1])
    set_irqs(client, irqs(T, MSI, argsz=argsz))
    assert rung(events[0]) == 1


@pytest.mark.parametrize("irq", [MSI, MSIX, ERR, REQ])
def test_every_vector(client: RawClient, face: FakeFace, events: list[int], irq: IrqIndex) -> None:
    count = VECTORS[irq]
    # In pieces of as many as a message may carry.
    for start in range(0, count, 16):
        some = events[start : min(start + 16, count)]
        set_irqs(client, irqs(E, irq, start, len(some)), some)
    for vector in range(count):
        for _ in range(vector + 1):
            face.raise_vector(irq, vector)
        assert [rung(event) for event in events[:count]] == [
            vector + 1 if each == vector else 0 for each in range(count)
        ]
    # One that there is not is lost.
    face.raise_vector(irq, count)
    face.raise_vector(irq, -1)
    assert not any(map(rung, events))


def test_masked_it_waits(client: RawClient, face: FakeFace, events: list[int]) -> None:
    set_irqs(client, irqs(E, MSIX, 0, 4), events[:4])
    set_irqs(client, irqs(NONE | MASK, MSIX, 1, 2))
    for vector in range(4):
        face.raise_vector(MSIX, vector)
        face.raise_vector(MSIX, vector)
    assert [rung(event) for event in events[:4]] == [2, 0, 0, 2]
    # What waits comes once.
    set_irqs(client, irqs(BOOL | UNMASK, MSIX, 0, 4, b"\0\1\0\0"))
    assert [rung(event) for event in events[:4]] == [0, 1, 0, 0]
    set_irqs(client, irqs(NONE | UNMASK, MSIX, 0, 4))
    assert [rung(event) for event in events[:4]] == [0, 0, 1, 0]
    set_irqs(client, irqs(NONE | UNMASK, MSIX, 0, 4))
    assert [rung(event) for event in events[:4]] == [0, 0, 0, 0]
    set_irqs(client, irqs(BOOL | MASK, MSIX, 0, 2, b"\1\0"))
    face.raise_vector(MSIX, 0)
    face.raise_vector(MSIX, 1)
    assert [rung(event) for event in events[:2]] == [0, 1]


def test_intx_masks_itself(client: RawClient, face: FakeFace, events: list[int]) -> None:
    set_irqs(client, irqs(E, INTX), events[:1])
    face.raise_vector(INTX)
    face.raise_vector(INTX)
    assert rung(events[0]) == 1
    # It was raised again meanwhile.
    set_irqs(client, irqs(NONE | UNMASK, INTX))
    assert rung(events[0]) == 1
    set_irqs(client, irqs(NONE | UNMASK, INTX))
    assert rung(events[0]) == 0
    face.raise_vector(INTX)
    assert rung(events[0]) == 1


def test_a_client_triggers(client: RawClient, events: list[int]) -> None:
    set_irqs(client, irqs(E, MSI, 0, 4), events[:4])
    set_irqs(client, irqs(T, MSI, 1, 2))
    assert [rung(event) for event in events[:4]] == [0, 1, 1, 0]
    set_irqs(client, irqs(BOOL | TRIGGER, MSI, 0, 4, b"\1\0\0\xff"))
    assert [rung(event) for event in events[:4]] == [1, 0, 0, 1]
    set_irqs(client, irqs(E, ERR), events[:1])
    set_irqs(client, irqs(T, ERR))
    assert rung(events[0]) == 1


def test_vectors_are_let_go_of(client: RawClient, face: FakeFace, events: list[int]) -> None:
    before = open_fds()
    set_irqs(client, irqs(E, MSI, 0, 4), events[:4])
    assert open_fds() == before + 4
    # One that takes the place of another, none, and all.
    set_irqs(client, irqs(E, MSI, 0, 1), events[9:10])
    assert open_fds() == before + 4
    set_irqs(client, irqs(E, MSI, 1, 2))
    assert open_fds() == before + 2
    for vector in range(4):
        face.raise_vector(MSI, vector)
    assert [rung(event) for event in (*events[:4], events[9])] == [0, 0, 0, 1, 1]
    set_irqs(client, irqs(NONE | MASK, MSI, 3))
    set_irqs(client, irqs(T, MSI, 0, 0))
    assert open_fds() == before
    set_irqs(client, irqs(E, MSI, 0, 4), events[:4])
    face.raise_vector(MSI, 3)
    assert rung(events[3]) == 1


def test_a_client_that_goes_lets_go(faked: Served, face: FakeFace, events: list[int]) -> None:
    before = open_fds()
    client = faked.client()
    set_irqs(client, irqs(E, MSI, 0, 4), events[:4])
    set_irqs(client, irqs(NONE | MASK, MSI, 0, 4))
    face.raise_vector(MSI, 0)
    faked.leave(client)
    assert open_fds() == before
    client = faked.client()
    set_irqs(client, irqs(E, MSI, 0, 4), events[:4])
    face.raise_vector(MSI, 1)
    assert [rung(event) for event in events[:4]] == [0, 1, 0, 0]


def test_a_counter_that_is_full_holds_nobody_up(client: RawClient, face: FakeFace) -> None:
    event = os.eventfd((1 << 32) - 1, os.EFD_NONBLOCK)
    os.eventfd_write(event, (1 << 64) - 2 - ((1 << 32) - 1))
    set_irqs(client, irqs(E, MSI), [event])
    face.raise_vector(MSI)
    assert rung(event) == (1 << 64) - 2
    face.raise_vector(MSI)
    assert rung(event) == 1
    os.close(event)


def test_messages_are_as_the_kernels_structure(client: RawClient, events: list[int]) -> None:
    """``struct vfio_irq_set``."""
    payload = struct.pack("=IIIII", 20, E, REQ, 0, 1)
    assert client.ask_raw(Command.DEVICE_SET_IRQS, payload, events[:1])[0] == 0
