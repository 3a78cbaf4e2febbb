"""The frame of the main stream: migration/savevm.c, QEMU 11.1. Big-endian.

Type bytes, sections with a footer, commands; a description of the devices at the end.
"""

from collections.abc import Callable

from precopy.stream.cursor import MAX_PIECE, Steps, Stream
from precopy.stream.layout import Layout, hexadecimal, printable
from precopy.stream.qemu import multifd, ram, vfio, vmstate
from precopy.stream.qemu.state import (
    COMMAND,
    CONFIGURATION,
    DESCRIPTION,
    END,
    EOF,
    FOOTER,
    FOOTER_BYTES,
    FULL,
    KINDS,
    MAX_SECTIONS,
    PART,
    START,
    SUBSECTION,
    Main,
    Section,
    likely_next,
    main_of,
)
from precopy.stream.qemu.vmdesc import Description, look_for

MAGIC = b"QEVM"
VERSION = 3

HEADER = Layout(">", ("magic", "4s", printable), ("version", "I"))
_FOOTER = Layout(">", ("type", "B", hexadecimal), ("section", "I"))
_PART = Layout(">", ("type", "B"), ("section", "I"))
_COMMAND = Layout(">", ("type", "B"), ("command", "H"), ("length", "H"))

#: Commands by number: name, and bytes of their arguments (None: any).
COMMANDS: dict[int, tuple[str, int | None]] = {
    1: ("OPEN_RETURN_PATH", 0),
    2: ("PING", 4),
    3: ("POSTCOPY_ADVISE", None),
    4: ("POSTCOPY_LISTEN", 0),
    5: ("POSTCOPY_RUN", 0),
    6: ("POSTCOPY_RAM_DISCARD", None),
    7: ("PACKAGED", 4),
    8: ("ENABLE_COLO", 0),
    9: ("POSTCOPY_RESUME", 0),
    10: ("RECV_BITMAP", None),
    11: ("SWITCHOVER_START", 0),
}

#: A machine type's name is shorter.
_MAX_MACHINE = 256

#: Capabilities that the configuration tells of; there are fewer.
_MAX_CAPABILITIES = 64

_PAGE_BITS = range(10, 17)


def dissect(stream: Stream) -> Steps[None]:
    """The header, then all up to the stream's end. Damage."""
    head = yield from stream.look(HEADER, "the header")
    if head["magic"] != MAGIC:
        raise stream.damage("QEVM", printable(head["magic"]))
    if head["version"] != VERSION:
        raise stream.damage(f"version {VERSION}", str(head["version"]), stream.offset + 4)
    main = main_of(stream)
    if stream.files and stream.files[0] is not None:
        main.description = look_for(stream.files[0])
    multifd.collect(stream)
    yield from stream.struct("header", HEADER)
    yield from _parts(stream, main)


def resync(stream: Stream) -> Steps[None]:
    """On at the next footer of a section that is known."""
    main = main_of(stream)
    vfio.breaks(main)

    def test(data: memoryview) -> bool:
        number = int.from_bytes(data[1:FOOTER_BYTES], "big")
        return number in main.sections and likely_next(data[FOOTER_BYTES:], main)

    if (yield from stream.hunt([(bytes([FOOTER, 0, 0]), 0)], FOOTER_BYTES + 6 + 255, test)):
        yield from stream.struct("footer", _FOOTER)
        yield from _parts(stream, main)


def _parts(stream: Stream, main: Main) -> Steps[None]:
    while (yield from stream.more()):
        kind = (yield from stream.window(1, "a type"))[0]
        if main.over and kind != DESCRIPTION:
            raise stream.damage("the end of the stream, or the description, 6", f"{kind:#x}")
        if kind not in _HANDLERS:
            raise stream.damage("the type of a section, 0 to 8", f"{kind:#x}")
        yield from _HANDLERS[kind](stream, main)


def _eof(stream: Stream, main: Main) -> Steps[None]:
    yield from stream.opaque("end of sections", 1)
    main.over = True
    # The devices' states are over; their formats may have something to say.
    for device in main.devices.values():
        device.finish()


