"""Debian's mlx5_core, as it is, on the software VF that QEMU has by vfio-user."""

import time

import pytest

from tests.interop.errors import PeerError
from tests.interop.vfio_user import guest
from tests.interop.vfio_user.conftest import Start
from tests.interop.vfio_user.served import Served

# Above all that a test waits for, one after another: its own limits say what the guest said last.
pytestmark = pytest.mark.timeout(400)

#: ``health_counter`` of the initialization segment; each read of it counts.
HEALTH_COUNTER = 0x1010

#: Polls that are waited for: an unwell function would be told of after three.
POLLS = 6

#: Seconds for them: one every 2 s, and up to 1 s more each.
POLLED_WITHIN = 60.0

#: How a migration of QEMU's can end.
_ENDS = ("completed", "failed", "cancelled")


def test_the_guest_sees_a_connectx_vf(start: Start) -> None:
    with start() as machine:
        found = machine.run(
            f"cd {guest.device(machine)} && cat vendor device class reset_method && cd /"
        )
        assert found.split() == ["0x15b3", "0x101e", "0x020000", "flr"]
        # BAR 0, 64 bits wide and prefetchable, was given a place.
        first = machine.run(f"head -n 1 {guest.device(machine)}/resource").split()
        begin, end = int(first[0], 16), int(first[1], 16)
        assert begin
        assert end - begin + 1 == 1 << 20


def test_mlx5_core_probes_to_the_end(start: Start) -> None:
    with start() as machine:
        guest.load(machine)
        guest.works(machine)
        assert "firmware version: 28.43.1014" in machine.console()
        # Told once for each look at what there is: without Ethernet there is no interface.
        assert set(guest.warnings(machine)) == {guest.NO_ETHERNET}
        assert machine.run("ls /sys/class/net") == "lo"
        assert machine.run("ls /sys/bus/auxiliary/devices") == "mlx5_core.rdma.0"
        # The function's timer is a clock.
        assert machine.run(f"ls {guest.device(machine)}/ptp") == "ptp0"


def test_the_health_poll_finds_it_well(start: Start) -> None:
    with start() as machine:
        guest.load(machine)
        first, looks, ends = machine.word(HEALTH_COUNTER), 0, time.monotonic() + POLLED_WITHIN
        # Each look of ours counts, too.
        while (polls := machine.word(HEALTH_COUNTER) - first - looks - 1) < POLLS:
            looks += 1
            if time.monotonic() > ends:
                raise PeerError(f"{polls} health polls only\n{machine.last_words()}")
            machine.run("sleep 1")
        guest.works(machine)
        assert "health" not in machine.console()


def test_the_driver_lets_go_and_comes_again(start: Start) -> None:
    with start() as machine:
        guest.load(machine)
        for _ in range(3):
            guest.unbind(machine)
            assert guest.driver(machine) == ""
            guest.bind(machine)
            guest.works(machine)


def test_a_reset_without_a_driver(start: Start) -> None:
    with start() as machine:
        guest.load(machine)
        guest.unbind(machine)
        machine.run(f"echo 1 >{guest.device(machine)}/reset")
        guest.bind(machine)
        guest.works(machine)


def test_a_reset_behind_the_drivers_back_is_recovered_from(start: Start) -> None:
    with start() as machine:
        guest.load(machine)
        machine.run(f"echo 1 >{guest.device(machine)}/reset")
        # 3: nic_interface says that the function is disabled.
        machine.says("Fatal error 3 detected")
        machine.says("health recovery succeeded")
        machine.run("dmesg -c >/dev/null")
        guest.unbind(machine)
        guest.bind(machine)
        guest.works(machine)


def test_the_guest_reboots(start: Start) -> None:
    with start() as machine:
        guest.load(machine)
        machine.send("reboot -f")
        machine.booted()
        guest.load(machine)
        guest.works(machine)


def test_qemu_resets_the_machine(start: Start) -> None:
    """Without a word to the guest: its driver lets go of nothing."""
    with start() as machine:
        guest.load(machine)
        machine.qmp.execute("system_reset")
        machine.booted()
        guest.load(machine)
        guest.works(machine)


def test_qemu_is_killed_and_comes_again(start: Start, served: Served) -> None:
    with start() as machine:
        guest.load(machine)
        # With the driver at work.
        machine.kill()
    served.wait_gone(1)
    with start() as machine:
        guest.load(machine)
        guest.works(machine)


def test_the_server_keeps_nothing_of_a_qemu_that_has_gone(start: Start, served: Served) -> None:
    idle = served.held()
    for count in range(1, 7):
        with start(boot=count % 3 == 0) as machine:
            if count % 3 == 0:
                guest.load(machine)
        served.wait_gone(count)
        assert served.held() == idle, served.last_words()


def test_it_is_put_into_a_running_guest(start: Start) -> None:
    with start(port=True, plugged=False) as machine:
        guest.load(machine)
        machine.run(f"test ! -e {guest.device(machine)}")
        machine.qmp.execute("device_add", **machine.device)
        machine.run(f"until test -e {guest.device(machine)}/driver; do usleep 50000; done")
        guest.works(machine)


def test_it_is_taken_out_of_a_running_guest(start: Start, served: Served) -> None:
    """The server has it back, whatever becomes of QEMU: 11.1.3 aborts over its own MSI-X regions."""
    idle = served.held()
    with start(port=True) as machine:
        guest.load(machine)
        machine.qmp.execute("device_del", id="vf")
        served.wait_gone(1)
    assert served.held() == idle
    with start() as machine:
        guest.load(machine)
        guest.works(machine)


def test_dma_over_the_socket(start: Start) -> None:
    """The guest's memory is QEMU's alone: the protocol's own messages are what QEMU 11.1 speaks."""
    with start(share=False) as machine:
        guest.load(machine)
        guest.works(machine)
        guest.unbind(machine)
        guest.bind(machine)
        guest.works(machine)


def test_qemus_migration_leaves_the_device_out(start: Start) -> None:
    """It says completed, and has moved nothing of the device."""
    with start() as machine:
        guest.load(machine)
        machine.qmp.execute("migrate", uri="exec:cat >/dev/null")
        ends = time.monotonic() + 60.0
        while (figures := machine.qmp.execute("query-migrate"))["status"] not in _ENDS:
            if time.monotonic() > ends:
                raise PeerError(f"the migration does not end: {figures}\n{machine.last_words()}")
        assert figures["status"] == "completed"
        assert figures["vfio"] == {"transferred": 0}
