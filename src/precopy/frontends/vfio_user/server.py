"""A device on a unix socket, for one client at a time; who may connect is told by the kernel.

Whatever clients send, the server allocates at most :data:`MOST_HELD` bytes for them, about 43 MiB:

- for each of 16 connections what is being received: 64 KiB and one message of 1 MiB;
- for the client that has the device, and for its twin socket, what waits while the server asks it for
  memory: 8 MiB of payloads, 1024 messages, 64 descriptors;
- for the reply under way: what was read, and a copy of it on its way.

Memory of the client's that is mapped is the client's. The kernel holds what was sent and not yet
received, as much as a socket's buffer.
"""

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Container

from precopy.frontends.vfio_user.offered import Offered
from precopy.frontends.vfio_user.quirks import Quirks
from precopy.frontends.vfio_user.session import NEGOTIATION, Session
from precopy.unix_socket import listen_unix, peer_user
from precopy.vfio.device import VfioDevice
from precopy.vfio.face import PciFace
from precopy.vfio_user.conversation import MOST_WAITING, MOST_WAITING_BYTES
from precopy.vfio_user.messages import MOST_HEAD
from precopy.vfio_user.receiving import INBOX_BYTES
from precopy.vfio_user.version import OURS

log = logging.getLogger("precopy.vfio_user")

#: Connections at a time, those that have not agreed on a version among them.
MOST_CONNECTIONS = 16

#: Bytes for what Python needs around a message that waits.
_AROUND = 1024

#: Bytes that all clients together can make a server allocate.
MOST_HELD = (
    MOST_CONNECTIONS * (INBOX_BYTES + OURS.max_data_xfer_size + MOST_HEAD)
    + 2 * (MOST_WAITING_BYTES + OURS.max_data_xfer_size + MOST_WAITING * _AROUND)
    + 6 * OURS.max_data_xfer_size
)

#: Seconds that a command under way has at the end.
_LAST_CALL = 5.0

#: Seconds until the next client is taken, after one that could not be.
_PAUSE = 0.1


class Server:
    """``device`` at ``path``. OSError where nothing can listen there.

    ``users``: who may connect besides the user of this process; None: anybody who can reach the
    socket. It has mode 0600; for others to reach it, its mode is to be changed.
    """

    def __init__(
        self,
        device: VfioDevice,
        face: PciFace | None,
        path: str,
        *,
        users: Container[int] | None = (),
        quirks: Quirks | None = None,
        negotiation: float = NEGOTIATION,
    ) -> None:
        self._offered = Offered(device, face)
        self._path, self._users, self._quirks = path, users, quirks
        self._negotiation = negotiation
        self._socket = listen_unix(path)
        self._lock = threading.Lock()
        self._sessions: dict[Session, threading.Thread] = {}
        self._stopping = threading.Event()
        self._count = 0

    @property
    def path(self) -> str:
        return self._path

    def clients(self) -> int:
        """How many are connected."""
        with self._lock:
            return len(self._sessions)

    def serve(self) -> None:
        """Take clients until :meth:`stop` is called."""
        while True:
            try:
                connected, _ = self._socket.accept()
            except OSError as error:
                if self._stopping.is_set():
                    return
                # No descriptor is free, or a client has gone already: the others are still served.
                log.warning("a client could not be taken: %s", error.strerror)
                if self._stopping.wait(_PAUSE):
                    return
                continue
            self._take(connected)

    def _take(self, connected: socket.socket) -> None:
        user = peer_user(connected)
        self._count += 1
        name = f"client {self._count}"
        with self._lock:
            crowded = len(self._sessions) >= MOST_CONNECTIONS
            why = ""
            if self._users is not None and user != os.getuid() and user not in self._users:
                why = f"user {user} may not connect"
            elif self._stopping.is_set() or crowded:
                why = f"{len(self._sessions)} clients are connected already"
            if why:
                log.warning("%s: refused: %s", name, why)
                connected.close()
                return
            session = Session(
                connected,
                self._offered,
                name=name,
                quirks=self._quirks,
                negotiation=self._negotiation,
            )
            thread = threading.Thread(target=self._run, args=(session,), name=name, daemon=True)
            self._sessions[session] = thread
            thread.start()

    def _run(self, session: Session) -> None:
        try:
            session.run()
        finally:
            with self._lock:
                del self._sessions[session]

    def start(self, done: Callable[[], None] | None = None) -> threading.Thread:
        """Serve in a thread of its own; ``done`` is called when that ends."""

        def run() -> None:
            self.serve()
            if done is not None:
                done()

        thread = threading.Thread(target=run, name="vfio-user", daemon=True)
        thread.start()
        return thread

    def stop(self, grace: float = 0.0) -> None:
        """Take no more clients; ask the present one to let go, and end it after ``grace`` seconds."""
        self._stopping.set()
        # A thread in accept() is not woken by close() alone.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with self._lock:
            sessions = dict(self._sessions)
        if sessions:
            self._offered.ask_for_release()
        deadline = time.monotonic() + grace
        for session, thread in sessions.items():
            thread.join(max(0.0, deadline - time.monotonic()))
            session.end()
        for thread in sessions.values():
            # A device that never comes back from a call does not hold up the end.
            thread.join(_LAST_CALL)
        self._offered.close()
