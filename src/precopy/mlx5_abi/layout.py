"""Bit layouts of mlx5: big-endian structures whose fields are named by bit offset and width.

Bit 0 is the most significant bit of byte 0, as in include/linux/mlx5/mlx5_ifc.h. A :class:`Layout`
is a view: it holds no values, only the bytes that they are in.

    class Example(Layout):
        SIZE = 8
        opcode = Field(0x00, 0x10)
        number = Field(0x28, 0x18)
"""

from typing import Any, ClassVar, Generic, Self, TypeVar, overload


class Field:
    """An unsigned number of ``width`` bits at bit ``offset``, up to 64 bits wide."""

    __slots__ = ("first", "last", "mask", "name", "offset", "shift", "width")

    def __init__(self, offset: int, width: int) -> None:
        self.offset, self.width = offset, width
        self.first = offset // 8
        self.last = (offset + width + 7) // 8
        self.shift = self.last * 8 - offset - width
        self.mask = (1 << width) - 1
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, layout: None, owner: type) -> Self: ...
    @overload
    def __get__(self, layout: "Layout", owner: type) -> int: ...
    def __get__(self, layout: "Layout | None", owner: type) -> "Self | int":
        if layout is None:
            return self
        return int.from_bytes(layout.buf[self.first : self.last], "big") >> self.shift & self.mask

    def __set__(self, layout: "Layout", value: int) -> None:
        if not 0 <= value <= self.mask:
            kind = type(layout).__name__
            raise ValueError(f"{kind}.{self.name} has {self.width} bits: {value:#x} does not fit")
        size = self.last - self.first
        if size * 8 != self.width:
            old = int.from_bytes(layout.buf[self.first : self.last], "big")
            value = old & ~(self.mask << self.shift) | value << self.shift
        layout.buf[self.first : self.last] = value.to_bytes(size, "big")

    def read(self, buf: bytes | bytearray | memoryview, base: int = 0) -> int:
        """The field's value in a structure that starts at byte ``base`` of ``buf``."""
        first, last = base + self.first, base + self.last
        return int.from_bytes(buf[first:last], "big") >> self.shift & self.mask


class Layout:
    """A structure of ``SIZE`` bytes over a buffer; without one, over zeroes of its own.

    A buffer may be longer than ``SIZE`` (what follows is the structure's variable part), never
    shorter: ValueError.
    """

    __slots__ = ("buf",)
    SIZE: ClassVar[int]

    def __init__(self, buf: bytes | bytearray | memoryview | None = None, **fields: int) -> None:
        if buf is None:
            buf = bytearray(self.SIZE)
        elif len(buf) < self.SIZE:
            raise ValueError(f"{type(self).__name__} has {self.SIZE} bytes, not {len(buf)}")
        self.buf: Any = buf
        for name, value in fields.items():
            setattr(self, name, value)

    def __bytes__(self) -> bytes:
        return bytes(self.buf)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name):#x}" for name in self.field_names())
        return f"{type(self).__name__}({fields})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bytes(self) == bytes(other)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of the plain fields, base classes' first."""
        return tuple(
            name
            for kind in reversed(cls.__mro__)
            for name, value in vars(kind).items()
            if isinstance(value, Field)
        )


L = TypeVar("L", bound=Layout)


class Nested(Generic[L]):
    """A structure inside a structure, at bit ``offset`` (a multiple of 8)."""

    __slots__ = ("kind", "start")

    def __init__(self, offset: int, kind: type[L]) -> None:
        self.start, self.kind = offset // 8, kind

    @overload
    def __get__(self, layout: None, owner: type) -> Self: ...
    @overload
    def __get__(self, layout: Layout, owner: type) -> L: ...
    def __get__(self, layout: Layout | None, owner: type) -> "Self | L":
        if layout is None:
            return self
        view = memoryview(layout.buf)[self.start : self.start + self.kind.SIZE]
        return self.kind(view)
