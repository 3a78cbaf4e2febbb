"""The state of a device that is none of VFIO's: bytes, with the names of its fields where they are known."""

from precopy.stream.cursor import MAX_PIECE, Steps, Stream
from precopy.stream.qemu.state import (
    FOOTER_BYTES,
    Main,
    Section,
    distance,
    footer,
    pass_over,
    unread,
)
from precopy.stream.qemu.vmdesc import MisfitError


def body(stream: Stream, main: Main, section: Section) -> Steps[None]:
    """All up to the section's footer. Cut."""
    ending = footer(section.number)
    described = main.description is not None and (yield from _described(stream, main, section))
    if described:
        return
    size = yield from distance(stream, ending, main)
    if size is None:
        with stream.group("state", text="not looked at") as item:
            item.digest = yield from pass_over(stream, ending, main)
    elif size:
        yield from stream.opaque("state", size, "not looked at")


def _described(stream: Stream, main: Main, section: Section) -> Steps[bool]:
    """By the description at the stream's end; False where the two disagree."""
    assert main.description is not None
    key = section.name, section.instance
    size = main.description.size(*key)
    # A device tells its state once; going through a long description again and again is not linear.
    if size is None or key in main.described:
        return False
    main.described.add(key)
    if not size:
        return True
    if size > MAX_PIECE - FOOTER_BYTES:
        # Too much to be looked into.
        if unread(stream, size, FOOTER_BYTES) != footer(section.number):
            return False
        yield from stream.opaque("state", size, "not looked at")
        return True
    data = yield from stream.head(size + FOOTER_BYTES)
    if bytes(data[size:]) != footer(section.number):
        stream.say("remark", f"not the {size} bytes that the description tells of")
        return False
    try:
        parts = main.description.parts(*key, bytes(data[:size]))
    except MisfitError:
        yield from stream.opaque("state", size, "not as the description tells; not looked at")
    else:
        with stream.group("state", size):
            for name, _, length, fields in parts:
                yield from stream.bits(name, length, fields)
    return True