# --- Sections -----------------------------------------------------------------------------------


def _whole(stream: Stream, main: Main) -> Steps[None]:
    """A section that says whose it is: START and FULL."""
    data = yield from stream.window(6, "a section")
    kind, number, length = data[0], int.from_bytes(data[1:5], "big"), data[5]
    data = yield from stream.window(14 + length, "a section's head")
    name = bytes(data[6 : 6 + length])
    for at, byte in enumerate(name):
        if not 0x20 <= byte < 0x7F:
            raise stream.damage("a device's name", f"a byte {byte:#x}", stream.offset + 6 + at)
    if not name:
        raise stream.damage("a device's name", "no name", stream.offset + 5)
    instance = int.from_bytes(data[6 + length : 10 + length], "big")
    version = int.from_bytes(data[10 + length : 14 + length], "big")
    told = name.decode("ascii")
    section = main.sections.get(number)
    if section is None:
        if len(main.sections) >= MAX_SECTIONS:
            raise stream.damage(f"at most {MAX_SECTIONS} sections", "one more", stream.offset + 1)
        section = main.sections[number] = Section(number, told, instance)
    elif section.name != told:
        expected = f"section {number} to be {section.name} as before"
        raise stream.damage(expected, told, stream.offset + 6)
    stream.count("sections")
    with stream.group(f"{KINDS[kind]} {section.device}", text=f"section {number}"):
        fields = [
            ("type", 0, 1, kind, KINDS[kind]),
            ("section", 1, 4, number, f"{number}"),
            ("idstr", 5, 1 + length, told, told),
            ("instance", 6 + length, 4, instance, f"{instance}"),
            ("version", 10 + length, 4, version, f"{version}"),
        ]
        yield from stream.bits("head", 14 + length, fields)
        yield from _body(stream, main, section, kind)


def _part(stream: Stream, main: Main) -> Steps[None]:
    """A section that goes on with one: PART and END."""
    head = yield from stream.look(_PART, "a section")
    section = main.sections.get(head["section"])
    if section is None:
        raise stream.damage(
            "the number of a section that has begun", str(head["section"]), stream.offset + 1
        )
    kind = head["type"]
    section.parts += kind == PART
    stream.count("sections")
    name = f"PART {section.parts} {section.device}" if kind == PART else f"END {section.device}"
    with stream.group(name, text=f"section {section.number}"):
        yield from stream.struct("head", _PART)
        yield from _body(stream, main, section, kind)


def _body(stream: Stream, main: Main, section: Section, kind: int) -> Steps[None]:
    """What is in a section, and its footer."""
    main.inside = section.number
    if section.name == "ram":
        yield from ram.body(stream, main)
    elif vfio.owns(section.name):
        yield from vfio.body(stream, main, section, kind)
    else:
        yield from vmstate.body(stream, main, section)
    found = yield from stream.look(_FOOTER, "a section's footer")
    if found["type"] != FOOTER:
        raise stream.damage(f"a section's footer, {FOOTER:#x}", f"{found['type']:#x}")
    if found["section"] != section.number:
        raise stream.damage(
            f"the footer of section {section.number}", str(found["section"]), stream.offset + 1
        )
    yield from stream.struct("footer", _FOOTER)
    main.inside = None


# --- Beside them --------------------------------------------------------------------------------


def _command(stream: Stream, main: Main) -> Steps[None]:
    head = yield from stream.look(_COMMAND, "a command")
    name, length = COMMANDS.get(head["command"], ("", None))
    if not name:
        raise stream.damage("a command, 1 to 11", str(head["command"]), stream.offset + 1)
    if length is not None and head["length"] != length:
        raise stream.damage(f"{length} bytes of {name}", str(head["length"]), stream.offset + 3)
    stream.count("commands")
    with stream.group(f"command {name}", _COMMAND.size + head["length"]):
        yield from stream.struct("head", _COMMAND)
        if head["length"]:
            data = yield from stream.window(head["length"], name)
            value = bytes(data[: head["length"]])
            told = f"{int.from_bytes(value, 'big')}" if len(value) == 4 else f"{len(value)} bytes"
            yield from stream.bits(
                "arguments", len(value), [("arguments", 0, len(value), value.hex(), told)]
            )


