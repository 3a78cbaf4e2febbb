"""Where a target listens: ``tcp://host:port`` or ``unix:/path``, connected to and listened on."""

import contextlib
import ipaddress
import os
import socket
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

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
    if text.startswith("unix:") and len(text) > 5:
        return Address(path=text[5:].removeprefix("//"))
    if text.startswith("tcp://"):
        try:
            parts = urlsplit(text)
            if parts.hostname and not parts.path and not parts.username:
                port = DEFAULT_PORT if parts.port is None else parts.port
                return Address(parts.hostname, port)
        except ValueError:
            pass
    raise AddressError(f"{text}: write tcp://host:port or unix:/path")


def is_address(text: str) -> bool:
    return text.startswith(("tcp://", "unix:"))


def _tune(connected: socket.socket, silence: float) -> None:
    """A peer that takes nothing for ``silence`` seconds ends a blocked send."""
    seconds = struct.pack("ll", int(silence), int(silence % 1 * 1e6))
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    if connected.family != socket.AF_UNIX:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def connect(address: Address, silence: float = 30.0) -> socket.socket:
    """A connected socket. OSError, with the address in its text, where nobody listens."""
    try:
        if address.path:
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(silence)
            connected.connect(address.path)
        else:
            connected = socket.create_connection((address.host, address.port), timeout=silence)
    except OSError as error:
        raise OSError(error.errno or 0, f"{address}: {error.strerror or error}") from error
    connected.settimeout(None)
    _tune(connected, silence)
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
                self._socket = socket.socket(socket.AF_UNIX)
                before = os.umask(0o177)
                try:
                    self._socket.bind(address.path)
                finally:
                    os.umask(before)
                self._socket.listen()
            else:
                family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
                self._socket = socket.create_server((address.host, address.port), family=family)
                address = Address(address.host, self._socket.getsockname()[1])
        except OSError as error:
            raise OSError(error.errno or 0, f"{address}: {error.strerror or error}") from error
        self.address = address

    def accept(self, silence: float = 30.0) -> socket.socket:
        """The next connection, waited for as long as it takes."""
        connected, _ = self._socket.accept()
        _tune(connected, silence)
        return connected

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()
        if self._path:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
