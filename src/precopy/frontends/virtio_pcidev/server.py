"""A server of PCI functions to User-Mode Linux: a socket and a thread for each."""

import contextlib
import errno
import os
import socket
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from precopy.frontends.virtio_pcidev.connection import Connection, Gone, close_all
from precopy.frontends.virtio_pcidev.device import Counts
from precopy.frontends.virtio_pcidev.messages import U64, ProtocolError
from precopy.frontends.virtio_pcidev.session import Session
from precopy.pci.function import PciFunction
from precopy.vfio.errors import refuse

#: UML_PCI_OVER_VIRTIO_DEVICE_ID of the lab's kernel.
VIRTIO_DEVICE_ID = 1234

#: More lines of trouble than this are not kept.
_MOST_TROUBLE = 1000

#: Seconds before another try when a connection can't be taken, for want of descriptors say.
_RETRY = 0.1

_ACK = U64.pack(0)


class Server:
    """Offers ``functions``, each at a socket in ``directory`` that is named after it.

    The sockets listen when this returns. A function serves one connection at a time; when that ends
    it is reset, as if the machine around it had been switched off, and the next may come. Raises
    OSError where it can't listen: ENAMETOOLONG, EADDRINUSE, ENOENT, and EINVAL for names that occur
    twice or that the kernel's command line can't hold.
    """

    def __init__(self, functions: Sequence[PciFunction], directory: Path) -> None:
        directory = directory.resolve()
        names = [function.name for function in functions]
        if len(set(names)) != len(names):
            raise refuse(errno.EINVAL, f"functions of the same name: {', '.join(names)}")
        #: What clients did wrong, and defects of functions: a line each, oldest first.
        self.trouble: list[str] = []
        self._endpoints: list[_Endpoint] = []
        try:
            for function in functions:
                path = directory / f"{function.name}.sock"
                self._endpoints.append(_Endpoint(function, path, self.trouble))
        except BaseException:
            self.close()
            raise
        for endpoint in self._endpoints:
            endpoint.thread.start()

    @property
    def paths(self) -> tuple[Path, ...]:
        """The sockets, in the order of the functions."""
        return tuple(endpoint.path for endpoint in self._endpoints)

    @property
    def kernel_arguments(self) -> tuple[str, ...]:
        """What makes User-Mode Linux see the functions, in slots 0, 1, ... of its PCI bus."""
        return tuple(f"virtio_uml.device={path}:{VIRTIO_DEVICE_ID}" for path in self.paths)

    @property
    def counts(self) -> Mapping[str, Counts]:
        """What has been served, by the function's name."""
        return {endpoint.function.name: endpoint.counts for endpoint in self._endpoints}

    def close(self) -> None:
        """End all connections and threads, remove the sockets; a second call does nothing."""
        for endpoint in self._endpoints:
            endpoint.stop()
        for endpoint in self._endpoints:
            endpoint.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Endpoint:
    """One function, its socket, and its thread, which is still to be started."""

    def __init__(self, function: PciFunction, path: Path, trouble: list[str]) -> None:
        self.function = function
        self.path = path
        self.counts = Counts()
        self.thread = threading.Thread(
            target=self._run, name=f"pcidev-{function.name}", daemon=True
        )
        self._trouble = trouble
        self._stopping = threading.Event()
        self._current: Connection | None = None
        self._lock = threading.Lock()
        self._listener = _listen(path)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                connected, _ = self._listener.accept()
            except OSError as error:
                if not self._stopping.wait(_RETRY):
                    self._tell(f"no connection can be taken: {error.strerror or error}")
                continue
            connection = Connection(connected)
            with self._lock:
                self._current = connection
            # After it has been made known, or stop() may have looked too early.
            if self._stopping.is_set():
                connection.cut()
            self.counts.connections += 1
            try:
                self._serve(connection)
            finally:
                with self._lock:
                    self._current = None
                connection.close()

    def _serve(self, connection: Connection) -> None:
        def fail(line: str) -> None:
            self._tell(line)
            connection.cut()

        session = None
        try:
            session = Session(self.function, self.counts, fail)
            while True:
                self._step(connection, session)
        except Gone:
            pass
        except Exception as error:
            self._tell(_line(error))
        finally:
            if session is not None:
                try:
                    session.close()
                except Exception as error:
                    self._tell(_line(error))

    def _step(self, connection: Connection, session: Session) -> None:
        """One message."""
        header, payload, fds = connection.receive()
        try:
            answer = session.carry_out(header.request, payload, fds)
        finally:
            close_all(fds)
        self.counts.requests += 1
        if answer is not None:
            connection.answer(header.request, answer)
        elif header.needs_reply:
            connection.answer(header.request, _ACK)

    def _tell(self, line: str) -> None:
        if len(self._trouble) < _MOST_TROUBLE:
            self._trouble.append(f"{self.function.name}: {line}")

    def stop(self) -> None:
        """Make the thread end soon."""
        self._stopping.set()
        with self._lock:
            if self._current is not None:
                self._current.cut()
        # Wakes who waits in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        if self.thread.ident is not None:
            self.thread.join()
        if self._listener.fileno() >= 0:
            self._listener.close()
            self.path.unlink(missing_ok=True)


def _line(error: Exception) -> str:
    """One line on what ended a connection."""
    if isinstance(error, ProtocolError):
        return str(error)
    # A function may not raise: what its author needs is the place.
    frame = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split())
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return f"defect at {place}: {type(error).__name__}: {text}"


def _listen(path: Path) -> socket.socket:
    text = str(path)
    if any(each.isspace() or each in ':"' for each in text):
        raise refuse(
            errno.EINVAL,
            f"{text}: a kernel command line can't name it, for a space, ':' or '\"' in it",
        )
    listener = socket.socket(socket.AF_UNIX)
    try:
        # Who may connect is settled before there is something to connect to.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(text)
        listener.listen(1)
    except OSError as error:
        listener.close()
        if error.errno is None:
            what = f"{text}: a socket's name has at most 107 bytes: use a shorter directory"
            raise refuse(errno.ENAMETOOLONG, what) from error
        hint = ": remove it, or use another directory" if error.errno == errno.EADDRINUSE else ""
        raise refuse(error.errno, f"can't listen at {text}{hint}") from error
    return listener
