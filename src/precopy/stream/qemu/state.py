"""What has been learnt of a stream so far, and where a section may end."""

from dataclasses import dataclass, field

import xxhash

from precopy.stream.cursor import MAX_PIECE, Steps, Stream
from precopy.stream.qemu.vmdesc import Description

#: Types of what follows in the main stream: migration/savevm.h.
EOF, START, PART, END, FULL, SUBSECTION, DESCRIPTION, CONFIGURATION, COMMAND = range(9)
FOOTER = 0x7E
FOOTER_BYTES = 5

KINDS = {START: "START", PART: "PART", END: "END", FULL: "FULL"}

#: The command with the highest number: migration/savevm.c.
MAX_COMMAND = 11

#: Sections that a stream may have; a machine has some dozens.
MAX_SECTIONS = 4096

#: The most that shows what follows a footer: type, section's number, length of a name, the name.
_NEXT_BYTES = 6 + 255


@dataclass(slots=True)
class Section:
    """``name``: the idstr, which is the device's path and its kind."""

    number: int
    name: str
    instance: int
    parts: int = 0

    @property
    def device(self) -> str:
        """Name and, where there is more than one, which."""
        return self.name if not self.instance else f"{self.name}#{self.instance}"


@dataclass(slots=True)
class Main:
    """Of the main stream. ``page_size``: the target's, in bytes."""

    sections: dict[int, Section] = field(default_factory=dict)
    page_size: int = 4096
    capabilities: set[str] = field(default_factory=set)
    description: Description | None = None
    #: Devices whose state it has told of.
    described: set[tuple[str, int]] = field(default_factory=set)
    #: RAM blocks and their bytes; the block of the last page; where the file begins for mapped-ram.
    blocks: dict[str, int] = field(default_factory=dict)
    block: str = ""
    mapped_base: int | None = None
    #: The states of VFIO devices, by section.
    devices: dict[int, Stream] = field(default_factory=dict)
    #: The section that one is in, and the devices with a wrong place in theirs.
    inside: int | None = None
    broken: set[int] = field(default_factory=set)
    #: Nothing but the description may follow.
    over: bool = False


def main_of(stream: Stream) -> Main:
    found = stream.memory.setdefault("qemu", Main())
    assert isinstance(found, Main)
    return found


def printable(data: bytes | memoryview) -> bool:
    return all(0x20 <= byte < 0x7F for byte in bytes(data))


def footer(number: int) -> bytes:
    return bytes([FOOTER]) + number.to_bytes(4, "big")


def likely_next(data: memoryview, main: Main) -> bool:
    """Whether ``data``, which may be cut at the stream's end, could follow a section's footer."""
    if not data:
        return True
    kind = data[0]
    if kind == EOF:
        return len(data) == 1 or data[1] == DESCRIPTION
    if kind in (PART, END):
        return len(data) < 5 or int.from_bytes(data[1:5], "big") in main.sections
    if kind in (START, FULL):
        return len(data) < 6 or (data[5] > 0 and printable(data[6 : 6 + data[5]]))
    return kind == COMMAND and (
        len(data) < 3 or 0 < int.from_bytes(data[1:3], "big") <= MAX_COMMAND
    )


def distance(
    stream: Stream, ending: bytes, main: Main, limit: int = MAX_PIECE
) -> Steps[int | None]:
    """Bytes from here to ``ending``, which a section's footer closes; None: not within ``limit``.

    A section tells nobody how long it is, so its end is where its footer stands, with something
    behind it that may follow one.
    """
    searched, want = 0, min(4096, limit)
    while True:
        data = yield from stream.head(want)
        over = len(data) < want
        whole = bytes(data)
        last = len(whole) if over else len(whole) - len(ending) - _NEXT_BYTES
        place = whole.find(ending, searched)
        while 0 <= place <= last:
            behind = place + len(ending)
            if likely_next(data[behind : behind + _NEXT_BYTES], main):
                return place
            place = whole.find(ending, place + 1)
        if over or want >= limit:
            return None
        searched, want = max(last, 0), min(want * 4, limit)


def pass_over(stream: Stream, ending: bytes, main: Main) -> Steps[str]:
    """To where ``ending`` stands, however far (see :func:`distance`); a digest if wanted. Cut."""
    digests = []
    step = MAX_PIECE - len(ending) - _NEXT_BYTES
    while True:
        size = yield from distance(stream, ending, main)
        if size is None and len((yield from stream.head(MAX_PIECE))) < MAX_PIECE:
            # Its end is not in the stream: this raises Cut.
            yield from stream.window(MAX_PIECE, "a section, and its footer")
        digests.append((yield from stream.skip(step if size is None else size, "a section")))
        if size is not None:
            return xxhash.xxh3_64_hexdigest("".join(digests).encode()) if stream.digests else ""


def unread(stream: Stream, offset: int, count: int) -> bytes | None:
    """``count`` bytes of the file, ``offset`` bytes from here; None where it can't be looked at."""
    file = stream.files[0] if stream.files else None
    return None if file is None else file.read_at(stream.file_offset() + offset, count)
