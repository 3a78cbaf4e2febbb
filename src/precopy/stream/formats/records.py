"""Records as the streams of mlx5 and virtio have them: le64 size, le32 flags, le32 tag, then the bytes.

drivers/vfio/pci/mlx5/cmd.h (``mlx5_vf_migration_header``) and drivers/vfio/pci/virtio/common.h
(``virtiovf_migration_header``), Linux 7.3.4: the same header for both.
"""

import enum

from precopy.mlx5_abi.records import MAX_IMAGE_SIZE, RecordFlags
from precopy.stream.cursor import Stream
from precopy.stream.layout import Layout, Values, flags, named, size

#: What both drivers take in a record: more gives ENOMEM.
MAX_RECORD = MAX_IMAGE_SIZE


def header(tags: type[enum.IntEnum]) -> Layout:
    """The header of a record whose tags are ``tags``."""
    return Layout(
        "<",
        ("record_size", "Q", size),
        ("flags", "I", flags(RecordFlags)),
        ("tag", "I", named(tags)),
    )


def optional(head: Values) -> bool:
    """Whether a target passes over a record whose tag it does not know."""
    return bool(head["flags"] & RecordFlags.OPTIONAL)


def too_large(stream: Stream, head: Values) -> Exception:
    """To be raised: nobody would take a record of this size, so nobody knows where the next begins."""
    return stream.damage(f"a record of at most {MAX_RECORD} bytes", str(head["record_size"]))


def unknown_tag(stream: Stream, layout: Layout, head: Values, known: str) -> None:
    """Say that a record is not optional and has a tag that no target takes."""
    at = stream.offset + layout.offset("tag")
    expected = f"{known}, or a record that is optional (the kernel gives EOPNOTSUPP)"
    stream.tell_wrong(stream.damage(expected, f"tag {head['tag']:#x}", at))


class Phases:
    """Bytes by phase, where only the end of the stream tells which image was the last one."""

    def __init__(self) -> None:
        #: Images that have begun.
        self.images = 0
        self._mark = 0

    def image(self, stream: Stream) -> int:
        """A record with an image begins here; its number, from 1."""
        if self.images:
            stream.phase("initial" if self.images == 1 else "middle", stream.offset - self._mark)
            self._mark = stream.offset
        self.images += 1
        return self.images

    def over(self, stream: Stream, last: str) -> None:
        """The stream has ended; ``last`` is the phase of its last image."""
        if self.images:
            stream.phase(last, stream.summary.bytes - self._mark)
            self._mark = stream.summary.bytes
