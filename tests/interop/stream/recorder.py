"""Stands between two QEMUs and keeps what the source says, a file for each connection."""

import socket
import threading
from pathlib import Path

_PIECE = 1 << 16


class Recorder:
    """Takes connections at ``directory``/here and hands them on to ``there``, until it is closed."""

    def __init__(self, directory: Path, there: Path) -> None:
        self.address = directory / "here"
        self._directory, self._there = directory, there
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.address))
        self._listener.listen()
        self._recorded: list[tuple[Path, threading.Thread]] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                source, _ = self._listener.accept()
            except OSError:
                return
            target = socket.socket(socket.AF_UNIX)
            target.connect(str(self._there))
            path = self._directory / f"connection-{len(self._recorded)}"
            saying = threading.Thread(target=_pump, args=(source, target, path), daemon=True)
            self._recorded.append((path, saying))
            saying.start()
            threading.Thread(target=_pump, args=(target, source, None), daemon=True).start()

    def files(self, main: bytes) -> list[Path]:
        """What the source has said, when both are gone: first the one that begins with ``main``."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        for _, saying in self._recorded:
            saying.join()
        paths = [path for path, _ in self._recorded]
        return sorted(paths, key=lambda path: not path.read_bytes().startswith(main))


def _pump(source: socket.socket, target: socket.socket, path: Path | None) -> None:
    """From one to the other until one of them is closed."""
    with open(path or "/dev/null", "wb") as file:
        try:
            while piece := source.recv(_PIECE):
                file.write(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            # The other end is gone; what it was sent until then counts.
            return
