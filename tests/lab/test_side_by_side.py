"""The kernel's mlx5_vfio_pci and ours, on equal firmware, side by side.

Sequences of operations are drawn at random. Either driver has to give the same commands with the
same fields in the same order, the same bytes on the data_fd, the same errno and the same state. The
deliberate differences (Documentation/design/differences.rst) are in one table, and nothing else is
let pass. ``--sequences N`` asks for more than the ordinary 500.
"""

import json
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from precopy import options
from precopy.connectx import options as kinds
from precopy.connectx.adapter import Adapter, InlineExecutor
from precopy.connectx.image import Scattered, parse
from precopy.connectx.trace import to as trace_to
from precopy.guest.pci_port import PciPort
from precopy.lab.card import PARAMETERS
from precopy.lab.machine import Job, Machine
from precopy.mlx5 import Mlx5VfioDevice
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import Tag
from precopy.vfio.device import VfioDevice
from precopy.vfio.states import DeviceState
from tests.connectx.pci_rig import DirectBus, enable_vfs
from tests.lab.differences import Step, explain
from tests.lab.operations import Operation, Outcome, Run, sequences
from tests.lab.vf_driver import VfDriver
from tests.mlx5.conftest import records

#: Equal on both sides: small, so that little is moved, and with new initial state soon.
CARD = "vfs=1&log_max_qp=4&reinit_pages=3&first_session=1000"

SHORTEST, LONGEST = 6, 20


@dataclass
class Told:
    """What a sequence did: an outcome for each operation, and the commands that came with it."""

    outcomes: list[Outcome]
    commands: list[list[str]] = field(default_factory=list)


