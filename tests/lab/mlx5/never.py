"""Firmware commands that are never answered: how long the driver waits, what it says, what is left."""

import threading
import time
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.connectx.config import NEVER
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import HEADER_SIZE, SIZE_RECORD_BYTES, RecordHeader
from precopy.vfio.device import MigrationFile
from tests.lab.inside import enter, outcome, state
from tests.lab.mlx5.attempt import SCENARIOS, content_of
from tests.lab.mlx5.faults import case
from tests.lab.mlx5.vf import MIB, Marks, S, info, power_on, read_all, read_some, saved

#: Where a command stays without an answer. Each takes a slot of the command queue for ever.
PLACES = (
    ("images", "ALLOC_PD", 1),
    ("images", "QUERY_VHCA_MIGRATION_STATE", 1),
    ("images", "CREATE_MKEY", 1),
    ("images", "SAVE_VHCA_STATE", 1),
    ("images", "SUSPEND_VHCA", 1),
    ("images", "DESTROY_MKEY", 1),
    ("images", "DEALLOC_PD", 1),
    ("images", "RESUME_VHCA", 1),
    ("cancel", "SAVE_VHCA_STATE", 1),
    ("load", "LOAD_VHCA_STATE", 1),
)


def commands(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Each kind of command once, and the seconds that it took to give up."""
    content = content_of(source)
    source.reset()
    told = {}
    for title, opcode, nth in PLACES:
        name = f"{title}: {opcode}:{nth}:never"
        began = time.monotonic()
        fault = (Opcode[opcode], nth, NEVER)
        told[name] = case(marks, source, content, name, SCENARIOS[title], fault)
        told[name]["seconds"] = time.monotonic() - began
    return told


def _saving(marks: Marks, device: KernelVfioDevice, new: S) -> MigrationFile:
    """A session whose save is never done."""
    marks.remote.plan(Opcode.SAVE_VHCA_STATE, 1, NEVER)
    return enter(device, new)


def _middle(marks: Marks, device: KernelVfioDevice) -> Any:
    """A read at once after the driver has begun to save a middle image, which is never done."""
    guest = power_on(device)
    with enter(device, S.PRE_COPY) as file:
        read_all(file)
        file.set_nonblocking(True)
        guest.step(4)
        marks.remote.plan(Opcode.SAVE_VHCA_STATE, 1, NEVER)
        assert info(file)[1]
        told = [outcome(lambda: read_some(file, 9)), file.poll(timeout=0)]
    device.reset()
    guest.close()
    return told


def waiting(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Reads while a save is under way, that do not wait, that wait, and whose session ends."""
    told: dict[str, Any] = {}
    for new in (S.STOP_COPY, S.PRE_COPY):
        with _saving(marks, source, new) as file:
            file.set_nonblocking(True)
            told[f"{new.name}, non-blocking"] = [
                # The size record is there at once.
                len(read_some(file, 4096)),
                outcome(lambda: read_some(file, 9)),
                file.poll(timeout=0),
            ]
            file.set_nonblocking(False)
            told[f"{new.name}, blocking"] = [read_all(file)[1], state(source)]
        source.reset()
    told["a middle image, non-blocking"] = _middle(marks, source)
    source.reset()
    source.set_state(S.RUNNING_P2P)
    with _saving(marks, source, S.PRE_COPY_P2P) as file:
        file.set_nonblocking(True)
        told["PRE_COPY_P2P at once"] = [
            info(file),
            len(read_some(file, 4096)),
            info(file),
            outcome(lambda: read_some(file, 9)),
        ]
    source.reset()
    ends = {
        "STOP": lambda: source.set_state(S.STOP),
        "reset": source.reset,
        "close": source.close,
    }
    for name, end in ends.items():
        with _saving(marks, source, S.STOP_COPY) as file:
            heard: list[str] = []
            reader = threading.Thread(target=lambda: heard.append(read_all(file)[1]))  # noqa: B023
            reader.start()
            told[f"ended by {name}"] = [outcome(lambda: bool(end()))]  # noqa: B023
            reader.join()
            told[f"ended by {name}"] += heard
    return told


def deferred(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """A reset while another call has the VF's lock, and a chunk that is to be saved then."""
    source.set_state(S.STOP)
    with enter(source, S.STOP_COPY) as file:
        read_some(file, SIZE_RECORD_BYTES)
        header = read_some(file, HEADER_SIZE)
        # Time passes when nothing is left to be done: two chunks are there.
        time.sleep(1)
        marks.remote.plan(Opcode.QUERY_VHCA_MIGRATION_STATE, 1, NEVER)
        heard: list[Any] = []
        asker = threading.Thread(target=lambda: heard.append(outcome(source.data_size)))
        asker.start()
        time.sleep(0.1)
        left = RecordHeader.parse(header).size
        while left:
            left -= len(read_some(file, min(left, MIB)))
        source.reset()
        meanwhile = [asker.is_alive(), len(read_some(file, 9))]
        asker.join()
        told = [*meanwhile, *heard, state(source), outcome(lambda: read_some(file, 9))]
    source.set_state(S.STOP)
    return [*told, len(saved(source)) > SIZE_RECORD_BYTES]
