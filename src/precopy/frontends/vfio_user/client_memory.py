"""Memory that only the client reaches: the server asks for it (DMA_READ, DMA_WRITE)."""

import errno
from collections.abc import Callable, Sequence

from precopy.frontends.vfio_user.quirks import Quirks
from precopy.vfio.device import Buffer
from precopy.vfio_user.conversation import Conversation, Message
from precopy.vfio_user.messages import (
    Command,
    DmaAccess,
    DmaData,
    wrong,
)

#: Seconds that a client has to answer.
DMA_ANSWER = 10.0


class ClientMemory:
    """Asks on ``asking`` (the twin socket where there is one); ``cut`` ends a client that never answers."""

    def __init__(
        self,
        asking: Conversation,
        step: int,
        quirks: Quirks,
        cut: Callable[[int, str], None],
    ) -> None:
        self._asking, self._step, self._quirks, self._cut = asking, step, quirks, cut

    def _pieces(self, length: int) -> list[tuple[int, int]]:
        return [(at, min(self._step, length - at)) for at in range(0, length, self._step)]

    def read(self, address: int, length: int) -> bytes:
        """DMA_READ. OSError EFAULT where the client says no."""
        found = []
        form = self._quirks.dma_read
        for at, count in self._pieces(length):
            asked = self._quirks.dma_ask.pack(DmaAccess(address + at, count))
            reply = self._call(Command.DMA_READ, [asked])
            try:
                answer: DmaData = form.parse(reply.payload)
                told = (answer.address, answer.length, len(answer.data))
                if told != (address + at, count, count):
                    raise wrong(errno.EFAULT, f"DMA_READ at {address + at:#x}: another answer came")
                found.append(bytes(answer.data))
            finally:
                self._asking.recycle(reply)
        return b"".join(found)

    def write(self, address: int, data: bytes) -> None:
        """DMA_WRITE. OSError EFAULT where the client says no."""
        for at, count in self._pieces(len(data)):
            part = DmaData(address + at, count, data[at : at + count])
            told = self._quirks.dma_write.pack(part)
            reply = self._call(Command.DMA_WRITE, [told])
            self._asking.recycle(reply)

    def _call(self, command: Command, payload: Sequence[Buffer]) -> Message:
        try:
            reply = self._asking.call(command, payload, timeout=DMA_ANSWER)
        except TimeoutError as error:
            # A device can't wait for ever, and an answer that came later would be taken for another.
            self._cut(errno.ETIMEDOUT, f"no answer to {command.name}")
            raise wrong(errno.EFAULT, f"no answer to {command.name} in {DMA_ANSWER:g} s") from error
        except OSError as error:
            raise wrong(errno.EFAULT, f"{command.name}: {error.strerror}") from error
        return reply
