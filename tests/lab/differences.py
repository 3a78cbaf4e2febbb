"""The deliberate differences between the kernel's driver and ours, as the comparison knows them.

Each stands, with its reason, in Documentation/design/differences.rst under the same name.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

from precopy.mlx5_abi.commands import Opcode
from tests.lab.operations import EMPTY_IMAGE, SHORT_SIZE_RECORD, Operation, Outcome


@dataclass(frozen=True)
class Step:
    """One operation as both did it, and those before it."""

    before: list[Operation]
    operation: Operation
    kernel: Outcome
    ours: Outcome
    kernel_commands: list[str]
    our_commands: list[str]

    @property
    def equal(self) -> bool:
        # JSON knows lists only.
        same = self.kernel == json.loads(json.dumps(self.ours))
        return same and self.kernel_commands == self.our_commands

    def told(self) -> str:
        lines = [f"after {self.before}", f"{self.operation}"]
        lines += [f"  kernel: {self.kernel}", *(f"    {line}" for line in self.kernel_commands)]
        lines += [f"  ours:   {self.ours}", *(f"    {line}" for line in self.our_commands)]
        return "\n".join(lines)


@dataclass(frozen=True)
class Difference:
    """``parts``: afterwards the devices are in different states."""

    name: str
    fits: Callable[[Step], bool]
    parts: bool = True


#: What the firmware answers to who asks for an increment where there was no save.
_NOTHING_BEFORE = "syndrome=0x5b10"


def _leaves_precopy(step: Step) -> bool:
    """The kernel: ENODEV, or the refusal of an incremental query; ours: the cleanup save, and on."""
    asked_in_vain = [line for line in step.kernel_commands if _NOTHING_BEFORE in line]
    return (
        step.operation[0] == "set_state"
        and (step.kernel[0] == "ENODEV" or (step.kernel[0] == "EINVAL" and bool(asked_in_vain)))
        and str(step.kernel[1]).startswith("PRE_COPY")
        and any("SAVE_VHCA_STATE" in line for line in step.our_commands)
    )


def _cleanup_fails(step: Step) -> bool:
    """Both: EIO. The kernel ends the session all the same; ours keeps it, to be tried again."""
    return (
        step.operation[0] == "set_state"
        and step.kernel == step.ours
        and step.kernel[0] == "EIO"
        and str(step.kernel[1]).startswith("PRE_COPY")
        and step.kernel_commands[: len(step.our_commands)] == step.our_commands
    )


def _asks_for_another(step: Step) -> bool:
    """ENODEV on the data_fd of an earlier session; the kernel asks the firmware about the present one."""
    return (
        step.operation == ["old_file", "info"]
        and step.kernel == step.ours == "ENODEV"
        and all(_asks(line) for line in step.kernel_commands)
        and not step.our_commands
    )


def _half_done(step: Step) -> bool:
    """Ours resumes the responder after the same commands, and the same error."""
    extra = step.our_commands[len(step.kernel_commands) :]
    return (
        step.operation[0] == "set_state"
        and step.our_commands[: len(step.kernel_commands)] == step.kernel_commands
        and len(extra) == 1
        and extra[0].startswith("pf RESUME_VHCA ")
        and step.kernel[0] == step.ours[0]
    )


def _asks(line: str) -> bool:
    return line.startswith("pf QUERY_VHCA_MIGRATION_STATE ")


def _asks_at_the_end(step: Step) -> bool:
    """Ours asks once whether the final image has come, and it has."""
    without = [line for line in step.our_commands if not _asks(line)]
    others = [line for line in step.kernel_commands if not _asks(line)]
    return (
        step.operation[0] == "set_state"
        and step.kernel == step.ours
        and without == others
        and len(step.our_commands) == len(step.kernel_commands) + 1
    )


def _refuses_what_is_cut(step: Step) -> bool:
    """The kernel leaves RESUMING whatever came; ours refuses and stays."""
    return (
        step.operation[0] == "set_state"
        and step.ours == ["EINVAL", "RESUMING"]
        and bool(step.kernel != step.ours)
    )


def _asks_before_a_fault(step: Step) -> bool:
    """The question counts among the queries of which one is planned to fail: from here on, another one."""
    planned = [
        each
        for each in step.before
        if each[:2] == ["fault", int(Opcode.QUERY_VHCA_MIGRATION_STATE)]
    ]
    return (
        step.operation[0] in ("set_state", "restore")
        and bool(planned)
        and bool(step.our_commands)
        and _asks(step.our_commands[0])
        and not (step.kernel_commands and _asks(step.kernel_commands[0]))
    )


def _asks_in_vain(step: Step) -> bool:
    """The question is refused (a fault was planned for it): ours stays in RESUMING, which can be tried again."""
    return (
        step.operation[0] == "set_state"
        and str(step.ours[-1]) == "RESUMING"
        and bool(step.our_commands)
        and _asks(step.our_commands[-1])
        and "-> OK" not in step.our_commands[-1]
    )


def _short_size_record(step: Step) -> bool:
    """The kernel takes the record's length on trust; ours refuses one that is too short for a le64."""
    written = [each for each in (*step.before, step.operation) if each[0] == "write_bytes"]
    return (
        step.operation[0] in ("write", "write_bytes")
        and step.ours == "EINVAL"
        and isinstance(step.kernel, int)
        and ["write_bytes", SHORT_SIZE_RECORD] in written
    )


def _empty_image(step: Step) -> bool:
    """The kernel comes to an image of no bytes with the next write only; ours refuses it at once."""
    extra = step.our_commands[len(step.kernel_commands) :]
    return (
        step.operation == ["write_bytes", EMPTY_IMAGE]
        and step.ours == "EINVAL"
        and isinstance(step.kernel, int)
        and all("LOAD_VHCA_STATE" in line for line in extra)
    )


DIFFERENCES: tuple[Difference, ...] = (
    Difference("Leaving PRE_COPY after a failed session", _leaves_precopy),
    Difference("Leaving PRE_COPY while its cleanup save fails", _cleanup_fails),
    Difference("PRE_COPY_P2P → STOP_COPY that fails half way", _half_done),
    Difference("RESUMING → STOP: a question to the firmware", _asks_before_a_fault),
    Difference("RESUMING → STOP: a question to the firmware", _asks_at_the_end, parts=False),
    Difference("RESUMING → STOP: a question to the firmware", _asks_in_vain),
    Difference("A size record of less than 8 bytes", _short_size_record),
    Difference("GET_PRECOPY_INFO on an earlier session's data_fd", _asks_for_another, parts=False),
    Difference("An image of no bytes", _empty_image),
    Difference("RESUMING → STOP", _refuses_what_is_cut),
)


def explain(step: Step) -> Difference | None:
    """The difference that ``step`` shows, or None."""
    return next((each for each in DIFFERENCES if each.fits(step)), None)
