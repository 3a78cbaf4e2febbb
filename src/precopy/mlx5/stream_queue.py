"""What a saving file has to give: records and images in the order in which they were saved.

Its owner's lock guards it.
"""

from collections import deque
from dataclasses import dataclass

from precopy.mlx5.buffers import DataBuffer
from precopy.mlx5.copying import copy


@dataclass(slots=True)
class _Queued:
    """Bytes of the stream: ``view``, and the buffer that is free once they have been read."""

    view: memoryview
    buffer: DataBuffer | None
    read: int = 0


class StreamQueue:
    """Bytes that have been saved and not been read yet. True where there are any."""

    def __init__(self) -> None:
        self._queue: deque[_Queued] = deque()
        #: How far the stream has been read, and saved, in bytes.
        self.position = self.end = 0

    def __bool__(self) -> bool:
        return bool(self._queue)

    @property
    def unread(self) -> int:
        """Bytes."""
        return self.end - self.position

    def append(self, view: memoryview, buffer: DataBuffer | None = None) -> None:
        self._queue.append(_Queued(view, buffer))
        self.end += len(view)

    def read(self, target: memoryview) -> tuple[int, list[DataBuffer]]:
        """Copy what there is into ``target``: the bytes, and the buffers that are free now."""
        done, free = 0, list[DataBuffer]()
        while done < len(target) and self._queue:
            head = self._queue[0]
            count = min(len(target) - done, len(head.view) - head.read)
            copy(target[done : done + count], head.view[head.read : head.read + count])
            done += self._consume(count, free)
        return done, free

    def peek(self, limit: int) -> list[memoryview]:
        """Up to ``limit`` bytes where they lie."""
        views: list[memoryview] = []
        for queued in self._queue:
            if limit <= 0:
                break
            views.append(queued.view[queued.read : queued.read + limit])
            limit -= len(views[-1])
        return views

    def advance(self, count: int) -> list[DataBuffer]:
        """``count`` bytes have been read, or all where there are fewer; the buffers that are free now."""
        free: list[DataBuffer] = []
        while count > 0 and self._queue:
            head = self._queue[0]
            count -= self._consume(min(count, len(head.view) - head.read), free)
        return free

    def _consume(self, count: int, free: list[DataBuffer]) -> int:
        head = self._queue[0]
        head.read += count
        self.position += count
        if head.read == len(head.view):
            self._queue.popleft()
            if head.buffer is not None:
                free.append(head.buffer)
        return count

    def clear(self) -> list[DataBuffer]:
        """Forget all of it; the buffers that were in it."""
        buffers = [queued.buffer for queued in self._queue if queued.buffer is not None]
        self._queue.clear()
        return buffers
