"""The adapter: one PF, its VFs, and the firmware between them."""

import errno
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from precopy.connectx import slots
from precopy.connectx.config import AdapterConfig, FaultPlan
from precopy.connectx.firmware import NEVER_ANSWERED, Firmware, Function
from precopy.connectx.pci_function import ConnectxFunction, PhysicalFunction
from precopy.connectx.vhca import Vhca
from precopy.mlx5_abi.commands import Outbox
from precopy.mlx5_abi.port import Done
from precopy.mlx5_abi.status import Status
from precopy.pci.dma import DmaSpace
from precopy.pci.memory import GuestMemory, RegionSpec
from precopy.vfio.errors import refuse

#: VHCA ids: the PF's, and VF n has this plus n.
_PF_VHCA_ID = 0x100

#: A PF here has no queues of its own; its keys are over the driver's buffers.
_PF_LOG_MAX = 8

#: Room for bulk state of a card that may be loaded: address space, not memory.
_SPARE_ROOM = 16 << 30


class Executor(Protocol):
    """Where commands that were submitted are carried out, one after another."""

    def submit(self, work: Callable[[], None], /) -> object: ...

    def shutdown(self, wait: bool = True) -> None: ...


class InlineExecutor:
    """At once, in the thread that submits."""

    def submit(self, work: Callable[[], None], /) -> object:
        work()
        return None

    def shutdown(self, wait: bool = True) -> None:
        return None


class Port:
    """The command interface, doorbells and interrupts of one function (``FunctionPort``)."""

    def __init__(self, adapter: "Adapter", function: Function) -> None:
        self._adapter = adapter
        self._function = function

    @property
    def dma(self) -> DmaSpace:
        return self._function.vhca.dma

    @property
    def vhca(self) -> Vhca:
        return self._function.vhca

    @property
    def regions(self) -> Sequence[RegionSpec]:
        return ()

    def connect_memory(self, memory: GuestMemory) -> None:
        self.dma.map_guest(memory)

    def disconnect_memory(self, memory: GuestMemory) -> None:
        for region in memory.regions:
            self.dma.unmap(region.spec.iova)

    def power_on(self) -> None:
        """It is on."""

    def execute(self, inbox: bytes) -> bytes:
        self._adapter.require_alive()
        return self._adapter.firmware.execute(self._function, inbox)

    def submit(self, inbox: bytes, done: Done) -> None:
        self._adapter.require_alive()
        firmware, function = self._adapter.firmware, self._function

        def work() -> None:
            try:
                outbox = firmware.execute(function, inbox)
            except TimeoutError:
                # Who waits for a command that is never answered gives up in the end.
                outbox = bytes(Outbox(status=Status.INT_ERR, syndrome=NEVER_ANSWERED))
            done(outbox)

        self._adapter.executor.submit(work)

    def ring(self, uar: int, offset: int, data: bytes) -> None:
        self._function.transport.ring(uar, offset, data)

    def set_interrupt(self, vector: int, handler: Callable[[], None] | None) -> None:
        with self.vhca.lock:
            if handler is None:
                self.vhca.interrupts.pop(vector, None)
            else:
                self.vhca.interrupts[vector] = handler


class Adapter:
    """A card. ``pf`` and ``vfs`` are its functions' ports; ``executor`` is a worker of its own by default."""

    def __init__(
        self,
        config: AdapterConfig | None = None,
        *,
        faults: FaultPlan | None = None,
        executor: Executor | None = None,
    ) -> None:
        self.config = config = config or AdapterConfig()
        self.executor: Executor = executor or ThreadPoolExecutor(1, thread_name_prefix="firmware")
        self._closed = threading.Event()
        of_pf = slots.tables(_PF_LOG_MAX, _PF_LOG_MAX, 0)
        room = max(config.state_bytes, _SPARE_ROOM if config.blank or config.spare_room else 0)
        of_vf = slots.tables(config.log_max_qp, config.log_max_cq, room)
        # A PF has no bulk state of its own here.
        functions = {0: Function(0, Vhca(_PF_VHCA_ID, config, of_pf))}
        for index in range(1, config.num_vfs + 1):
            functions[index] = Function(index, Vhca(_PF_VHCA_ID + index, config, of_vf))
        self.firmware = Firmware(config, functions, faults or FaultPlan())
        self.pf = Port(self, functions[0])
        self.vfs = [Port(self, functions[index + 1]) for index in range(config.num_vfs)]
        self._functions = functions

    def flr(self, vf_index: int) -> None:
        """Reset VF ``vf_index`` (from 0)."""
        self.vfs[vf_index].vhca.reset()

    def pci_functions(self) -> tuple[PhysicalFunction, list[ConnectxFunction]]:
        """PF and VFs as they stand on a bus. VFs show up as the PF's SR-IOV says.

        Their MSI-X tables take the interrupts that no handler of a port was set for.
        """
        made = [
            ConnectxFunction(self.config, self.firmware, self._functions[index + 1])
            for index in range(self.config.num_vfs)
        ]
        pf = PhysicalFunction(self.config, self.firmware, self._functions[0], made)
        return pf, made

    def assigned_vf(self, vf_index: int) -> ConnectxFunction:
        """VF ``vf_index`` (from 0) as VFIO shows it to the guest that it is assigned to."""
        function = self._functions[vf_index + 1]
        return ConnectxFunction(self.config, self.firmware, function, assigned=True)

    def require_alive(self) -> None:
        if self._closed.is_set():
            raise refuse(errno.ENOTCONN, "the adapter is gone")

    def close(self) -> None:
        """Take the card out: commands raise ENOTCONN from now on."""
        self._closed.set()
        self.executor.shutdown(wait=False)
