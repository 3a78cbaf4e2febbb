"""Runs in a lab kernel: carries out sequences of operations on its first VF, as they are asked for.

    python -m tests.lab.inside_compare DIRECTORY

Requests and answers are files in DIRECTORY, of the host's file system: ``ask-N`` holds a sequence
as JSON, ``answer-N`` what came of it; an empty sequence ends it.
"""

import itertools
import json
import os
import sys
import time
from pathlib import Path

from precopy.backends.kernel import open_kernel_device
from precopy.backends.vfio_guest import VfioBus
from precopy.connectx.controls import Remote
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.commands import Opcode
from precopy.pci.memory import GuestMemory
from tests.lab.operations import Run
from tests.lab.vf_driver import VfDriver

NAME = "vfio:0000:00:01.0"


class KernelBench:
    """The VF as the kernel's driver has it."""

    def __init__(self) -> None:
        self.device = open_kernel_device(NAME)
        self._remote = Remote()
        self._bus = VfioBus(self.device)
        self._driver = VfDriver(PciPort(self._bus), self._bus)
        self._memory: GuestMemory = self._driver.memory

    def execute(self, inbox: bytes) -> bytes:
        return self._driver.execute(inbox)

    def plan(self, opcode: Opcode, nth: int, status: int) -> None:
        self._remote.plan(opcode, nth, status)

    def clear(self) -> None:
        self._remote.clear()

    def was_reset(self) -> None:
        # A reset takes mappings away.
        self._bus.unmap_guest(self._memory)
        self._bus.map_guest(self._memory)

    def settle(self) -> None:
        """Time passes only while everybody sleeps (time-travel=inf-cpu), so all work is done by then."""
        time.sleep(0.01)

    def mark(self, number: int) -> None:
        self._remote.mark(number)

    def close(self) -> None:
        self.device.close()
        self._driver.close()


def main(directory: Path) -> None:
    for number in itertools.count():
        ask, answer = directory / f"ask-{number}", directory / f"answer-{number}"
        while not ask.exists():
            time.sleep(0.001)
        operations = json.loads(ask.read_text())
        if not operations:
            return
        bench = KernelBench()
        try:
            found = Run(bench).run(operations)
        finally:
            bench.close()
        part = directory / "answer.part"
        part.write_text(json.dumps(found))
        os.replace(part, answer)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
