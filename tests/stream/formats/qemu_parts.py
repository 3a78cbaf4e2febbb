"""Parts of QEMU's streams, to be put together: what migration/savevm.c, ram.c and multifd.c write."""

import json
import struct
from collections.abc import Iterable, Sequence

DEVICE = "0000:00:04.0/vfio"

#: The state of an mtty with two ports, as the kernel's sample has it.
MTTY = struct.pack("<QIIII", 0x7E9D09898C3E2C4E, 1, 0, 2, 0) + bytes(72)

_CONTINUE, _EOS = 0x20, 0x10
PAGE = bytes(range(256)) * 16

END_OF_STATE, CONFIG, SETUP, DATA, INIT_DATA_SENT, LOAD_READY = (
    struct.pack(">Q", 0xFFFF_FFFF_EF10_0001 + number) for number in range(6)
)


def text(name: str) -> bytes:
    return bytes([len(name)]) + name.encode()


def header(machine: str = "pc-test", subsections: bytes = b"") -> bytes:
    return b"QEVM" + struct.pack(">IBI", 3, 7, len(machine)) + machine.encode() + subsections


def capabilities(*names: str) -> bytes:
    head = b"\x05" + text("configuration/capabilities") + struct.pack(">II", 1, len(names))
    return head + b"".join(map(text, names))


def footer(number: int) -> bytes:
    return struct.pack(">BI", 0x7E, number)


def start(number: int, name: str, body: bytes, kind: int = 1, instance: int = 0) -> bytes:
    head = struct.pack(">BI", kind, number) + text(name) + struct.pack(">II", instance, 1)
    return head + body + footer(number)


def full(number: int, name: str, body: bytes, instance: int = 0) -> bytes:
    return start(number, name, body, 4, instance)


def part(number: int, body: bytes, kind: int = 2) -> bytes:
    return struct.pack(">BI", kind, number) + body + footer(number)


def end(number: int, body: bytes) -> bytes:
    return part(number, body, 3)


def command(number: int, arguments: bytes = b"") -> bytes:
    return struct.pack(">BHH", 8, number, len(arguments)) + arguments


# --- Guest memory -------------------------------------------------------------------------------


def mem_size(blocks: dict[str, int], extra: Sequence[bytes] = ()) -> bytes:
    listed = [text(name) + struct.pack(">Q", size) for name, size in blocks.items()]
    extras = [*extra, *[b""] * (len(listed) - len(extra))]
    return struct.pack(">Q", sum(blocks.values()) | 4) + b"".join(
        a + b for a, b in zip(listed, extras, strict=True)
    )


def record(address: int, flag: int, body: bytes, block: str = "") -> bytes:
    """One page; ``block`` is empty for the same as before."""
    word = address | flag | (0 if block else _CONTINUE)
    return struct.pack(">Q", word) + (text(block) if block else b"") + body


def page(address: int, block: str = "", content: bytes = PAGE) -> bytes:
    return record(address, 0x08, content, block)


def zero(address: int, block: str = "") -> bytes:
    return record(address, 0x02, b"\0", block)


def xbzrle(address: int, delta: bytes, block: str = "") -> bytes:
    return record(address, 0x40, b"\1" + struct.pack(">H", len(delta)) + delta, block)


def eos() -> bytes:
    return struct.pack(">Q", _EOS)


# --- A VFIO device ------------------------------------------------------------------------------


def data(piece: bytes) -> bytes:
    return DATA + struct.pack(">Q", len(piece)) + piece