def _configuration(stream: Stream, main: Main) -> Steps[None]:
    data = yield from stream.window(5, "the configuration")
    length = int.from_bytes(data[1:5], "big")
    if not 0 < length <= _MAX_MACHINE:
        raise stream.damage("the length of a machine type's name", str(length), stream.offset + 1)
    data = yield from stream.window(5 + length, "the configuration")
    machine = printable(bytes(data[5 : 5 + length]))
    with stream.group("configuration", text=machine):
        fields = [("length", 1, 4, length, f"{length}"), ("machine", 5, length, machine, machine)]
        yield from stream.bits("machine", 5 + length, fields)
        while bytes((yield from stream.head(1))) == bytes([SUBSECTION]):
            yield from _subsection(stream, main)


def _subsection(stream: Stream, main: Main) -> Steps[None]:
    """Of the configuration: what both ends have to agree on."""
    data = yield from stream.window(2, "a subsection")
    head = 2 + data[1] + 4
    data = yield from stream.window(head, "a subsection")
    name = printable(bytes(data[2 : head - 4]))
    readers = {
        "configuration/target-page-bits": _page_bits,
        "configuration/capabilities": _capabilities,
        "configuration/uuid": _uuid,
    }
    if name not in readers:
        raise stream.damage("a subsection of the configuration", name, stream.offset + 2)
    with stream.group(f"subsection {name}"):
        version = int.from_bytes(data[head - 4 : head], "big")
        yield from stream.bits("head", head, [("version", head - 4, 4, version, f"{version}")])
        yield from readers[name](stream, main)


def _page_bits(stream: Stream, main: Main) -> Steps[None]:
    bits = int.from_bytes((yield from stream.window(4, "page bits"))[:4], "big")
    if bits not in _PAGE_BITS:
        raise stream.damage("pages of 2^10 to 2^16 bytes", f"2^{bits}")
    main.page_size = 1 << bits
    yield from stream.bits("page size", 4, [("bits", 0, 4, bits, f"{1 << bits} bytes")])


def _uuid(stream: Stream, main: Main) -> Steps[None]:
    found = bytes((yield from stream.window(16, "uuid"))[:16]).hex()
    yield from stream.bits("uuid", 16, [("uuid", 0, 16, found, found)])


def _capabilities(stream: Stream, main: Main) -> Steps[None]:
    count = int.from_bytes((yield from stream.window(4, "capabilities"))[:4], "big")
    if count > _MAX_CAPABILITIES:
        raise stream.damage(f"at most {_MAX_CAPABILITIES} capabilities", str(count))
    yield from stream.bits("count", 4, [("count", 0, 4, count, f"{count}")])
    for _ in range(count):
        length = (yield from stream.window(1, "a capability"))[0]
        data = yield from stream.window(1 + length, "a capability")
        name = printable(bytes(data[1 : 1 + length]))
        main.capabilities.add(name)
        fields = [("name", 1, length, name, name)]
        yield from stream.bits(f"capability {name}", 1 + length, fields)


def _description(stream: Stream, main: Main) -> Steps[None]:
    """JSON, of the devices whose state came before."""
    data = yield from stream.window(5, "the description")
    length = int.from_bytes(data[1:5], "big")
    with stream.group("description", 5 + length, "of the devices, JSON"):
        yield from stream.bits("head", 5, [("length", 1, 4, length, f"{length}")])
        if length <= MAX_PIECE:
            text = bytes((yield from stream.window(length, "the description"))[:length])
            try:
                found = Description(text)
            except ValueError as error:
                raise stream.damage("a description of devices", str(error)) from None
            told = f"{len(found.devices)} devices"
        else:
            told = "too large to be looked into"
        yield from stream.opaque("text", length, told)


_HANDLERS: dict[int, Callable[[Stream, Main], Steps[None]]] = {
    EOF: _eof,
    START: _whole,
    PART: _part,
    END: _part,
    FULL: _whole,
    DESCRIPTION: _description,
    CONFIGURATION: _configuration,
    COMMAND: _command,
}
