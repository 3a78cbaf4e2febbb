"""A file that may be looked at elsewhere than where it is read."""

from typing import BinaryIO


class Elsewhere:
    """``file`` is seekable and goes on being read where it was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def size(self) -> int:
        """Bytes. OSError."""
        return self._read(0, 2, 0)[0]

    def read_at(self, offset: int, count: int) -> bytes:
        """``count`` bytes from ``offset``, or as many as there are. OSError."""
        return self._read(offset, 0, count)[1]

    def _read(self, offset: int, whence: int, count: int) -> tuple[int, bytes]:
        here = self._file.tell()
        try:
            at = self._file.seek(offset, whence)
            pieces: list[bytes] = []
            while count and (piece := self._file.read(count)):
                pieces.append(piece)
                count -= len(piece)
            return at, b"".join(pieces)
        finally:
            self._file.seek(here)


def elsewhere(file: BinaryIO) -> Elsewhere | None:
    """None where ``file`` can't be read twice: a pipe."""
    try:
        return Elsewhere(file) if file.seekable() and file.seek(0, 1) >= 0 else None
    except OSError:
        return None
