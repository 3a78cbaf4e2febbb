"""A sink that keeps all it hears, and dissecting in pieces."""

import io
import itertools
from collections.abc import Iterable

from precopy.stream.cursor import Stream
from precopy.stream.dissect import dissect, run
from precopy.stream.item import Item, Silent, Summary, Wrong


class Heard(Silent):
    """What was said. :meth:`told` compares two of them, wherever in a file the streams lie."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.wrongs: list[Wrong] = []
        self.summaries: list[Summary] = []
        self.carried: dict[str, bytearray] = {}

    def begin(self, item: Item) -> None:
        self.items.append(item)

    def wrong(self, wrong: Wrong) -> None:
        self.wrongs.append(wrong)

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None:
        assert offset == len(self.carried.setdefault(stream, bytearray()))
        self.carried[stream] += data

    def over(self, summary: Summary) -> None:
        self.summaries.append(summary)

    def told(self) -> list[object]:
        return [*self.items, *self.wrongs, *self.summaries]

    def named(self, name: str) -> list[Item]:
        return [item for item in self.items if item.name == name]


def heard(data: bytes, format: str = "", digests: bool = False) -> Heard:
    """All that is said of ``data``, read as a file."""
    found = Heard()
    dissect(io.BytesIO(data), found, format, digests)
    return found


def heard_in_pieces(pieces: Iterable[bytes], format: str = "") -> Heard:
    """The same, fed in ``pieces``, each of which is gone when the next comes."""
    found = Heard()
    stream = Stream("", found, run, format)
    offset = 0
    for piece in pieces:
        lent = bytearray(piece)
        stream.feed(memoryview(lent), offset)
        offset += len(lent)
        # Whoever kept a view of it sees this.
        lent[:] = b"\xa5" * len(lent)
    stream.finish()
    return found


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    """``data`` in pieces that end at ``places``."""
    ends = sorted({min(max(place, 0), len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(ends)]
