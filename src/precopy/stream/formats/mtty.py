"""The state of an mtty: samples/vfio-mdev/mtty.c, Linux 7.3.4. Native order, little-endian here."""

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, Values, hexadecimal
from precopy.stream.registry import begins_with, register

MAGIC = 0x7E9D09898C3E2C4E

#: ``struct mtty_data`` before the ports: all of the initial image.
HEADER = Layout(
    "<",
    ("magic", "Q", hexadecimal),
    ("major_ver", "I"),
    ("minor_ver", "I"),
    ("nr_ports", "I"),
    ("flags", "I", hexadecimal),
)

#: What a target takes: its own number of ports, and the rest as it is here (else EFAULT).
_ALLOWED: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("magic", (MAGIC,)),
    ("major_ver", (1,)),
    ("minor_ver", (0,)),
    ("nr_ports", (1, 2)),
    ("flags", (0,)),
)

#: Registers of a UART by their offset: include/uapi/linux/serial_reg.h.
_REGISTERS = ("RX/TX", "IER", "IIR", "LCR", "MCR", "LSR", "MSR", "SCR")

#: ``struct serial_port``, with the gaps that a compiler leaves.
PORT = Layout(
    "<",
    *((f"uart_reg[{number}] {name}", "B", hexadecimal) for number, name in enumerate(_REGISTERS)),
    ("rxtx.fifo", "16s"),
    ("rxtx.head", "B"),
    ("rxtx.tail", "B"),
    ("rxtx.count", "B"),
    ("dlab", "B"),
    ("overrun", "B"),
    ("gap 1", "B", hexadecimal),
    ("divisor", "H"),
    ("fcr", "B", hexadecimal),
    ("max_fifo_size", "B"),
    ("intr_trigger_level", "B"),
    ("gap 2", "B", hexadecimal),
)

_FIFO = 16


@register(
    "mtty", "state of an mtty of the kernel's samples", begins_with(MAGIC.to_bytes(8, "little"))
)
def dissect(stream: Stream) -> Steps[None]:
    """A header, which is the whole of the initial image, then the ports as they lie in memory."""
    head = yield from stream.look(HEADER, "header")
    for name, allowed in _ALLOWED:
        if head[name] not in allowed:
            expected = " or ".join(f"{value:#x}" for value in allowed)
            at = stream.offset + HEADER.offset(name)
            damage = stream.damage(f"{name} {expected}", f"{head[name]:#x}", at)
            if name in ("magic", "nr_ports"):
                raise damage
            stream.tell_wrong(damage)
    stream.phase("initial", HEADER.size)
    yield from stream.struct("header", HEADER)
    for number in range(head["nr_ports"]):
        port = yield from stream.look(PORT, f"port {number}")
        stream.count("ports")
        stream.phase("final", PORT.size)
        yield from stream.struct(f"port {number}", PORT, _waiting(port))


def _waiting(port: Values) -> str:
    """What is in the FIFO of a port."""
    count = port["rxtx.count"]
    if not count:
        return "nothing in its FIFO"
    told = f"{count} bytes in its FIFO"
    return told if count <= _FIFO else f"{told}, which holds {_FIFO}"
