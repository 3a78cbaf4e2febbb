"""What the tests do in a guest that has the VF, and what its kernel says of it."""

import re

from tests.interop.errors import PeerError
from tests.interop.vfio_user.machine import Machine

DRIVER = "/sys/bus/pci/drivers/mlx5_core"

#: The one warning that belongs here: the card has no Ethernet offloads, so no network interface.
NO_ETHERNET = "Missing eth_net_offloads capability"

#: ``<4>[    3.4] mlx5_core 0000:00:01.0: function:66:(pid 97): text``
_LINE = re.compile(r"<(\d+)>\[ *[\d.]+\] (.*)")
_WHERE = re.compile(r"mlx5\w* \S+: (?:\w+:\d+:\(pid \d+\): )?")
_WARNING = 4


def device(machine: Machine) -> str:
    """The VF's directory in sysfs."""
    return f"/sys/bus/pci/devices/{machine.address}"


def load(machine: Machine) -> None:
    """Load mlx5_core and what it needs; return when its probe has ended."""
    machine.run("while read module; do insmod $module || exit 1; done </modules")


def unbind(machine: Machine) -> None:
    machine.run(f"echo {machine.address} >{DRIVER}/unbind")


def bind(machine: Machine) -> None:
    machine.run(f"echo {machine.address} >{DRIVER}/bind")


def driver(machine: Machine) -> str:
    """The driver that has the VF, or nothing."""
    return machine.run(f"readlink {device(machine)}/driver || true").rpartition("/")[2]


def warnings(machine: Machine) -> list[str]:
    """What the guest's kernel has warned of, and worse, about mlx5 or itself; without where and when."""
    said = []
    for level, text in _LINE.findall(machine.run("dmesg -r").replace("\r", "")):
        grave = re.search(r"\bBUG\b|Oops|Call Trace|rcu.*stall|blocked for more than", text)
        if grave or ("mlx5" in text and int(level) % 8 <= _WARNING):
            said.append(_WHERE.sub("", text))
    return said


def works(machine: Machine) -> None:
    """The driver has the VF, its commands are answered by interrupt, and nothing is wrong. PeerError."""
    found = driver(machine)
    if found != "mlx5_core":
        raise PeerError(f"the VF has driver {found!r}\n{machine.last_words()}")
    wrong = [text for text in warnings(machine) if text != NO_ETHERNET]
    if wrong:
        raise PeerError(f"the guest's kernel says {wrong}\n{machine.last_words()}")
    if not interrupts(machine):
        raise PeerError(f"no interrupt of the VF has come\n{machine.last_words()}")


def interrupts(machine: Machine) -> int:
    """Of the VF, since its driver has it."""
    lines = machine.run("grep mlx5 /proc/interrupts || true").splitlines()
    return sum(int(line.split()[1]) for line in lines)
