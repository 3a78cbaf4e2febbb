"""A line for each firmware command: who gave it, its fields, what became of it."""

from collections.abc import Callable, Iterator

from precopy.mlx5_abi.commands import COMMANDS, Inbox, Outbox
from precopy.mlx5_abi.layout import Layout, Nested
from precopy.mlx5_abi.status import Status, name_of

#: Told by every line in a form of their own.
_COMMON = frozenset({*Inbox.field_names(), *Outbox.field_names()}) - {"op_mod", "uid"}


def _fields(layout: Layout, prefix: str = "") -> Iterator[str]:
    """Every field that is not 0, nested ones with their structure's name."""
    for name in layout.field_names():
        value = getattr(layout, name)
        if value and name not in _COMMON:
            yield f"{prefix}{name}={value:#x}"
    for kind in reversed(type(layout).__mro__):
        for name, field in vars(kind).items():
            if isinstance(field, Nested):
                yield from _fields(getattr(layout, name), f"{prefix}{name}.")


def describe(function: int, inbox: bytes, outbox: bytes | None) -> str:
    """``vf0 SUSPEND_VHCA op_mod=0x1 vhca_id=0x101 -> OK``; ``outbox`` None: never answered."""
    who = f"vf{function - 1}" if function else "pf"
    opcode = int.from_bytes(inbox[:2], "big")
    command = COMMANDS.get(opcode)
    if command is None or len(inbox) < command.inbox.SIZE:
        return f"{who} opcode {opcode:#x} ({len(inbox)} bytes) -> refused"
    words = [who, command.opcode.name, *_fields(command.inbox(inbox)), "->"]
    if outbox is None:
        return " ".join([*words, "never answered"])
    out = command.outbox(bytes(outbox).ljust(command.outbox.SIZE, b"\0"))
    if out.status:
        return " ".join([*words, name_of(out.status), f"syndrome={out.syndrome:#x}"])
    return " ".join([*words, Status.OK.name, *_fields(out)])


def to(write: Callable[[str], object]) -> Callable[[int, bytes, bytes | None], None]:
    """A ``Firmware.trace`` that gives each line to ``write``."""

    def told(function: int, inbox: bytes, outbox: bytes | None) -> None:
        write(describe(function, inbox, outbox))

    return told
