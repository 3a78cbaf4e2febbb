"""PF and VFs as PCI functions: what a driver sees of them on the bus."""

import threading
from collections.abc import Iterator

import pytest

from precopy.connectx.config import NEVER
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.bringup import BringUpError
from precopy.guest.pci_port import COMMANDS_AT, PciPort
from precopy.mlx5_abi.commands import (
    EnableHcaIn,
    Inbox,
    ManagePagesIn,
    ManagePagesOut,
    Opcode,
    Outbox,
    QueryHcaCapIn,
    QueryHcaCapOut,
    QueryPagesIn,
    QueryPagesOut,
    SetIssiIn,
    SuspendKind,
)
from precopy.mlx5_abi.status import Status
from precopy.pci import remap
from precopy.pci.capabilities import DEVCTL_FLR
from precopy.pci.endpoint import MSIX_PENDING, MSIX_TABLE
from precopy.pci.memory import GuestMemory, RegionSpec
from tests.connectx.pci_rig import DirectBus, OnBus, capability, extended


@pytest.fixture
def card() -> Iterator[OnBus]:
    made = OnBus()
    yield made
    made.close()


def test_ids_and_capabilities_of_the_pf(card: OnBus) -> None:
    assert card.pf.config_read(0, 4) == bytes.fromhex("b3151d10")
    assert [bool(capability(card.pf, wanted)) for wanted in (0x01, 0x10, 0x11)] == [True] * 3
    at = extended(card.pf, 0x10)
    assert card.pf.config_read(at + 0x0E, 2) == b"\x02\0"
    assert card.pf.config_read(at + 0x1A, 2) == b"\x1e\x10"


def test_a_bar_tells_its_size(card: OnBus) -> None:
    card.pf.config_write(0x10, b"\xff" * 8)
    value = int.from_bytes(card.pf.config_read(0x10, 8), "little")
    assert value & 0xF == 0xC
    assert -(value & ~0xF) & (1 << 64) - 1 == card.pf.bar_sizes[0] == 1 << 20


def test_vfs_show_up_with_vf_enable_and_go_with_it(card: OnBus) -> None:
    assert card.vfs[0].config_read(8, 4) == b"\xff" * 4
    assert card.vfs[0].bar_read(0, 0, 4) == b"\xff" * 4
    card.enable_vfs(1)
    assert card.vfs[0].config_read(8, 4) != b"\xff" * 4
    # SR-IOV, 9.3.4.1.1: a VF's ids read as ones.
    assert card.vfs[0].config_read(0, 4) == b"\xff" * 4
    assert card.vfs[1].config_read(8, 4) == b"\xff" * 4
    card.enable_vfs(0)
    assert card.vfs[0].config_read(8, 4) == b"\xff" * 4


def test_registers_that_are_not_a_driver_s_stay(card: OnBus) -> None:
    before = [card.pf.config_read(at, 1) for at in range(0x100)]
    for at in (0, 2, 6, 8, 0xE, 0x2C, 0x34):
        card.pf.config_write(at, b"\xff\xff")
    assert [card.pf.config_read(at, 1) for at in range(0x100)] == before


class Driver:
    """The driver of a function: its memory, its command queue, its interrupts."""

    def __init__(self, card: OnBus, index: int | None = None) -> None:
        function = card.pf if index is None else card.vfs[index]
        self.bus = DirectBus(function)
        self.port = PciPort(self.bus)
        self.memory = GuestMemory(self.port.regions)
        self.port.connect_memory(self.memory)

    def run(self, opcode: Opcode, inbox: Inbox | None = None) -> Outbox:
        inbox = inbox or Inbox()
        inbox.opcode = opcode
        return Outbox(self.port.execute(bytes(inbox.buf)))


@pytest.fixture
def pf(card: OnBus) -> Iterator[Driver]:
    driver = Driver(card)
    yield driver
    driver.memory.close()


def test_commands_through_the_queue(pf: Driver) -> None:
    pf.port.power_on()
    out = pf.port.execute(bytes(QueryHcaCapIn(opcode=Opcode.QUERY_HCA_CAP, op_mod=1).buf))
    assert len(out) == QueryHcaCapOut.SIZE
    assert any(out[16:])
    assert pf.run(Opcode.SET_ISSI, SetIssiIn(current_issi=7)).status == Status.BAD_PARAM


