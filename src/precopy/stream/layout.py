"""A structure in a stream as a table of its fields."""

import enum
import struct
from collections.abc import Callable
from typing import Any

from precopy.engine.report import human
from precopy.stream.item import Field

Show = Callable[[Any], str]
#: Name, code of the ``struct`` module, and how it is shown (a number as it is unless told otherwise).
Spec = tuple[str, str] | tuple[str, str, Show]

Values = dict[str, Any]


def printable(data: bytes) -> str:
    """Bytes as text, with ``?`` for what a terminal could take for orders."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else "?" for byte in data)


def hexadecimal(value: int) -> str:
    return f"{value:#x}"


def text(value: bytes) -> str:
    """Bytes padded with NUL."""
    return printable(value.rstrip(b"\0"))


def raw(value: bytes) -> str:
    return value.hex()


def size(value: int) -> str:
    """Bytes, with the unit that people read."""
    return human(value)


def named(kinds: type[enum.IntEnum]) -> Show:
    """The name of a number, or the number."""

    def show(value: int) -> str:
        found = kinds._value2member_map_.get(value)
        return found.name if isinstance(found, enum.IntEnum) else f"{value:#x} (unknown)"

    return show


def flags(bits: type[enum.IntFlag]) -> Show:
    """``FULL|FINAL``; a bit without a name as a number."""

    def show(value: int) -> str:
        names = [bit.name for bit in bits if bit.name and bit.value & value == bit.value]
        rest = value
        for bit in bits:
            rest &= ~bit.value
        return "|".join([*names, *([f"{rest:#x}"] if rest else [])]) or "0"

    return show


def _show(value: Any) -> str:
    return raw(value) if isinstance(value, bytes) else str(value)


class Layout:
    """Fields one after the other, without gaps. ``order`` is ``<`` or ``>``."""

    def __init__(self, order: str, *specs: Spec) -> None:
        self._struct = struct.Struct(order + "".join(spec[1] for spec in specs))
        self.size = self._struct.size
        self._fields: list[tuple[str, int, int, Show]] = []
        offset = 0
        for spec in specs:
            length = struct.calcsize(order + spec[1])
            self._fields.append((spec[0], offset, length, spec[2] if len(spec) == 3 else _show))
            offset += length

    def values(self, data: memoryview | bytes) -> Values:
        """The values by name; ``data`` has at least :attr:`size` bytes."""
        found = self._struct.unpack_from(data)
        return {name: value for (name, _, _, _), value in zip(self._fields, found, strict=True)}

    def offset(self, name: str) -> int:
        """Where a field lies in the structure, in bytes. KeyError."""
        return {each[0]: each[1] for each in self._fields}[name]

    def fields(self, offset: int, values: Values) -> tuple[Field, ...]:
        """The fields of a structure that lies at ``offset`` of its stream."""
        return tuple(
            Field(name, offset + at, length, values[name], show(values[name]))
            for name, at, length, show in self._fields
        )
