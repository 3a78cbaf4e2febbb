"""Two equal VFs: one in this process, the other through a vfio-user socket. Nothing goes on by itself."""

import threading
from collections import deque
from collections.abc import Callable

from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.connectx import options as kinds
from precopy.connectx.adapter import Adapter, InlineExecutor
from precopy.frontends.vfio_user.server import Server
from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.commands import Opcode
from precopy.options import parse
from precopy.vfio.device import VfioDevice
from precopy.vfio.function_face import FunctionFace

CARD = "first_session=1&page_track=1&log_max_qp=4&state=8K&migration_state=1&reinit_pages=2"

MEMORY = 64 * 4096


class StepWorker:
    """Does what is given to it when the test says so."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None], /) -> None:
        self.work.append(work)

    def shutdown(self, wait: bool = True) -> None:
        self.work.clear()


class Twin:
    """A VF in this process, with guest memory at 0 (``tests.lab.operations.Bench``)."""

    def __init__(self, card: str) -> None:
        found = parse(card, kinds.CARD)
        self._faults = kinds.faults(found)
        self._adapter = Adapter(kinds.config(found), faults=self._faults, executor=InlineExecutor())
        self._worker = StepWorker()
        self._port = self._adapter.vfs[0]
        self.behind = Mlx5VfioDevice(
            self._adapter.pf,
            0,
            name="vf",
            flr=lambda: self._adapter.flr(0),
            worker=self._worker,
        )
        self.device: VfioDevice = self.behind
        self.face = FunctionFace(
            self._adapter.assigned_vf(0), flr=self.behind.reset, barrier=self._port.vhca.lock
        )
        self.face.dma.map(0, memoryview(bytearray(MEMORY)))

    def execute(self, inbox: bytes) -> bytes:
        return self._port.execute(inbox)

    def dma_write(self, address: int, data: bytes) -> None:
        self.face.dma.write(address, data)

    def plan(self, opcode: Opcode, nth: int, status: int) -> None:
        self._faults.add_next(opcode, nth, status)

    def clear(self) -> None:
        self._faults.clear()

    def was_reset(self) -> None: ...

    def settle(self) -> None:
        while self._worker.work:
            self._worker.work.popleft()()

    def mark(self, number: int) -> None: ...

    def close(self) -> None:
        self.behind.close()
        self._adapter.close()


class ServedTwin(Twin):
    """The same, reached through a socket at ``path``."""

    def __init__(self, card: str, path: str) -> None:
        super().__init__(card)
        # Its memory is the test's, not a client's.
        self._server = Server(self.behind, None, path)
        self._thread: threading.Thread = self._server.start()
        self.device = VfioUserDevice(Client(path), "vfio-user")

    def close(self) -> None:
        self.device.close()
        self._server.stop()
        self._thread.join(20)
        super().close()