def test_an_unknown_opcode_has_a_status(pf: Driver) -> None:
    pf.port.power_on()
    assert Outbox(pf.port.execute(b"\x0f\xff" + bytes(14))).status == Status.BAD_OP


def test_a_command_that_is_never_answered(card: OnBus, pf: Driver) -> None:
    pf.port.power_on()
    card.faults.add_next(Opcode.ALLOC_PD, 1, NEVER)
    with pytest.raises(BringUpError, match="did not answer"):
        pf.run(Opcode.ALLOC_PD)
    assert pf.run(Opcode.ALLOC_PD).status == Status.OK


def test_a_command_whose_mailboxes_are_not_memory(card: OnBus, pf: Driver) -> None:
    """The entry tells that it was not delivered; the function goes on."""
    pf.port.power_on()
    view = pf.memory.view(COMMANDS_AT, 64)
    view[:64] = bytes(64)
    view[0], view[63] = 7, 1
    view[4:8], view[56:60] = (64).to_bytes(4, "big"), (16).to_bytes(4, "big")
    view[8:16] = (1 << 50).to_bytes(8, "big")
    pf.bus.write(0x18, (1).to_bytes(4, "big"))
    assert view[63] == 0x4 << 1
    assert pf.run(Opcode.ALLOC_PD).status == Status.OK


def test_pages_are_given_and_come_back(card: OnBus, pf: Driver) -> None:
    pf.port.power_on()
    pages = QueryPagesOut(
        pf.port.execute(bytes(QueryPagesIn(opcode=Opcode.QUERY_PAGES, op_mod=1).buf))
    ).num_pages
    assert pages == 16
    given = [0x1000 * n for n in range(1, pages + 1)]
    inbox = ManagePagesIn(
        bytearray(16 + 8 * pages),
        opcode=Opcode.MANAGE_PAGES,
        op_mod=1,
        input_num_entries=pages,
    )
    inbox.buf[16:] = b"".join(page.to_bytes(8, "big") for page in given)
    assert Outbox(pf.port.execute(bytes(inbox.buf))).status == Status.OK
    taken: list[int] = []
    while len(taken) < pages:
        take = ManagePagesIn(opcode=Opcode.MANAGE_PAGES, op_mod=2, input_num_entries=6)
        out = ManagePagesOut(bytearray(pf.port.execute(bytes(take.buf))))
        count = out.output_num_entries
        assert count
        body = out.buf[16 : 16 + 8 * count]
        taken += [int.from_bytes(body[at : at + 8], "big") for at in range(0, 8 * count, 8)]
    assert sorted(taken) == given


def test_only_the_pf_switches_other_functions_on(card: OnBus) -> None:
    card.enable_vfs(2)
    vf = Driver(card, 0)
    vf.port.power_on()
    assert vf.run(Opcode.ENABLE_HCA, EnableHcaIn(function_id=1)).status == Status.BAD_PARAM
    assert vf.run(Opcode.SUSPEND_VHCA).status == Status.BAD_OP
    vf.memory.close()


def test_flr_takes_everything_away(card: OnBus) -> None:
    card.enable_vfs(1)
    vf = Driver(card, 0)
    vf.port.power_on()
    assert vf.run(Opcode.ALLOC_PD).status == Status.OK
    control = capability(card.vfs[0], 0x10) + 8
    card.vfs[0].config_write(control, DEVCTL_FLR.to_bytes(2, "little"))
    assert card.vfs[0].config_read(control, 2) == b"\0\0"
    assert card.vfs[0].bar_read(0, 0x10, 4) == bytes(4)
    with pytest.raises(BringUpError, match="did not answer"):
        vf.run(Opcode.ALLOC_PD)
    vf.memory.close()


def test_a_command_to_a_suspended_function_waits_for_it(card: OnBus) -> None:
    card.enable_vfs(1)
    vf = Driver(card, 0)
    vf.port.power_on()
    function = card.adapter.vfs[0]
    vhca_id = function.vhca.vhca_id
    from precopy.mlx5.commands import Commands
    from precopy.mlx5_abi.commands import ResumeKind

    commands = Commands(card.adapter.pf)
    for kind in (SuspendKind.INITIATOR, SuspendKind.RESPONDER):
        commands.suspend(vhca_id, kind)
    with pytest.raises(BringUpError, match="did not answer"):
        vf.run(Opcode.ALLOC_PD)
    for resumed in (ResumeKind.RESPONDER, ResumeKind.INITIATOR):
        commands.resume(vhca_id, resumed)
    assert vf.memory.view(COMMANDS_AT, 64)[63] == 0
    vf.memory.close()


