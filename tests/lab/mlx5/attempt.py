"""A VF with a guest, taken through the steps of a scenario; every place where a command is given."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.backends.vfio_guest import VfioBus
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.bringup import run
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.commands import AllocPdOut, Inbox, Opcode
from precopy.mlx5_abi.records import SIZE_RECORD_BYTES
from precopy.pci.memory import PAGE_SIZE as PAGE_BYTES
from precopy.vfio.device import DmaRange, MigrationFile
from precopy.vfio.errors import refuse
from tests.lab.mlx5.vf import LONG, S, info, new_qps, read_all, write_all


class Attempt:
    """A VF with a guest, taken through the steps of a scenario."""

    def __init__(self, device: KernelVfioDevice, content: Sequence[bytes]) -> None:
        self.device, self.content = device, content
        self.port = PciPort(VfioBus(device))
        config = WorkloadConfig(pairs=1, active=1, rate=0)
        self.guest = WorkloadGuest.power_on(self.port, config)
        self.memory = DmaRange(*config.region)
        self.guest.step(2)
        pd_out = run(self.port, Opcode.ALLOC_PD, Inbox())
        assert isinstance(pd_out, AllocPdOut)
        self.pd = pd_out.pd
        self.file: MigrationFile | None = None

    def enter(self, new: S) -> None:
        file = self.device.set_state(new)
        if file is not None:
            self.file = file

    def ready(self) -> None:
        """What was to be saved has been: the answer waits for it."""
        assert self.file is not None
        info(self.file)

    def read(self, end: str) -> list[int]:
        """How much there was, up to the end that is due. OSError with any other."""
        assert self.file is not None
        self.file.poll(timeout=LONG)
        data, found = read_all(self.file)
        if found != end:
            raise refuse(getattr(errno, found), "another end")
        return [len(data)]

    def log(self) -> int:
        return self.device.log_start([self.memory], PAGE_BYTES)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
        self.guest.close()


Step = Callable[[Attempt], Any]


def _to(new: S) -> tuple[str, Step]:
    return new.name, lambda attempt: attempt.enter(new)


def _change(attempt: Attempt) -> None:
    attempt.guest.step(2)


def _grow(attempt: Attempt) -> None:
    """More new state than any buffer so far has room for."""
    new_qps(attempt.port, attempt.pd, 64)


def _info(attempt: Attempt) -> list[bool]:
    assert attempt.file is not None
    return [bool(each) for each in info(attempt.file)[:2]]


def _write(index: int) -> tuple[str, Step]:
    def write(attempt: Attempt) -> None:
        assert attempt.file is not None
        write_all(attempt.file, attempt.content[index])

    return f"write {index}", write


def _report(attempt: Attempt) -> bool:
    """Whether the guest's VF is told to have written anything."""
    begin, length = attempt.memory
    bitmap = bytearray(length // PAGE_BYTES // 8)
    attempt.device.log_report(begin, length, PAGE_BYTES, memoryview(bitmap))
    return any(bitmap)


_READ = ("read", lambda attempt: attempt.read("ENOMSG"))
_READ_LAST = ("read to the end", lambda attempt: attempt.read("EOF"))
_INFO = ("info", _info)
_READY = ("ready", lambda attempt: attempt.ready())
_CHANGE = ("change", _change)
_GROW = ("grow", _grow)


@dataclass(frozen=True, slots=True)
class Scenario:
    """``before``: without faults; ``commands``: how many of each opcode the steps take.

    ``fatal``: opcodes after whose failure only a reset is safe, see ``endings.crash_by_cancel``.
    """

    steps: tuple[tuple[str, Step], ...]
    commands: dict[str, int]
    before: tuple[tuple[str, Step], ...] = ()
    fatal: frozenset[str] = frozenset()
    #: Whether it puts another guest's state into the VF.
    loads: bool = False


#: Without chunk mode.
SCENARIOS: dict[str, Scenario] = {
    "images": Scenario(
        (
            _to(S.PRE_COPY),
            _READ,
            _CHANGE,
            _INFO,
            _READ,
            _to(S.PRE_COPY_P2P),
            _to(S.STOP_COPY),
            _READ_LAST,
            _to(S.STOP),
            _to(S.RUNNING_P2P),
            _to(S.RUNNING),
        ),
        {
            "ALLOC_PD": 1,
            "CREATE_MKEY": 2,
            "QUERY_VHCA_MIGRATION_STATE": 3,
            "SAVE_VHCA_STATE": 3,
            "SUSPEND_VHCA": 2,
            "DESTROY_MKEY": 2,
            "DEALLOC_PD": 1,
            "RESUME_VHCA": 2,
        },
    ),
    "unread": Scenario(
        (_to(S.PRE_COPY_P2P), _to(S.STOP_COPY), _READ_LAST),
        {
            "ALLOC_PD": 1,
            "CREATE_MKEY": 2,
            "QUERY_VHCA_MIGRATION_STATE": 2,
            "SAVE_VHCA_STATE": 2,
            "SUSPEND_VHCA": 1,
        },
        before=(_to(S.RUNNING_P2P),),
    ),
    "a larger middle image": Scenario(
        (_INFO, _READ, _to(S.STOP_COPY), _READ_LAST),
        {
            "QUERY_VHCA_MIGRATION_STATE": 2,
            "CREATE_MKEY": 1,
            "DESTROY_MKEY": 1,
            "SAVE_VHCA_STATE": 2,
            "SUSPEND_VHCA": 2,
        },
        before=(_to(S.PRE_COPY), _READ, _GROW),
    ),
    "a larger final image": Scenario(
        (_to(S.STOP_COPY), _READ_LAST),
        {
            "SUSPEND_VHCA": 2,
            "QUERY_VHCA_MIGRATION_STATE": 1,
            "CREATE_MKEY": 1,
            "DESTROY_MKEY": 2,
            "SAVE_VHCA_STATE": 1,
        },
        before=(_to(S.PRE_COPY), _READ, _GROW),
    ),
    "cancel": Scenario(
        (_to(S.RUNNING),),
        {
            "QUERY_VHCA_MIGRATION_STATE": 1,
            "SAVE_VHCA_STATE": 1,
            "DESTROY_MKEY": 2,
            "DEALLOC_PD": 1,
        },
        before=(_to(S.PRE_COPY), _READ),
        fatal=frozenset({"SAVE_VHCA_STATE"}),
    ),
    "cancel, nothing read": Scenario(
        (_to(S.RUNNING),),
        {
            "QUERY_VHCA_MIGRATION_STATE": 1,
            "CREATE_MKEY": 1,
            "SAVE_VHCA_STATE": 1,
            "DESTROY_MKEY": 3,
            "DEALLOC_PD": 1,
        },
        before=(_to(S.PRE_COPY), _READY, _CHANGE),
        fatal=frozenset({"SAVE_VHCA_STATE"}),
    ),
    "cancel from PRE_COPY_P2P": Scenario(
        (_to(S.RUNNING_P2P), _to(S.RUNNING)),
        {
            "QUERY_VHCA_MIGRATION_STATE": 1,
            "SAVE_VHCA_STATE": 1,
            "DESTROY_MKEY": 2,
            "DEALLOC_PD": 1,
            "RESUME_VHCA": 1,
        },
        before=(_to(S.PRE_COPY), _READ, _to(S.PRE_COPY_P2P)),
        fatal=frozenset({"SAVE_VHCA_STATE"}),
    ),
    "back to PRE_COPY": Scenario(
        (_to(S.PRE_COPY),),
        {"RESUME_VHCA": 1},
        before=(_to(S.PRE_COPY), _READ, _to(S.PRE_COPY_P2P)),
    ),
    "plain": Scenario(
        (_to(S.STOP_COPY), _READ_LAST, _to(S.STOP)),
        {
            "ALLOC_PD": 1,
            "QUERY_VHCA_MIGRATION_STATE": 1,
            "CREATE_MKEY": 1,
            "SAVE_VHCA_STATE": 1,
            "DESTROY_MKEY": 1,
            "DEALLOC_PD": 1,
        },
        before=(_to(S.STOP),),
    ),
    "load": Scenario(
        (_to(S.RESUMING), *map(_write, range(5)), _to(S.STOP), _to(S.RUNNING)),
        {
            "SUSPEND_VHCA": 2,
            "ALLOC_PD": 1,
            "CREATE_MKEY": 2,
            "LOAD_VHCA_STATE": 4,
            "DESTROY_MKEY": 2,
            "DEALLOC_PD": 1,
            "RESUME_VHCA": 2,
        },
        loads=True,
    ),
    "log": Scenario(
        (
            ("start", lambda attempt: attempt.log()),
            _CHANGE,
            ("report", _report),
            ("stop", lambda attempt: attempt.device.log_stop()),
        ),
        {
            "ALLOC_PD": 1,
            "CREATE_CQ": 1,
            "CREATE_QP": 2,
            "CREATE_MKEY": 1,
            "RST2INIT_QP": 2,
            "INIT2RTR_QP": 2,
            "RTR2RTS_QP": 1,
            "CREATE_GENERAL_OBJECT": 1,
            "MODIFY_GENERAL_OBJECT": 1,
            "DESTROY_GENERAL_OBJECT": 1,
            "DESTROY_QP": 2,
            "DESTROY_MKEY": 1,
            "DESTROY_CQ": 1,
            "DEALLOC_PD": 1,
        },
    ),
    "data size": Scenario(
        (("data size", lambda attempt: attempt.device.data_size() > 0),),
        {"QUERY_VHCA_MIGRATION_STATE": 1},
    ),
}


def content_of(device: KernelVfioDevice) -> list[bytes]:
    """A stream: the size record, and a record each of the initial, two middle and the final image."""
    attempt = Attempt(device, ())
    attempt.enter(S.PRE_COPY)
    file = attempt.file
    assert file is not None
    file.poll(timeout=LONG)
    pieces = [read_all(file)[0]]
    for change in (_change, _grow):
        change(attempt)
        info(file)
        pieces.append(read_all(file)[0])
    _change(attempt)
    attempt.enter(S.STOP_COPY)
    pieces.append(read_all(file)[0])
    attempt.close()
    return [pieces[0][:SIZE_RECORD_BYTES], pieces[0][SIZE_RECORD_BYTES:], *pieces[1:]]
