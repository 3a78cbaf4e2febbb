"""What the target says, heard while the source sends."""

import contextlib
import queue
import threading

from precopy.engine import messages
from precopy.engine.channel import CONTROL, Channel, ChannelError
from precopy.engine.messages import Message
from precopy.engine.outcome import Failed


class Listener:
    """Reads ``channel`` in a thread of its own, to the end or until the target's last word."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._said: queue.Queue[tuple[str, Message] | ChannelError] = queue.Queue()
        #: Bytes a second at which the target loads; 0 until it has told.
        self.load_rate = 0.0
        threading.Thread(target=self._listen, name="listener", daemon=True).start()

    def _listen(self) -> None:
        try:
            while True:
                frame, payload = self._channel.receive()
                if frame != CONTROL:
                    raise ChannelError("the target sent data")
                kind, fields = messages.decode(payload)
                if kind == "loaded":
                    if fields["seconds"]:
                        self.load_rate = fields["bytes"] / fields["seconds"]
                    continue
                self._said.put((kind, fields))
                if kind in ("running", "failed", "refuse"):
                    return
        except ChannelError as error:
            self._said.put(error)

    def wait(self, kind: str, timeout: float) -> Message:
        """The next message, which has to be ``kind``. Failed, or ChannelError, otherwise."""
        try:
            said = self._said.get(timeout=timeout)
        except queue.Empty:
            raise ChannelError(f"the target did not say {kind} within {timeout:g} s") from None
        if isinstance(said, ChannelError):
            raise said
        if said[0] == "failed":
            raise Failed(f"the target failed: {said[1]['reason']}")
        if said[0] != kind:
            raise ChannelError(f"the target said {said[0]} instead of {kind}")
        return said[1]

    def objection(self) -> str | None:
        """Why the target has given up, if it has."""
        try:
            said = self._said.get(timeout=1.0)
        except queue.Empty:
            return None
        if isinstance(said, ChannelError):
            return None
        return str(said[1].get("reason", "")) or None

    def check(self) -> None:
        """Raise what the target has said unasked."""
        with contextlib.suppress(queue.Empty):
            said = self._said.get_nowait()
            if isinstance(said, ChannelError):
                raise said
            raise Failed(f"the target failed: {said[1].get('reason', said[0])}")