# --- MSI-X ------------------------------------------------------------------------------------


def test_a_masked_vector_waits(card: OnBus) -> None:
    heard: list[tuple[int, int]] = []
    bus = DirectBus(card.pf)
    card.pf.connect_msi(lambda address, data: heard.append((address, data)))
    bus.write(MSIX_TABLE + 12, b"\x01\0\0\0")
    card.pf.msix.fire(0)
    assert not heard
    assert bus.read(MSIX_PENDING, 8) == b"\x01" + bytes(7)
    bus.write(MSIX_TABLE + 12, bytes(4))
    assert heard == [(0xFEE0_0000, 0)]
    assert bus.read(MSIX_PENDING, 8) == bytes(8)


# --- The guest on the bus ---------------------------------------------------------------------


def test_a_guest_works_over_the_bus(card: OnBus) -> None:
    card.enable_vfs(1)
    guest = WorkloadGuest.power_on(
        PciPort(DirectBus(card.vfs[0])), WorkloadConfig(pairs=4, active=4)
    )
    guest.step(200)
    counts = guest.settle(5)
    assert counts.received == counts.sent == 200
    assert not counts.faults
    guest.close()


def test_doorbells_in_two_halves(card: OnBus) -> None:
    """Where the bus carries no 8 bytes at once."""
    card.enable_vfs(1)
    bus = DirectBus(card.vfs[0])
    whole = bus.write

    def halves(offset: int, data: bytes) -> None:
        for at in range(0, len(data), 4):
            whole(offset + at, data[at : at + 4])

    bus.write = halves  # type: ignore[method-assign]
    guest = WorkloadGuest.power_on(PciPort(bus), WorkloadConfig(pairs=4, active=4))
    guest.step(200)
    assert not guest.settle(5).faults
    guest.close()


# --- The remapping capability -----------------------------------------------------------------


def test_pages_stand_where_they_are_wanted(card: OnBus) -> None:
    function = card.pf
    with_pages = GuestMemory([RegionSpec(0x10_0000, 0x8000)])
    function.dma.map_guest(with_pages)
    order = [3, 1, 2, 7]
    list_at = 0x10_0000
    entries = b"".join((0x10_0000 + 0x1000 * page).to_bytes(8, "little") for page in order)
    with_pages.view(list_at, len(entries))[:] = entries
    at = capability(function, 0x09)
    assert function.config_read(at + 3, 1)[0] == remap.KIND

    def command(what: int, where: int = list_at, count: int = 4, address: int = 1 << 32) -> int:
        for register, value in ((remap.LIST, where), (remap.ADDRESS, address)):
            for half in (0, 4):
                word = (value >> 8 * half & 0xFFFF_FFFF).to_bytes(4, "little")
                function.config_write(at + register + half, word)
        function.config_write(at + remap.COUNT, count.to_bytes(4, "little"))
        function.config_write(at + remap.COMMAND, what.to_bytes(4, "little"))
        return int.from_bytes(function.config_read(at + remap.COMMAND, 4), "little")

    assert command(remap.MAP) == 0
    function.dma.write((1 << 32) + 0x0FFE, b"abcd")
    assert bytes(with_pages.view(0x10_3FFE, 2)) == b"ab"
    assert bytes(with_pages.view(0x10_1000, 2)) == b"cd"
    # The same once more would stand where these stand; nothing outside memory can be mapped.
    assert command(remap.MAP) != 0
    assert command(remap.MAP, where=1 << 50, address=1 << 40) != 0
    assert command(remap.MAP, count=0) != 0
    assert command(remap.UNMAP) == 0
    with pytest.raises(OSError, match="not mapped"):
        function.dma.read(1 << 32, 1)
    with_pages.close()


def test_two_functions_at_once(card: OnBus) -> None:
    card.enable_vfs(2)
    guests = [
        WorkloadGuest.power_on(PciPort(DirectBus(vf)), WorkloadConfig(pairs=2, active=2, seed=n))
        for n, vf in enumerate(card.vfs)
    ]
    threads = [threading.Thread(target=guest.step, args=(300,)) for guest in guests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for guest in guests:
        assert guest.settle(5).received == 300
        assert not guest.counts().faults
        guest.close()
