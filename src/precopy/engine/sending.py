"""What the source sends: images of the device, and pages of the guest's memory, counted and timed."""

import errno
import time
from collections.abc import Callable

from precopy.engine.channel import MAX_DATA, Channel
from precopy.engine.memory import MemorySource
from precopy.engine.outcome import Failed
from precopy.engine.report import Image, Report
from precopy.engine.timeline import Notes
from precopy.vfio.device import Buffer, MigrationFile

#: Made for each image: counts the records in it.
RecordCounters = Callable[[], Callable[[Buffer], int]]


class Sending:
    """``check`` is called between two pieces, and raises what is to end it; ``tell`` tells a phase."""

    def __init__(
        self,
        channel: Channel,
        report: Report,
        notes: Notes | None,
        count_records: RecordCounters | None,
        check: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self._channel, self._report, self._notes = channel, report, notes
        self._count_records, self._check, self._tell = count_records, check, tell
        self._buffer = memoryview(bytearray(MAX_DATA))
        #: Bytes sent, and seconds that sending took.
        self.sent, self._seconds = 0, 0.0

    @property
    def bandwidth(self) -> float:
        """Bytes a second; 0 before any were sent."""
        return self.sent / self._seconds if self._seconds else 0.0

    def image(self, file: MigrationFile, image: Image, phase: str) -> int:
        """Send what there is to read now; the bytes sent. It is reported where there were any. Failed."""
        counter = self._count_records() if self._count_records else None
        began = time.monotonic()
        while piece := self._read(file, image.kind):
            if counter is not None:
                counter(piece)
            self._send(piece, image.kind)
            image.bytes += len(piece)
            self._tell(phase)
        image.seconds = time.monotonic() - began
        if counter is not None:
            image.records = counter(b"")
        if image.bytes:
            self._report.images.append(image)
            if self._notes is not None:
                self._notes.span(
                    "images", image.kind, began, began + image.seconds, bytes=image.bytes
                )
        return image.bytes

    def _read(self, file: MigrationFile, image: str) -> memoryview:
        """The next piece; empty at the end, be it temporary."""
        self._check()
        began = time.monotonic() if self._notes is not None else 0.0
        try:
            count = file.readinto(self._buffer)
        except OSError as error:
            if error.errno == errno.ENOMSG:
                return self._buffer[:0]
            raise Failed(f"the device's state can't be read: {error.strerror}") from error
        if count and self._notes is not None:
            self._notes.span("read", image, began, time.monotonic(), bytes=count)
        return self._buffer[:count]

    def _send(self, piece: memoryview, image: str) -> None:
        began = time.monotonic()
        self._channel.send_data(piece)
        ended = time.monotonic()
        self._seconds += ended - began
        self.sent += len(piece)
        if self._notes is not None:
            self._notes.span("sent", image, began, ended, bytes=len(piece))

    def memory(self, memory: MemorySource, phase: str) -> int:
        """Send what has been written; the bytes of its pages."""
        self._tell(phase)
        before, seconds = self._channel.bytes_sent, memory.sending_seconds
        began = time.monotonic()
        moved = memory.send()
        if self._notes is not None:
            self._notes.span("memory", phase, began, time.monotonic(), bytes=moved)
            self._notes.count("memory_bytes", memory.remaining_bytes)
        self.sent += self._channel.bytes_sent - before
        self._seconds += memory.sending_seconds - seconds
        self._tell(phase)
        return moved
