"""Where a client departs from the protocol, and it is worth knowing it by name."""

import errno
import struct
from dataclasses import dataclass

from precopy.vfio_user.messages import COMMANDS, Command, DmaAccess, DmaData, Form, wrong


@dataclass(frozen=True, slots=True)
class Quirks:
    """How DMA over the socket lies in messages; the protocol's own way if nothing is said."""

    dma_read: Form = COMMANDS[Command.DMA_READ].reply
    dma_write: Form = COMMANDS[Command.DMA_WRITE].request
    dma_ask: Form = COMMANDS[Command.DMA_READ].request
    dma_done: Form = COMMANDS[Command.DMA_WRITE].reply


#: By name, as ``--quirk`` takes them.
QUIRKS: dict[str, Quirks] = {
    "": Quirks(),
    # QEMU (10.2): the length of DMA over the socket has 32 bits and the data follows it at once.
    "qemu": Quirks(
        dma_read=Form(DmaData, struct.Struct("=QI"), tail=True),
        dma_write=Form(DmaData, struct.Struct("=QI"), tail=True),
        dma_ask=Form(DmaAccess, struct.Struct("=QI")),
        dma_done=Form(DmaAccess, struct.Struct("=QI")),
    ),
}


def quirks(name: str) -> Quirks:
    """WireError EINVAL for a name that is not known."""
    if name not in QUIRKS:
        known = ", ".join(sorted(filter(None, QUIRKS)))
        raise wrong(errno.EINVAL, f"no quirk {name!r}; there are {known}")
    return QUIRKS[name]
