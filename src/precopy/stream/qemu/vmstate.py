"""The state of a device that is none of VFIO's: bytes, with the names of its fields where they are known."""

from precopy.stream.cursor import MAX_PIECE, Steps, Stream
from precopy.stream.qemu.state import (
    FOOTER_BYTES,
    Main,
    Section,
    distance,
    footer,
    pass_over,
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
        with stream.group("state", text="not looked at"):
            yield from pass_over(stream, ending, main)
    elif size:
        yield from stream.opaque("state", size, "not looked at")


def _described(stream: Stream, main: Main, section: Section) -> Steps[bool]:
    """By the description at the stream's end; False where the two disagree."""
    assert main.description is not None
    size = main.description.size(section.name, section.instance)
    if size is None:
        return False
    if not size:
        return True
    if size > MAX_PIECE - FOOTER_BYTES:
        # Too much to be looked into; whether it is so much shows by the footer behind it.
        yield from stream.opaque("state", size, "not looked at")
        return True
    data = yield from stream.head(size + FOOTER_BYTES)
    if bytes(data[size:]) != footer(section.number):
        stream.say("remark", f"not the {size} bytes that the description tells of")
        return False
    try:
        fields = main.description.fields(section.name, section.instance, bytes(data[:size]))
    except MisfitError:
        yield from stream.opaque("state", size, "not as the description tells; not looked at")
    else:
        yield from stream.bits("state", size, fields)
    return True