class Lines:
    """The trace of one card, cut at marks."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def __call__(self, line: str) -> None:
        self._lines.append(line)

    def take(self, operations: int) -> list[list[str]]:
        """Commands by operation; what came before the first mark belongs to nobody."""
        found: list[list[str]] = [[] for _ in range(operations + 1)]
        current: list[str] = []
        for line in self._lines:
            if line.startswith("mark "):
                current = found[int(line.split()[1])]
            else:
                current.append(line)
        self._lines.clear()
        return found


# --- The kernel's driver ----------------------------------------------------------------------


class KernelSide:
    """A lab kernel that carries out one sequence after another."""

    def __init__(self, card: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="precopy-compare-")
        path = Path(self._directory.name)
        self._path, self._number = path, 0
        self._lines = Lines()
        command = [sys.executable, "-m", "tests.lab.inside_compare", str(path)]
        job = Job(
            command,
            adapter=f"mlx5?{card}",
            writable=[path],
            timeout=600,
            arguments=["time-travel=inf-cpu"],
        )
        self._machine = Machine(job, prepare=lambda made: made.trace(self._lines))
        self._result: list[object] = []
        self._thread = threading.Thread(target=lambda: self._result.append(self._machine.wait()))
        self._thread.start()

    def _ask(self, operations: list[Operation]) -> Path:
        part = self._path / "ask.part"
        part.write_text(json.dumps(operations))
        part.rename(self._path / f"ask-{self._number}")
        self._number += 1
        return self._path / f"answer-{self._number - 1}"

    def run(self, operations: list[Operation]) -> Told:
        answer = self._ask(operations)
        while not answer.exists():
            assert self._thread.is_alive(), "the kernel is gone"
            time.sleep(0.001)
        outcomes = json.loads(answer.read_text())
        return Told(outcomes, self._lines.take(len(operations)))

    def close(self) -> None:
        self._ask([])
        self._thread.join()
        self._directory.cleanup()
        result = self._result[0]
        assert (result.status, result.trouble) == (0, ""), f"{result.trouble} {result.err[-2000:]}"  # type: ignore[attr-defined]


# --- Ours -------------------------------------------------------------------------------------


class StepWorker:
    """Work that is done when the bench settles."""

    def __init__(self) -> None:
        self.work: deque[Callable[[], None]] = deque()

    def submit(self, work: Callable[[], None], /) -> None:
        self.work.append(work)

    def shutdown(self, wait: bool = True) -> None:
        self.work.clear()


class OurBench:
    """The same VF as our driver has it."""

    def __init__(self, card: str, lines: Lines) -> None:
        found = options.parse(card, PARAMETERS)
        self._faults = kinds.faults(found)
        config = kinds.config(found, num_vfs=1)
        self._adapter = Adapter(config, faults=self._faults, executor=InlineExecutor())
        self._pf, (self._vf,) = self._adapter.pci_functions()
        enable_vfs(self._pf, 1)
        self._worker, self._lines = StepWorker(), lines
        self.device: VfioDevice = Mlx5VfioDevice(
            self._adapter.pf, 0, name="vf", flr=self._vf.reset, worker=self._worker
        )
        self._adapter.firmware.trace = trace_to(lines)
        bus = DirectBus(self._vf)
        self._driver = VfDriver(PciPort(bus), bus)

    def execute(self, inbox: bytes) -> bytes:
        return self._driver.execute(inbox)

    def plan(self, opcode: Opcode, nth: int, status: int) -> None:
        self._faults.add_next(opcode, nth, status)

    def clear(self) -> None:
        self._faults.clear()

    def was_reset(self) -> None: ...

    def settle(self) -> None:
        while self._worker.work:
            self._worker.work.popleft()()

    def mark(self, number: int) -> None:
        self._lines(f"mark {number}")

    def close(self) -> None:
        self.device.close()
        self._adapter.close()
        self._driver.close()


def ours(card: str, operations: list[Operation]) -> Told:
    lines = Lines()
    bench = OurBench(card, lines)
    try:
        outcomes = Run(bench).run(operations)
    finally:
        bench.close()
    return Told(outcomes, lines.take(len(operations)))


# --- Side by side -----------------------------------------------------------------------------


@pytest.fixture(params=["chunks=0", "chunks=1"], scope="module")
def kernel(request: pytest.FixtureRequest) -> Iterator[tuple[str, KernelSide]]:
    card = f"{CARD}&{request.param}"
    side = KernelSide(card)
    yield card, side
    side.close()


def compare(operations: list[Operation], kernel: Told, our: Told, seen: Counter[str]) -> None:
    """Fail at the first operation that differs in a way that no difference explains."""
    for number in range(len(operations) + 1):
        name = operations[number] if number < len(operations) else ["end"]
        outcomes = [
            told.outcomes[number] if number < len(operations) else None for told in (kernel, our)
        ]
        step = Step(
            operations[:number],
            name,
            outcomes[0],
            outcomes[1],
            kernel.commands[number],
            our.commands[number],
        )
        if step.equal:
            continue
        reason = explain(step)
        assert reason is not None, step.told()
        seen[reason.name] += 1
        if reason.parts:
            # From here on the two devices are in different states.
            return


def test_side_by_side(kernel: tuple[str, KernelSide], request: pytest.FixtureRequest) -> None:
    card, side = kernel
    seen: Counter[str] = Counter()
    count = int(request.config.getoption("--sequences")) // 2

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(sequences(SHORTEST, LONGEST))
    def run(operations: list[Operation]) -> None:
        seen["sequences"] += 1
        compare(operations, side.run(operations), ours(card, operations), seen)

    run()
    assert seen["sequences"] >= count


def contents(stream: str) -> list[bytes]:
    """What the images of a stream hold, without what names the session that they were saved in."""
    found = []
    for tag, image in records(bytes.fromhex(stream)):
        if tag == Tag.FW_DATA:
            parsed, ids = parse(Scattered([memoryview(image)], len(image)))
            found += [
                ids.tobytes(),
                image[-parsed.page_count * 4096 :] if parsed.page_count else b"",
            ]
    return found


def test_a_stream_saved_by_either_loads_through_the_other(kernel: tuple[str, KernelSide]) -> None:
    card, side = kernel
    stop_copy, resuming, running = (
        int(state) for state in (DeviceState.STOP_COPY, DeviceState.RESUMING, DeviceState.RUNNING)
    )
    save: list[Operation] = [["touch", 3], ["set_state", stop_copy], ["take"]]
    here = ours(card, save).outcomes[-1]
    there = side.run(save).outcomes[-1]
    assert contents(here) == contents(there) != []

    def restore(stream: str) -> list[Operation]:
        again: list[Operation] = [["set_state", running], ["set_state", stop_copy], ["take"]]
        return [["set_state", resuming], ["give", stream], *again]

    assert contents(side.run(restore(here)).outcomes[-1]) == contents(here)
    assert contents(ours(card, restore(there)).outcomes[-1]) == contents(there)
