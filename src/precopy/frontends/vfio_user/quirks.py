"""Where a client departs from the protocol, and it is worth knowing it by name."""

import errno
import struct
from dataclasses import dataclass

from precopy.vfio_user.messages import COMMANDS, Command, DmaData, Form, wrong


@dataclass(frozen=True, slots=True)
class PaddedForm(Form):
    """Data that begins before the structure's end, so that as many bytes too many come behind it."""

    padding: int = 0

    def parse(self, payload: memoryview) -> DmaData:
        found: DmaData = Form.parse(self, payload)
        if len(found.data) < self.padding:
            raise wrong(errno.EINVAL, f"a payload of {len(payload)} bytes lacks its padding")
        return found._replace(data=found.data[: len(found.data) - self.padding])

    def pack(self, message: tuple[object, ...]) -> bytes:
        return Form.pack(self, message) + bytes(self.padding)


@dataclass(frozen=True, slots=True)
class Quirks:
    """How DMA over the socket lies in messages; the protocol's own way if nothing is said."""

    dma_read: Form = COMMANDS[Command.DMA_READ].reply
    dma_write: Form = COMMANDS[Command.DMA_WRITE].request
    dma_ask: Form = COMMANDS[Command.DMA_READ].request


# The length has 32 bits and the data follows it at once; the sizes are those of a structure of 64-bit
# words, 4 bytes more. Of what asks for data it reads the low half of the length.
_SHORT_LENGTH = PaddedForm(DmaData, struct.Struct("=QI"), tail=True, padding=4)

#: By name, as ``--quirk`` takes them.
QUIRKS: dict[str, Quirks] = {
    "": Quirks(),
    # QEMU 10.1 and 10.2 (hw/vfio-user/protocol.h, VFIOUserDMARW). 11.1 speaks the protocol.
    "qemu-10": Quirks(
        dma_read=_SHORT_LENGTH,
        dma_write=_SHORT_LENGTH,
    ),
}
