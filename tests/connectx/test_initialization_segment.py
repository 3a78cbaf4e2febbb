"""What a driver reads in the initialization segment, and what registers tell it to wait for."""

import pytest

from precopy.connectx.capability_pages import TIMER_KHZ
from precopy.connectx.pci_function import ConnectxFunction
from precopy.mlx5_abi.capabilities import GeneralCap
from precopy.mlx5_abi.commands import AccessRegIn, AllocPdOut, Opcode, Outbox, QueryHcaCapIn
from precopy.mlx5_abi.status import Status
from precopy.pci.capabilities import DEVCTL_FLR
from tests.connectx.pci_rig import capability
from tests.connectx.rig import command, small_adapter

CMDQ_HIGH, CMDQ_LOW, TIMER_HIGH, TIMER_LOW, HEALTH = 0x10, 0x14, 0x1000, 0x1004, 0x1010
QUEUE = 0x1_2345_6000
DTOR, HEALTH_POLL_AT = 0xC00E, 20


def _read(function: ConnectxFunction, offset: int) -> int:
    return int.from_bytes(function.bar_read(0, offset, 4), "big")


def _write(function: ConnectxFunction, offset: int, value: int) -> None:
    function.bar_write(0, offset, value.to_bytes(4, "big"))


def _interface(function: ConnectxFunction) -> int:
    """``nic_interface``: 0 a driver has it, 1 disabled."""
    return _read(function, CMDQ_LOW) >> 8 & 7


def _take(function: ConnectxFunction) -> None:
    _write(function, CMDQ_HIGH, QUEUE >> 32)
    _write(function, CMDQ_LOW, QUEUE & 0xFFFF_FFFF)


@pytest.fixture
def vf() -> ConnectxFunction:
    return small_adapter().assigned_vf(0)


def test_a_function_is_disabled_until_a_driver_has_it(vf: ConnectxFunction) -> None:
    assert _interface(vf) == 1
    # 32 entries of 64 bytes, before and after.
    assert _read(vf, CMDQ_LOW) & 0xFF == 0x56
    _take(vf)
    assert _interface(vf) == 0
    assert (_read(vf, CMDQ_HIGH), _read(vf, CMDQ_LOW)) == (1, 0x2345_6056)


def test_a_reset_takes_it_from_its_driver(vf: ConnectxFunction) -> None:
    _take(vf)
    at = capability(vf, 0x10) + 8
    vf.config_write(at, DEVCTL_FLR.to_bytes(2, "little"))
    assert _interface(vf) == 1
    _take(vf)
    assert _interface(vf) == 0


def test_a_driver_that_has_no_time_disables_it() -> None:
    adapter = small_adapter()
    vf, port = adapter.assigned_vf(0), adapter.vfs[0]
    _take(vf)
    assert command(port, Opcode.ENABLE_HCA).status == Status.OK
    assert command(port, Opcode.INIT_HCA).status == Status.OK
    made = command(port, Opcode.ALLOC_PD)
    assert isinstance(made, AllocPdOut)
    # mlx5_set_nic_state(): the address stays in the word.
    _write(vf, CMDQ_LOW, _read(vf, CMDQ_LOW) & 0xFFFF_F000 | 1 << 8)
    assert _interface(vf) == 1
    assert command(port, Opcode.DEALLOC_PD, pd=made.pd).status != Status.OK
    assert (port.vhca.hca.enabled, port.vhca.hca.initialized) == (0, 0)
    _take(vf)
    assert _interface(vf) == 0


def test_the_health_counter_counts(vf: ConnectxFunction) -> None:
    first = _read(vf, HEALTH)
    assert [_read(vf, HEALTH) for _ in range(3)] == [first + 1, first + 2, first + 3]


def _general(**options: bool) -> GeneralCap:
    port = small_adapter("", **options).vfs[0]
    out = command(port, Opcode.QUERY_HCA_CAP, QueryHcaCapIn(op_mod=1))
    return GeneralCap(memoryview(out.buf)[Outbox.SIZE :])


def test_the_timer_runs_at_the_frequency_that_the_capability_names(vf: ConnectxFunction) -> None:
    assert _general().device_frequency_khz == TIMER_KHZ == 1_000_000
    times = []
    for _ in range(2):
        high = _read(vf, TIMER_HIGH)
        low = _read(vf, TIMER_LOW)
        # As the driver reads it: the high half once more where it has changed.
        times.append(high << 32 | low if _read(vf, TIMER_HIGH) == high else (high + 1) << 32)
    assert times[0] < times[1] < times[0] + 10 * TIMER_KHZ * 1000


def _health_poll(**options: bool) -> int:
    """Of DTOR: multiplier (3: hours) and value, as a word."""
    port = small_adapter("", **options).vfs[0]
    out = command(port, Opcode.ACCESS_REG, AccessRegIn(op_mod=1, register_id=DTOR))
    assert out.status == Status.OK
    at = Outbox.SIZE + HEALTH_POLL_AT
    return int.from_bytes(out.buf[at : at + 4], "big")


def test_how_often_a_driver_looks() -> None:
    # 0: a driver's own 2 s.
    assert _health_poll() == 0
    assert _health_poll(few_polls=True) == 3 << 29 | 1
    # A timer's clock has to be read by a timer, too.
    assert _general(few_polls=True).device_frequency_khz == 0
