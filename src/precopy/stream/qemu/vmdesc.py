"""The description of the devices' state that QEMU puts behind its stream: names, types and sizes.

migration/vmstate.c writes it, as JSON. A section has no length of its own, so this is what tells it,
where one can look at the end of the stream before its beginning.
"""

import json
import re
from typing import Any

import xxhash

from precopy.stream.cursor import BitField
from precopy.stream.elsewhere import Elsewhere
from precopy.stream.layout import printable

#: The end of a file in which the description is looked for.
MAX_BYTES = 16 << 20

#: Fields that are told of a section, but for its first ones.
MAX_FIELDS = 1024

#: Elements of an array that are told one by one, where they are structures.
_MAX_ELEMENTS = 64

#: Bytes of a field of no known type that are shown.
_SHOWN = 16

_INTEGER = re.compile(r"(u?)int(8|16|32|64)\b")

_SUBSECTION = 5

Node = dict[str, Any]

#: What a device's state is made of: name, first byte in it, bytes, fields.
Part = tuple[str, int, int, list[BitField]]


class MisfitError(Exception):
    """The bytes are not what the description says."""


class Description:
    """Of each device by name and instance: its fields, and how many bytes they are."""

    def __init__(self, text: bytes) -> None:
        """ValueError where ``text`` is none."""
        try:
            found = json.loads(text)
            self.page_size = int(found.get("page_size", 4096))
            self.devices = {(str(e["name"]), int(e["instance_id"])): e for e in found["devices"]}
            self._sizes = {key: _size(node) for key, node in self.devices.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError("no description of devices") from error

    def size(self, name: str, instance: int) -> int | None:
        """Bytes of a device's state in the stream; None where it is not described."""
        return self._sizes.get((name, instance))

    def parts(self, name: str, instance: int, data: bytes) -> list[Part]:
        """What is in ``data``, the device's state, in its order. MisfitError."""
        try:
            return _Walk(data).parts(self.devices[name, instance])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError):
            raise MisfitError from None


def look_for(file: Elsewhere) -> Description | None:
    """The description at the end of ``file``, or None."""
    size = file.size()
    for reach in (1 << 18, MAX_BYTES):
        tail = file.read_at(max(0, size - reach), reach)
        for match in re.finditer(rb"\x00\x06(?=(....)\{)", tail, re.DOTALL):
            start = match.end() + 4
            if int.from_bytes(match[1], "big") == len(tail) - start:
                try:
                    return Description(tail[start:])
                except ValueError:
                    return None
        if reach >= size or not tail.endswith(b"}"):
            break
    return None


def _inner(field: Node) -> Node | None:
    """What a field is made of, where it is a structure."""
    if "struct" in field:
        return dict(field["struct"])
    return field if "fields" in field else None


def _count(field: Node) -> int:
    return int(field.get("array_len", 1))


def _size(node: Node) -> int:
    if "vmsd_name" not in node and "size" in node:
        return int(node["size"])
    total = sum(int(each["size"]) * _count(each) for each in node["fields"])
    for each in node.get("subsections", ()):
        total += 6 + len(str(each["vmsd_name"])) + _size(each)
    if total < 0:
        raise ValueError("a size below 0")
    return total


class _Walk:
    """Through the fields of a device, to the bytes of each."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.found: list[BitField] = []
        self._told = 0

    def parts(self, node: Node) -> list[Part]:
        """Each of the fields and subsections, the state's first ones; all bytes are in one."""
        found, at = [], 0
        for field in node["fields"]:
            start, at = at, self._field(field, at, "")
            found.append(self._part(str(field["name"]), start, at - start))
        for each in node.get("subsections", ()):
            start, at = at, self._subsection(each, at)
            found.append(self._part(str(each["vmsd_name"]), start, at - start))
        if at != len(self._data):
            raise MisfitError
        return found

    def _part(self, name: str, at: int, size: int) -> Part:
        fields, self.found = self.found, []
        self._told += len(fields)
        if len(fields) == 1 and fields[0][0] == name:
            return name, at, size, [("value", 0, *fields[0][2:])]
        return name, at, size, [(each[0], each[1] - at, *each[2:]) for each in fields]

    def node(self, node: Node, at: int, prefix: str) -> int:
        """The fields, then the subsections; where they end."""
        for field in node["fields"]:
            at = self._field(field, at, prefix)
        for each in node.get("subsections", ()):
            at = self._subsection(each, at)
        return at

    def _subsection(self, node: Node, at: int) -> int:
        """Where it ends. MisfitError where it isn't there."""
        name = str(node["vmsd_name"])
        head = bytes([_SUBSECTION, len(name)]) + name.encode("latin-1")
        if not self._data.startswith(head, at):
            raise MisfitError
        at += len(head) + 4
        return self.node(node, at, f"{name.rpartition('/')[2]}.")

    def _field(self, field: Node, at: int, prefix: str) -> int:
        name, size, count = f"{prefix}{field['name']}", int(field["size"]), _count(field)
        end = at + size * count
        if size < 0 or count < 0 or end > len(self._data):
            raise MisfitError
        if "index" in field:
            name = f"{name}[{field['index']}]"
        inner = _inner(field)
        if inner is None or not size:
            self._value(name, str(field["type"]), at, size, count)
        elif count <= _MAX_ELEMENTS and self._told + len(self.found) < MAX_FIELDS:
            for number in range(count):
                which = f"{name}[{number}]" if count > 1 else name
                self.node(inner, at + number * size, f"{which}.")
        else:
            self._add(name, at, size * count, f"{count} structures of {size} bytes")
        return end

    def _value(self, name: str, kind: str, at: int, size: int, count: int) -> None:
        data = self._data[at : at + size * count]
        integer = _INTEGER.match(kind)
        if kind == "bool" or (integer and int(integer[2]) == 8 * size):
            signed = integer is not None and not integer[1]
            values = [
                int.from_bytes(data[each : each + size], "big", signed=signed)
                for each in range(0, min(len(data), size * _SHOWN), size)
            ]
            told = " ".join(map(str, values)) + (" ..." if count > _SHOWN else "")
            self._add(name, at, len(data), told, values[0] if count == 1 else data.hex())
        elif len(data) <= _SHOWN:
            self._add(name, at, len(data), data.hex(), data.hex())
        else:
            text = printable(data.rstrip(b"\0")[:_SHOWN]) if kind == "buffer" else ""
            told = f"{len(data)} bytes" if not text.isalnum() else f"{text}, {len(data)} bytes"
            # The value tells two of them apart without being as long.
            self._add(name, at, len(data), f"{told} ({kind})", xxhash.xxh3_64_hexdigest(data))

    def _add(self, name: str, at: int, size: int, text: str, value: object = None) -> None:
        if self._told + len(self.found) < MAX_FIELDS:
            said = text if value is None else value
            self.found.append((name, at, size, said, text))
