"""The state of an mtty: samples/vfio-mdev/mtty.c, Linux 7.3.4. Native order, little-endian here."""

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, hexadecimal
from precopy.stream.registry import begins_with, register

MAGIC = 0x7E9D09898C3E2C4E
MAJOR = 1
PORTS = (1, 2)

HEADER = Layout(
    "<",
    ("magic", "Q", hexadecimal),
    ("major_ver", "I"),
    ("minor_ver", "I"),
    ("flags", "I", hexadecimal),
    ("nr_ports", "I"),
)


@register(
    "mtty", "state of an mtty of the kernel's samples", begins_with(MAGIC.to_bytes(8, "little"))
)
def dissect(stream: Stream) -> Steps[None]:
    """A header, which is the whole of the initial image, then the ports as they lie in memory."""
    head = yield from stream.look(HEADER, "header")
    for name, allowed in (("magic", (MAGIC,)), ("major_ver", (MAJOR,)), ("nr_ports", PORTS)):
        if head[name] not in allowed:
            expected = " or ".join(map(str, allowed))
            at = stream.offset + HEADER.offset(name)
            raise stream.damage(f"{name} {expected}", f"{head[name]:#x}", at)
    stream.phase("initial", HEADER.size)
    yield from stream.struct("header", HEADER)
    yield from stream.rest("ports")
