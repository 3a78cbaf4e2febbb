"""The streams that are carried in a file, each into a file of its own."""

import re
from pathlib import Path
from typing import BinaryIO

from precopy.stream.item import Silent, Summary

#: Streams that a file may carry; more of them are not extracted.
MAX_STREAMS = 256


class Extract(Silent):
    """Writes every carried stream to ``directory``, under its name. OSError; nothing is overwritten."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files: dict[str, BinaryIO] = {}
        #: Stream and where it went.
        self.written: dict[str, Path] = {}
        #: Streams beyond the limit.
        self.left_out = 0
        directory.mkdir(parents=True, exist_ok=True)

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None:
        file = self._files.get(stream)
        if file is None:
            if len(self.written) >= MAX_STREAMS:
                return
            file = self._files[stream] = self._open(stream)
        file.write(data)

    def _open(self, stream: str) -> BinaryIO:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", stream).strip("._")[:100] or "stream"
        taken = {path.name for path in self.written.values()}
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}-{number}", number + 1
        path = self._directory / unique
        file = path.open("xb")
        self.written[stream] = path
        return file

    def over(self, summary: Summary) -> None:
        file = self._files.pop(summary.stream, None)
        if file is not None:
            file.close()
        elif summary.stream and summary.bytes and summary.stream not in self.written:
            self.left_out += 1

    def close(self) -> None:
        for file in self._files.values():
            file.close()
