"""What the target says, heard while the source sends."""

import queue
import threading
import time

from precopy.engine import messages
from precopy.engine.channel import CONTROL, Channel, ChannelError, Closed, Interrupted
from precopy.engine.messages import Message
from precopy.engine.outcome import Failed

#: After one of these the target says no more.
_LAST_WORDS = ("running", "stuck", "failed", "refuse")

#: Whoever waits for a word looks so often, in seconds, whether he is to stop.
_SLICE = 0.1


class TargetFailed(Failed):
    """The target says that it failed: nothing ran there, and nothing will. The text is its reason."""


class Listener:
    """Reads ``channel`` in a thread of its own, to the end or until the target's last word."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._said: queue.SimpleQueue[tuple[str, Message] | ChannelError] = queue.SimpleQueue()
        #: Bytes a second at which the target loads; 0 until it has told.
        self.load_rate = 0.0
        #: When the target's time was heard last.
        self.time_heard = 0.0
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
                if kind == "time":
                    self.time_heard = time.monotonic()
                self._said.put((kind, fields))
                if kind in _LAST_WORDS:
                    raise Closed("the target had said its last word")
        except ChannelError as error:
            self._said.put(error)

    def _next(self, timeout: float) -> tuple[str, Message] | None:
        """The next message; None if none came in time. ChannelError when there will be no other."""
        try:
            said = self._said.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            return None
        if isinstance(said, ChannelError):
            self._said.put(said)  # for whoever asks next
            raise said
        return said

    def wait(
        self, *kinds: str, timeout: float, cancel: threading.Event | None = None
    ) -> tuple[str, Message]:
        """The next message, which has to be one of ``kinds``.

        TargetFailed with the target's reason; Interrupted once ``cancel`` is set; ChannelError.
        """
        until = time.monotonic() + timeout
        said = None
        while said is None:
            if cancel is not None and cancel.is_set():
                raise Interrupted("interrupted")
            left = until - time.monotonic()
            said = self._next(min(left, _SLICE))
            if said is None and left <= 0:
                raise ChannelError(f"the target did not say {' or '.join(kinds)} in {timeout:g} s")
        kind, fields = said
        if kind == "failed":
            raise TargetFailed(f"the target failed: {fields['reason']}")
        if kind not in kinds:
            raise ChannelError(f"the target said {kind} instead of {' or '.join(kinds)}")
        return kind, fields

    def objection(self, timeout: float) -> str | None:
        """Why the target has given up, if it says so in time and before the connection's end."""
        until = time.monotonic() + timeout
        try:
            while said := self._next(until - time.monotonic()):
                if said[0] == "failed":
                    return str(said[1]["reason"])
        except ChannelError:
            pass
        return None

    def check(self) -> None:
        """Raise what the target has said unasked: TargetFailed or ChannelError."""
        said = self._next(0.0)
        if said is not None:
            kind, fields = said
            if kind == "failed":
                raise TargetFailed(f"the target failed: {fields['reason']}")
            raise ChannelError(f"the target said {kind} out of turn")
