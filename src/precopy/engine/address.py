"""Where a target listens: ``tcp://host:port`` or ``unix:/path``, connected to and listened on."""

import contextlib
import errno
import ipaddress
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from precopy.unix_socket import listen_unix

DEFAULT_PORT = 7475


class AddressError(ValueError):
    """An address that can't be used; the text says why and what to write."""


@dataclass(frozen=True, slots=True)
class Address:
    """``path`` for a unix socket, else ``host`` and ``port``."""

    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp://{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether nothing outside this machine can reach it."""
        if self.path or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def parse(text: str) -> Address:
    """AddressError where ``text`` is neither ``tcp://host[:port]`` nor ``unix:/path``."""
    path = text.removeprefix("unix:").removeprefix("//")
    if text.startswith("unix:") and path:
        return Address(path=path)
    if text.startswith("tcp://"):
        try:
            parts = urlsplit(text)
            more = parts.path or parts.query or parts.fragment or "@" in parts.netloc
            if parts.hostname and not more:
                port = DEFAULT_PORT if parts.port is None else parts.port
                return Address(parts.hostname, port)
        except ValueError:
            pass
    raise AddressError(f"{text}: write tcp://host:port or unix:/path")


def is_address(text: str) -> bool:
    return text.startswith(("tcp://", "unix:"))


def _told(address: Address, error: OSError | ValueError) -> OSError:
    """``error`` with the address in its text."""
    if not isinstance(error, OSError):
        # A name that can't be written in the way that DNS needs.
        return OSError(errno.EINVAL, f"{address}: this can't be an address")
    # Python tells the address, too, in its own way.
    reason = (error.strerror or str(error)).partition(" (while attempting")[0]
    return OSError(error.errno or 0, f"{address}: {reason}")


#: Nobody is there, or not yet.
_ABSENT = frozenset(
    {
        errno.ECONNREFUSED,
        errno.ENOENT,
        errno.EHOSTUNREACH,
        errno.EHOSTDOWN,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)

#: Seconds between two tries: the first pause, by how much each is longer, the longest.
_FIRST_PAUSE, _GROWTH, _LONGEST_PAUSE = 0.05, 1.5, 2.0


def connect(
    address: Address,
    silence: float = 30.0,
    *,
    wait: float = 0.0,
    waiting: Callable[[], None] = lambda: None,
) -> socket.socket:
    """A connected socket. OSError, with the address in its text, where nobody listens.

    ``silence``: seconds that one try may take. ``wait``: seconds to go on trying where nobody
    listens yet; ``waiting`` is called before each pause.
    """
    until, pause = time.monotonic() + wait, _FIRST_PAUSE
    while True:
        try:
            return _connect(address, silence)
        except (OSError, ValueError) as error:
            absent = isinstance(error, TimeoutError) or (
                isinstance(error, OSError) and error.errno in _ABSENT
            )
            left = until - time.monotonic()
            if not absent or left <= 0:
                raise _told(address, error) from error
        waiting()
        time.sleep(min(pause, left))
        pause = min(pause * _GROWTH, _LONGEST_PAUSE)


def _connect(address: Address, silence: float) -> socket.socket:
    if not address.path:
        connected = socket.create_connection((address.host, address.port), timeout=silence)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        connected = socket.socket(socket.AF_UNIX)
        try:
            connected.settimeout(silence)
            connected.connect(address.path)
        except BaseException:
            connected.close()
            raise
    connected.settimeout(None)
    return connected


class Listening:
    """A socket that waits for sources; a unix socket has mode 0600 and goes away at the end."""

    def __init__(self, address: Address, *, plain_from_network: bool = False) -> None:
        """AddressError for an address that a network can reach, unless told so; OSError."""
        if not address.is_local and not plain_from_network:
            raise AddressError(
                f"{address} can be reached from a network, and what comes would be neither encrypted"
                " nor authenticated: listen on 127.0.0.1 or a unix socket (and forward it by ssh), or"
                " say --plain-from-network"
            )
        self._path = address.path
        try:
            if address.path:
                self._socket = listen_unix(address.path)
            else:
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                self._socket = socket.create_server((address.host, address.port), family=family)
                address = Address(address.host, self._socket.getsockname()[1])
        except (OSError, ValueError) as error:
            raise _told(address, error) from error
        self.address = address

    def accept(self, timeout: float | None = None) -> socket.socket:
        """The next connection. TimeoutError if none has come after ``timeout`` seconds."""
        self._socket.settimeout(timeout)
        connected, _ = self._socket.accept()
        connected.settimeout(None)
        if not self._path:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """Listen no more; a second call does nothing."""
        if self._socket.fileno() >= 0 and self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
        self._socket.close()
