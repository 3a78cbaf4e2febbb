"""The software ConnectX in a lab kernel: a card on its PCI bus, behind vhost-user sockets."""

from collections.abc import Callable, Mapping
from pathlib import Path

from precopy import options
from precopy.connectx import Adapter, InlineExecutor
from precopy.connectx import options as kinds
from precopy.connectx.pci_function import MAX_VFS
from precopy.connectx.trace import to as trace_to
from precopy.frontends.virtio_pcidev import Server
from precopy.lab.errors import LabError
from precopy.options import Option, OptionError, within

#: Everything that may stand behind ``mlx5?``.
PARAMETERS: dict[str, Option] = {
    "vfs": Option(within(1, MAX_VFS), "2", "VFs, bound to mlx5_vfio_pci"),
    "timeout": Option(within(1, 3600), "60", "seconds that the driver waits for a command"),
    **kinds.CARD,
}


def parse(text: str) -> Mapping[str, object]:
    """The options of an adapter's name. LabError says which is wrong."""
    model, _, query = text.partition("?")
    if model != "mlx5":
        raise LabError(f"--adapter {text}: there is no adapter {model!r}; write mlx5")
    try:
        return options.parse(query, PARAMETERS)
    except OptionError as error:
        raise LabError(f"--adapter {text}: {error}") from error


class Card:
    """A card that listens, in ``directory``, for the kernel that it is to be in."""

    def __init__(self, text: str, directory: Path) -> None:
        found = parse(text)
        vfs, timeout = found["vfs"], found["timeout"]
        assert isinstance(vfs, int)
        assert isinstance(timeout, int)
        self.vfs = vfs
        # A read from a timer, amid another read of the same function, can make User-Mode Linux lose
        # that one's answer (virtio_pcidev.c is not safe against interrupts).
        config = kinds.config(found, num_vfs=vfs, command_timeout=timeout, few_polls=True)
        #: Everything is done while the kernel waits, so in the thread that it waits for.
        self.adapter = Adapter(config, faults=kinds.faults(found), executor=InlineExecutor())
        self.pf, vf_functions = self.adapter.pci_functions()
        self._server = Server([self.pf, *vf_functions], directory)

    def arguments(self) -> list[str]:
        """What the kernel's command line needs; the order is that of the slots."""
        return list(self._server.kernel_arguments)

    def trace(self, write: Callable[[str], object]) -> None:
        """Give ``write`` a line for every firmware command, and for every mark set from inside."""
        self.adapter.firmware.trace = trace_to(write)
        self.pf.controls.marked = lambda number: write(f"mark {number}")

    @property
    def trouble(self) -> list[str]:
        """What the kernel said that no front end says."""
        return self._server.trouble

    def close(self) -> None:
        self._server.close()
        self.adapter.close()
