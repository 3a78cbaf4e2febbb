"""A relay between a source and a target that does something at a chosen message.

It forwards every frame as it is (a data frame's checksum is a running one), one at a time over both
directions, so that nothing overtakes what it does.
"""

import contextlib
import enum
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import NamedTuple

from precopy.engine.channel import CONTROL, DATA, HEADER_BYTES, MEMORY

SOURCE, TARGET = "source", "target"
BEFORE, AFTER = "before", "after"


class Frame(NamedTuple):
    """One frame; ``kind`` is a message's kind, or ``data``, or ``memory``."""

    kind: str
    payload: bytes
    header: bytes = b""


#: In place of a kind: whatever it is.
ANY = "frame"


class Point(NamedTuple):
    """The ``nth`` frame of ``kind`` that ``sender`` sends, before or after it is forwarded."""

    sender: str
    kind: str
    when: str = BEFORE
    nth: int = 1

    def __str__(self) -> str:
        return f"{self.when} the {self.sender}'s {self.kind}"


class Then(enum.Enum):
    """What becomes of the connection once the relay has acted."""

    #: It goes on.
    FORWARD = enum.auto()
    #: Closed to both.
    CUT = enum.auto()
    #: What the sender of the message says from now on, this frame included, gets lost.
    LOSE = enum.auto()


def _exactly(wire: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = wire.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return data


def read_frame(wire: socket.socket) -> Frame:
    """The next frame. OSError at the end of the connection."""
    header = _exactly(wire, HEADER_BYTES)
    _, kind, _, length, _ = struct.unpack("<HBBIQ", header)
    assert kind in (DATA, MEMORY, CONTROL)
    payload = _exactly(wire, length)
    names = {DATA: "data", MEMORY: "memory"}
    name = names.get(kind) or json.loads(payload)["kind"]
    return Frame(name, payload, header)


class Relay:
    """``wires``: the relay's ends of the connections to source and target; :meth:`join` closes them."""

    def __init__(
        self,
        source: socket.socket,
        target: socket.socket,
        at: Point | None = None,
        act: Callable[[], object] = lambda: None,
        then: Then = Then.FORWARD,
    ) -> None:
        self._wires = {SOURCE: source, TARGET: target}
        self._at, self._act, self._then = at, act, then
        self._lock = threading.Lock()
        self._cut = False
        self._seen = 0
        #: Whether the point has been reached.
        self.acted = False
        #: What each has said, and the other has been given.
        self.said: dict[str, list[Frame]] = {SOURCE: [], TARGET: []}
        self._threads = [
            threading.Thread(target=self._pump, args=pair, name=f"relay from {pair[0]}")
            for pair in ((SOURCE, TARGET), (TARGET, SOURCE))
        ]
        for thread in self._threads:
            thread.start()

    def _pump(self, sender: str, receiver: str) -> None:
        lost = False
        with contextlib.suppress(OSError):
            while True:
                frame = read_frame(self._wires[sender])
                with self._lock:
                    lost = self._pass(sender, receiver, frame, lost)
                    if self._cut:
                        break
        # This direction is over; what the receiver has said before it went is still on its way back.
        for wire, how in ((receiver, socket.SHUT_WR), (sender, socket.SHUT_RD)):
            with contextlib.suppress(OSError):
                self._wires[wire].shutdown(how)

    def _is_here(self, sender: str, frame: Frame) -> bool:
        at = self._at
        if at is None or at.sender != sender or at.kind not in (frame.kind, ANY):
            return False
        self._seen += 1
        return self._seen == at.nth

    def _pass(self, sender: str, receiver: str, frame: Frame, lost: bool) -> bool:
        here = not self.acted and self._is_here(sender, frame)
        if here and self._at is not None and self._at.when == BEFORE:
            self._arrive()
            lost = self._then is Then.LOSE
        if self._cut or lost:
            return lost
        cut_after = here and not self.acted and self._then is Then.CUT
        if cut_after:
            # Whoever hears the last frame must find that it can't answer it.
            self._wires[receiver].shutdown(socket.SHUT_RD)
        self.said[sender].append(frame)
        with contextlib.suppress(OSError) if cut_after else contextlib.nullcontext():
            self._wires[receiver].sendall(frame.header + frame.payload)
        if here and not self.acted:
            self._arrive()
            lost = self._then is Then.LOSE
        return lost

    def _arrive(self) -> None:
        self.acted = True
        self._act()
        if self._then is Then.CUT:
            self.cut()

    def cut(self) -> None:
        """Close the connection to both."""
        self._cut = True
        for wire in self._wires.values():
            with contextlib.suppress(OSError):
                wire.shutdown(socket.SHUT_RDWR)

    def join(self) -> None:
        """Wait for both directions to end."""
        for thread in self._threads:
            thread.join()
        for wire in self._wires.values():
            wire.close()