def config(vectors: int = 0) -> bytes:
    space = bytearray(4096)
    space[:8] = struct.pack("<HHHH", 0x15B3, 0x101E, 0x0406, 0x10 if vectors else 0)
    space[0x34] = 0x60
    if vectors:
        space[0x60:0x64] = struct.pack("<BBH", 0x11, 0, vectors - 1)
    msix = bytes(vectors * 16 + -(-vectors // 8))
    return CONFIG + struct.pack(">I", 2) + space + bytes(16) + msix + END_OF_STATE


def description(*devices: tuple[str, int, list[dict[str, object]]]) -> bytes:
    nodes = [
        {"name": name, "instance_id": instance, "vmsd_name": name, "version": 1, "fields": fields}
        for name, instance, fields in devices
    ]
    found = json.dumps({"configuration": {}, "page_size": 4096, "devices": nodes}).encode()
    return struct.pack(">BI", 6, len(found)) + found


#: A device that is none of VFIO's, and how it is described.
TIMER = struct.pack(">QIB", 0x123456789, 7, 1) + bytes(range(32))
TIMER_FIELDS: list[dict[str, object]] = [
    {"name": "clock", "type": "uint64", "size": 8},
    {"name": "level", "type": "int32", "size": 4},
    {"name": "on", "type": "bool", "size": 1},
    {"name": "regs", "type": "uint16", "size": 2, "array_len": 16},
]


def stream(state: bytes | None = None, described: bool = True) -> bytes:
    """A machine with one VFIO device, from the header to the end."""
    state = MTTY if state is None else state
    parts = [
        header(),
        start(2, "ram", mem_size({"pc.ram": 8 << 12, "pc.rom": 2 << 12}) + eos()),
        start(39, DEVICE, SETUP + END_OF_STATE),
        part(2, page(0, "pc.ram") + page(4096) + zero(8192) + zero(0, "pc.rom") + eos()),
        part(39, data(state[:24]) + INIT_DATA_SENT),
        command(11),
        end(2, xbzrle(4096, b"delta", "pc.ram") + page(12288) + eos()),
        end(39, data(state[24:]) + END_OF_STATE),
        full(0, "timer", TIMER),
        full(39, DEVICE, config()),
        b"\0",
    ]
    if described:
        parts.append(description(("timer", 0, TIMER_FIELDS)))
    return b"".join(parts)


# --- multifd ------------------------------------------------------------------------------------

_MAGIC = struct.pack(">II", 0x11223344, 1)
SYNC, ZLIB, DEVICE_STATE = 1, 2, 64


def channel(number: int, *packets: bytes) -> bytes:
    return _MAGIC + bytes(16) + bytes([number]) + bytes(39) + b"".join(packets)


def sync(room: int = 128) -> bytes:
    return _MAGIC + struct.pack(">I", SYNC) + bytes(308) + bytes(8 * room)


def pages(
    full: Sequence[int], zeros: Sequence[int] = (), block: str = "pc.ram", room: int = 128
) -> bytes:
    counts = struct.pack(">IIIQI", room, len(full), 4096 * len(full), 5, len(zeros))
    head = _MAGIC + struct.pack(">I", 0) + counts + bytes(28) + block.encode().ljust(256, b"\0")
    listed = b"".join(struct.pack(">Q", each) for each in [*full, *zeros])
    return head + listed.ljust(8 * room, b"\0") + PAGE * len(full)


def piece(index: int, content: bytes, flags: int = 0, name: str = DEVICE) -> bytes:
    payload = struct.pack(">III", 0, index, flags) + content
    head = _MAGIC + struct.pack(">I", DEVICE_STATE) + name.encode().ljust(256, b"\0")
    return head + struct.pack(">II", 0, len(payload)) + payload


def main_of_multifd(state: bytes, initial: int = 24, names: Iterable[str] = (DEVICE,)) -> bytes:
    """A main stream whose devices' last part went over channels."""
    numbers = {name: 39 + number for number, name in enumerate(names)}
    parts = [header(), start(2, "ram", mem_size({"pc.ram": 8 << 12}) + eos())]
    parts += [start(number, name, SETUP + END_OF_STATE) for name, number in numbers.items()]
    parts += [part(number, data(state[:initial]) + INIT_DATA_SENT) for number in numbers.values()]
    parts += [end(2, eos()), *(end(number, END_OF_STATE) for number in numbers.values())]
    parts += [full(number, name, END_OF_STATE) for name, number in numbers.items()]
    return b"".join([*parts, b"\0"])
