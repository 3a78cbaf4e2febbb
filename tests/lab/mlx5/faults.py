"""Every firmware command that the driver gives fails, at each place where it is given."""

import errno
from collections.abc import Callable, Sequence
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.records import SIZE_RECORD_BYTES
from precopy.mlx5_abi.status import Status
from precopy.vfio.device import DmaRange, MigrationFile
from tests.lab.inside import enter, state
from tests.lab.mlx5.attempt import SCENARIOS, Attempt, Scenario, content_of
from tests.lab.mlx5.vf import LONG, Marks, S, counts, read_all, records, saved

#: A status for each errno that the driver makes of one; 0x9 has a meaning of its own for a save.
STATUSES = {0x1: "EIO", 0x3: "EINVAL", 0x6: "EBUSY", 0x8: "ENOMEM", 0x9: "EINVAL", 0xF: "EAGAIN"}


#: Scenarios that see every class. In the others, which give the same commands elsewhere, two do.
_EVERY = frozenset({"images", "load", "data size"})


def statuses_of(title: str) -> tuple[int, ...]:
    """The statuses that commands of a scenario fail with."""
    return tuple(STATUSES) if title in _EVERY else (Status.INT_ERR, Status.BAD_RES_STATE)


def _failure(call: Callable[[], object]) -> str | None:
    """The name of an errno, or None where all is well."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or errno.EIO]
    return None


def _run(attempt: Attempt, scenario: Scenario) -> dict[str, Any]:
    """What the steps gave, and the one that failed first."""
    told: dict[str, Any] = {"values": []}
    for name, step in scenario.steps:
        try:
            told["values"].append(step(attempt))
        except OSError as error:
            told["failed"] = [
                name,
                errno.errorcode[error.errno or errno.EIO],
                state(attempt.device),
            ]
            break
    return told


def _afterwards(attempt: Attempt, scenario: Scenario, told: dict[str, Any]) -> None:
    """What can be done about a failure: the same again, back to RUNNING, and how the guest is then."""
    device = attempt.device
    if "failed" in told:
        step = dict(scenario.steps)[told["failed"][0]]
        told["again"] = [_failure(lambda: step(attempt)), state(device)]
    if state(device) == "RESUMING":
        return
    told["back"] = [_failure(lambda: device.set_state(S.RUNNING)), state(device)]
    if state(device) == "RUNNING" and not scenario.loads:
        attempt.guest.step(2)
        told["guest"] = counts(attempt.guest)


def _works(device: KernelVfioDevice) -> bool:
    """Whether a VF can be saved, and runs on."""
    device.set_state(S.STOP)
    data = saved(device)
    device.set_state(S.RUNNING)
    return len(data) > SIZE_RECORD_BYTES


def case(
    marks: Marks,
    device: KernelVfioDevice,
    content: Sequence[bytes],
    name: str,
    scenario: Scenario,
    fault: tuple[Opcode, int, int] | None = None,
) -> dict[str, Any]:
    """A scenario, with one fault or none: its values, what failed, and what became of the VF."""
    attempt = Attempt(device, content)
    for _, step in scenario.before:
        step(attempt)
    if fault is not None:
        marks.remote.plan(*fault)
    else:
        # What comes from here on is what the scenario's table tells.
        marks(f"{name} begins")
    told = _run(attempt, scenario)
    marks.remote.clear()
    if fault is None:
        marks(f"{name} is done")
    if fault is None or fault[0].name not in scenario.fatal:
        _afterwards(attempt, scenario, told)
    device.log_stop()
    device.reset()
    attempt.close()
    told["works"] = _works(device)
    marks(name)
    return told


def _faults(marks: Marks, device: KernelVfioDevice, titles: Sequence[str]) -> dict[str, Any]:
    """Each scenario without a fault, then with each fault there is."""
    content = content_of(device)
    device.reset()
    # The first log makes an EQ, which then stays.
    device.log_start([DmaRange(0, 4096)], 4096)
    device.log_stop()
    told = {}
    for title in titles:
        scenario = SCENARIOS[title]
        told[title] = case(marks, device, content, title, scenario)
        for opcode, count in scenario.commands.items():
            for nth in range(1, count + 1):
                for status in statuses_of(title):
                    name = f"{title}: {opcode}:{nth}:{status:#x}"
                    fault = (Opcode[opcode], nth, status)
                    told[name] = case(marks, device, content, name, scenario, fault)
    return told


#: What one boot sees to, so that two at a time are done at about the same time.
_FIRST = ("images", "unread", "a larger middle image", "a larger final image")


def first_half(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    return _faults(marks, source, _FIRST)


def second_half(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    return _faults(marks, source, [title for title in SCENARIOS if title not in _FIRST])


def _saves(file: MigrationFile) -> tuple[int, str]:
    """How many chunks there are up to an end, and which end it is; an error may cut the last one."""
    file.poll(timeout=LONG)
    data, end = read_all(file)
    return len(records(data)) - 1, end


def chunks(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """A save of several chunks: each of them fails, with a status that matters elsewhere and not."""
    source.set_state(S.STOP)
    with enter(source, S.STOP_COPY) as file:
        count, end = _saves(file)
        told: dict[str, Any] = {
            "no fault": {"failed": None, "state": state(source), "saves": count}
        }
        assert end == "EOF"
    source.set_state(S.STOP)
    marks("no fault")
    for nth in (1, 2):
        marks.remote.plan(Opcode.CREATE_MKEY, nth, Status.LIM)
        told[f"buffer {nth}"] = [_failure(lambda: source.set_state(S.STOP_COPY)), state(source)]
        marks(f"buffer {nth}")
    for nth in range(1, count + 1):
        for status in (Status.INT_ERR, Status.BAD_RES_STATE):
            name = f"{nth}:{status:#x}"
            source.set_state(S.STOP)
            marks.remote.plan(Opcode.SAVE_VHCA_STATE, nth, status)
            with enter(source, S.STOP_COPY) as file:
                found, end = _saves(file)
                told[name] = {"failed": end, "state": state(source), "saves": found}
            marks.remote.clear()
            source.reset()
            told[name]["works"] = _works(source)
            marks(name)
    return told
