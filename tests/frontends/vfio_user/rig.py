"""A device that is served to a client which says what the test wants, byte by byte."""

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from precopy.backends.sim import open_sim
from precopy.frontends.vfio_user.offered import Offered
from precopy.frontends.vfio_user.quirks import Quirks
from precopy.frontends.vfio_user.session import NEGOTIATION, Session
from precopy.vfio.device import VfioDevice
from precopy.vfio.face import PciFace
from precopy.vfio.guest import Opened
from precopy.vfio_user.messages import COMMANDS, Command, DeviceFeature, Version
from tests.vfio_user.wires import Raw

SIM = "sim:mlx5?log_max_qp=8&first_session=1&page_track=1&state=64K"

#: With everything.
FULL: dict[str, Any] = {
    "max_msg_fds": 16,
    "write_multiple": True,
    "migration_extension": 1,
}


class RawClient(Raw):
    """Asks, and hears the answer: a reply or an errno."""

    def __init__(self, wire: socket.socket) -> None:
        super().__init__(wire)
        self.number = 0
        self.twin: Raw | None = None

    def say_version(self, capabilities: Any, major: int = 0, minor: int = 0) -> None:
        text = json.dumps({"capabilities": capabilities}).encode() + b"\0"
        form = COMMANDS[Command.VERSION].request
        self.say(Command.VERSION, form.pack(Version(major, minor, text)), number=self.number)

    def negotiate(self, **capabilities: Any) -> dict[str, Any]:
        """What the server says of itself."""
        self.say_version({**FULL, **capabilities})
        header, payload, fds = self.hear()
        assert (header.command, header.flags, header.error) == (Command.VERSION, 1, 0)
        version = COMMANDS[Command.VERSION].reply.parse(memoryview(payload))
        assert (version.major, version.minor) == (0, 0)
        text = bytes(version.text)
        assert text.endswith(b"}\0")
        said: dict[str, Any] = json.loads(text[:-1])["capabilities"]
        if "twin_socket" in said:
            self.twin = Raw(socket.socket(fileno=fds.pop(said["twin_socket"]["fd_index"])))
        assert not fds
        return said

    def ask_raw(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = ()
    ) -> tuple[int, bytes, list[int]]:
        """Errno, payload, descriptors."""
        self.number = (self.number + 1) & 0xFFFF
        self.say(command, payload, number=self.number, fds=fds)
        header, found, came = self.hear()
        assert (header.message_id, header.command) == (self.number, command)
        assert header.flags == (0x21 if header.error else 1)
        if header.error:
            # An error is the header alone.
            assert (found, came) == (b"", [])
        return header.error, found, came

    def ask_with_fds(
        self, command: Command, request: tuple[Any, ...], fds: Sequence[int] = ()
    ) -> tuple[Any, list[int]]:
        spec = COMMANDS[command]
        code, payload, came = self.ask_raw(command, spec.request.pack(request), fds)
        if code:
            raise OSError(code, os.strerror(code))
        found = spec.reply.parse(memoryview(payload))
        if spec.reply.tail:
            found = found._replace(**{found._fields[-1]: bytes(found[-1])})
        return found, came

    def ask(self, command: Command, request: tuple[Any, ...], fds: Sequence[int] = ()) -> Any:
        """The reply. OSError with the errno that came instead."""
        found, came = self.ask_with_fds(command, request, fds)
        assert not came
        return found

    def refused(self, command: Command, request: tuple[Any, ...], fds: Sequence[int] = ()) -> str:
        """The name of the errno; "" where it was not refused."""
        try:
            self.ask(command, request, fds)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return ""

    def feature(self, flags: int, data: bytes = b"", argsz: int = 4096) -> bytes:
        found = self.ask(Command.DEVICE_FEATURE, DeviceFeature(argsz, flags, data))
        assert found.flags == flags
        assert found.argsz == 8 + len(found.data)
        return bytes(found.data)

    def close(self) -> None:
        super().close()
        if self.twin is not None:
            self.twin.close()


class Served:
    """``device`` with ``face``, for one client after another, without a socket of its own."""

    def __init__(
        self, device: VfioDevice, face: PciFace | None, *, quirks: Quirks | None = None
    ) -> None:
        self.device = device
        self.offered = Offered(device, face)
        self._quirks = quirks
        self._open: list[tuple[RawClient, threading.Thread]] = []

    def connect(self, negotiation: float = NEGOTIATION) -> RawClient:
        """A client that has said nothing."""
        ours, theirs = socket.socketpair()
        session = Session(
            ours, self.offered, quirks=self._quirks, name="test", negotiation=negotiation
        )
        thread = threading.Thread(target=session.run, name="session")
        thread.start()
        client = RawClient(theirs)
        self._open.append((client, thread))
        return client

    def client(self, **capabilities: Any) -> RawClient:
        """One that has the device."""
        made = self.connect()
        made.negotiate(**capabilities)
        return made

    def leave(self, client: RawClient) -> None:
        """``client`` goes; on return the server has seen that."""
        client.close()
        for each, thread in self._open:
            if each is client:
                thread.join(20)
                assert not thread.is_alive()

    def close(self) -> None:
        for client, _ in self._open:
            self.leave(client)
        self.offered.close()


@contextlib.contextmanager
def served(
    device: VfioDevice, face: PciFace | None, *, quirks: Quirks | None = None
) -> Iterator[Served]:
    made = Served(device, face, quirks=quirks)
    try:
        yield made
    finally:
        made.close()


def opened_sim(query: str = "", *, face: bool = True) -> Opened:
    """A simulated device as ``precopy serve`` opens it."""
    return open_sim(f"{SIM}{query}", served=face)
