"""The image of a function as the software adapter makes it: ``precopy.connectx.image``.

Of a real firmware's image nothing is known outside the firmware; this one is the project's own. Its
page ids (8 bytes for each page of 4096) are kept while its pages go by, and nothing else is.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash
from numpy.typing import NDArray

from precopy.connectx import image as adapter
from precopy.connectx import slots
from precopy.connectx.context_memory import PAGE_SIZE, TableSpec
from precopy.connectx.image import ID_BYTES, ImageFlags, Needs
from precopy.mlx5_abi.records import MAX_IMAGE_SIZE
from precopy.stream.cursor import Steps, Stream
from precopy.stream.formats.connectx_objects import OBJECTS, Tally, counted
from precopy.stream.layout import Layout, Values, flags, hexadecimal, size, text
from precopy.stream.registry import begins_with, register

HEADER = Layout(
    "<",
    ("magic", "8s", text),
    ("version", "H"),
    ("flags", "H", flags(ImageFlags)),
    ("sequence", "I"),
    ("session", "Q", hexadecimal),
    ("model", "I", hexadecimal),
    ("log_max_qp", "B"),
    ("log_max_cq", "B"),
    ("needs", "H", flags(Needs)),
    ("state_pages", "Q"),
    ("page_count", "Q"),
    ("length", "Q", size),
    ("checksum", "Q", hexadecimal),
)

#: Pages of a table that are told singly in an image, unless someone wants all of them.
MAX_PAGES = 16

#: Of the magic's eight bytes, so many make an image one of the adapter's with a wrong byte.
_NEAR = 6

_WHOLE_TABLE = 1 << 32

Ids = NDArray[np.uint64]


def behind(data: memoryview, count: int = 0) -> Values | None:
    """The image's header if one of the adapter's begins here. ``count``: bytes that it should have;
    then an image is one too whose magic is damaged, if all else agrees."""
    if len(data) < HEADER.size:
        return None
    head = HEADER.values(data)
    if head["magic"] == adapter.MAGIC:
        return head
    same = sum(one == other for one, other in zip(head["magic"], adapter.MAGIC, strict=True))
    near = same >= _NEAR and agrees(head) and head["length"] == count
    return head if near else None


def agrees(head: Values) -> bool:
    """Whether the image's length is that of its pages."""
    return bool(
        head["length"] <= MAX_IMAGE_SIZE
        and adapter.image_bytes(head["page_count"]) == head["length"]
    )


class Chain:
    """The images of one saving session follow each other."""

    def __init__(self) -> None:
        #: Whether any image was the adapter's, and whether the last one carried FINAL.
        self.known = False
        self.complete = False
        #: What the next image may have; nothing where nobody knows. One that is refused leaves open
        #: whether it was wrong itself or one before it is missing.
        self._sessions: tuple[int, ...] = ()
        self._sequences: tuple[int, ...] = ()

    def lost(self) -> None:
        """Images may be missing."""
        self._sessions = self._sequences = ()

    def fault(self, head: Values) -> tuple[str, str] | None:
        """Take the next image: the field that the firmware refuses, and what it expects there."""
        full = head["flags"] & ImageFlags.FULL
        sequences = (0,) if full else self._sequences
        sessions = () if full else self._sessions
        sequence, session = head["sequence"], head["session"]
        self.known, self.complete = True, bool(head["flags"] & ImageFlags.FINAL)
        right = sequence in sequences, session in sessions
        self._sequences = (sequence + 1, *(() if right[0] else (each + 1 for each in sequences)))
        self._sessions = (session, *(() if right[1] else sessions))
        if head["magic"] != adapter.MAGIC:
            return "magic", adapter.MAGIC.hex()
        if sequences and not right[0]:
            return "sequence", f"{sequences[-1]}, the next image of the session"
        if sessions and not right[1]:
            return "session", f"{sessions[-1]:#x}, the session of the images before"
        if head["model"] != adapter.MODEL:
            return "model", f"{adapter.MODEL:#x}"
        return None


def _wrong_size(head: Values, count: int) -> tuple[str, str] | None:
    """The field of the sizes that is wrong, for an image of ``count`` bytes."""
    if adapter.image_bytes(head["page_count"]) == count:
        return None if head["length"] == count else ("length", f"{count}, the record's size")
    if head["length"] == count:
        pages = adapter.pages_in(count)
        if adapter.image_bytes(pages) == count:
            return "page_count", f"{pages}, which make up {count} bytes"
        return "page_count", f"as many pages as make up {count} bytes"
    return "length", f"{count}, the record's size"


@register(
    "connectx", "an image of the software ConnectX, without its record", begins_with(adapter.MAGIC)
)
def dissect(stream: Stream) -> Steps[None]:
    """One image."""
    head = yield from stream.look(HEADER, "an image's header")
    if head["magic"] != adapter.MAGIC:
        raise stream.damage(f"the magic of an image, {adapter.MAGIC.hex()}", head["magic"].hex())
    stream.count("images")
    # What its pages make up, where that and its length do not agree, is as good.
    count = head["length"] if agrees(head) else adapter.image_bytes(head["page_count"])
    yield from image(stream, "image", count, Chain())


def image(stream: Stream, name: str, count: int, chain: Chain) -> Steps[None]:
    """An image of ``count`` bytes, the next of ``chain``. What is wrong in it is told, and the image
    passed over. Cut."""
    head = yield from stream.look(HEADER, "an image's header")
    start, at = stream.offset, stream.offset + HEADER.offset("checksum")
    where = stream.file_offset() + HEADER.offset("checksum")
    digest = xxhash.xxh3_64(bytes((yield from stream.window(HEADER.size, name))[: at - start]))
    wrong_size = _wrong_size(head, count)
    wrong = chain.fault(head) or wrong_size
    if wrong is not None:
        field, expected = wrong
        value = head[field].hex() if field == "magic" else str(head[field])
        told = stream.damage(f"{field} {expected}", value, start + HEADER.offset(field))
        stream.tell_wrong(told)
    kinds = flags(ImageFlags)(head["flags"]).lower() if head["flags"] else "incremental"
    told_text = f"{kinds}, sequence {head['sequence']}, {counted(head['page_count'], 'page')}"
    with stream.group(name, count, told_text):
        yield from stream.struct("header", HEADER)
        if wrong_size is not None:
            yield from stream.opaque("pages", count - HEADER.size, "nobody knows how many")
            return
        stream.count("pages", head["page_count"])
        ids, sound = yield from _page_ids(stream, head, digest)
        if sound:
            yield from _pages(stream, head, ids, digest)
        else:
            yield from stream.opaque("pages", head["page_count"] * PAGE_SIZE, "not looked at")
        found = digest.intdigest()
        if wrong is None and sound and found != head["checksum"]:
            damage = stream.damage(
                f"the image's checksum, {found:#x}", f"{head['checksum']:#x}", at
            )
            stream.tell_wrong(damage, where)


def _tables(head: Values) -> list[tuple[str, TableSpec]]:
    return list(
        slots.tables(
            head["log_max_qp"], head["log_max_cq"], head["state_pages"] * PAGE_SIZE
        ).items()
    )


def _page_ids(stream: Stream, head: Values, digest: xxhash.xxh3_64) -> Steps[tuple[Ids, bool]]:
    """The page ids, and whether they are such as the firmware takes."""
    left, last, sound = head["page_count"], -1, True
    room = np.array(
        [
            min(-(-spec.slots * spec.slot_bytes // PAGE_SIZE), _WHOLE_TABLE)
            for _, spec in _tables(head)
        ],
        dtype=np.uint64,
    )
    found: list[Ids] = []
    if not left:
        return np.empty(0, dtype=np.uint64), True
    yield from stream.more()
    with stream.group("page ids", left * ID_BYTES):
        while left:
            data = yield from stream.window(ID_BYTES, "page ids")
            count = min(len(data) // ID_BYTES, left)
            piece = data[: count * ID_BYTES]
            digest.update(piece)
            ids = np.frombuffer(piece, dtype="<u8").astype(np.uint64)
            if sound:
                bad = _first_bad(ids, last, room)
                if bad is not None:
                    sound = False
                    index, expected = bad
                    at = stream.offset + index * ID_BYTES
                    stream.tell_wrong(stream.damage(expected, f"{int(ids[index]):#x}", at))
                found.append(ids)
            last = int(ids[-1])
            left -= count
            stream.advance(len(piece))
    return np.concatenate(found), sound


def _first_bad(ids: Ids, last: int, room: Ids) -> tuple[int, str] | None:
    """Which id the firmware would refuse, and what should stand there."""
    tables = ids >> np.uint64(32)
    beyond = tables >= len(room)
    places = np.minimum(tables, np.uint64(len(room) - 1)).astype(np.int64)
    outside = (ids & np.uint64(0xFFFF_FFFF)) >= room[places]
    order = np.empty(len(ids), dtype=np.bool_)
    order[0] = int(ids[0]) <= last
    order[1:] = ids[1:] <= ids[:-1]
    bad = np.flatnonzero(beyond | outside | order)
    if not len(bad):
        return None
    index = int(bad[0])
    if beyond[index]:
        return index, f"a page of a table, 0 to {len(room) - 1}, in the upper half"
    if outside[index]:
        return index, f"one of the {int(room[places[index]])} pages of table {int(tables[index])}"
    return index, "pages in ascending order"


@dataclass(frozen=True, slots=True)
class _Run:
    """The pages of a table in an image."""

    table: str
    slot_bytes: int
    numbers: Ids


def _runs(head: Values, ids: Ids) -> Iterator[_Run]:
    specs = _tables(head)
    tables = (ids >> np.uint64(32)).astype(np.int64)
    starts = [0, *(np.flatnonzero(np.diff(tables)) + 1).tolist(), len(ids)]
    for start, end in itertools.pairwise(starts):
        name, spec = specs[int(tables[start])]
        yield _Run(name, spec.slot_bytes, ids[start:end] & np.uint64(0xFFFF_FFFF))


def _pages(stream: Stream, head: Values, ids: Ids, digest: xxhash.xxh3_64) -> Steps[None]:
    if not len(ids):
        return
    for run in _runs(head, ids):
        yield from stream.more()
        tally, told, seen = Tally(run.table, run.slot_bytes), 0, 0
        with stream.group(f"table {run.table}") as group:
            while seen < len(run.numbers):
                data = yield from stream.window(PAGE_SIZE, f"pages of table {run.table}")
                count = min(len(data) // PAGE_SIZE, len(run.numbers) - seen)
                piece = data[: count * PAGE_SIZE]
                digest.update(piece)
                tally.add(piece)
                single = min(count, max(MAX_PAGES - told, 0)) if run.table in OBJECTS else 0
                if stream.wants(len(piece)):
                    single = count
                told += single
                for number in run.numbers[seen : seen + single]:
                    yield from _page(stream, run, int(number))
                stream.advance((count - single) * PAGE_SIZE)
                seen += count
            left = len(run.numbers) - told
            group.text = f"{counted(len(run.numbers), 'page')}{tally}"
            if left and told:
                group.text += f"; {left} of them not told singly"


def _page(stream: Stream, run: _Run, number: int) -> Steps[None]:
    """One page, and the objects in it that are in use."""
    data = (yield from stream.window(PAGE_SIZE, "a page"))[:PAGE_SIZE]
    objects = OBJECTS.get(run.table)
    first = number * PAGE_SIZE // run.slot_bytes
    tally = Tally(run.table, run.slot_bytes)
    tally.add(data)
    with stream.group(f"page {run.table}[{number}]", PAGE_SIZE, f"{tally}"[2:]) as item:
        if stream.digests:
            item.digest = xxhash.xxh3_64_hexdigest(data)
        start, content = stream.offset, bytes(data) if objects is not None else b""
        if objects is not None and run.slot_bytes <= PAGE_SIZE:
            for slot in objects.in_use(content, run.slot_bytes):
                at = slot * run.slot_bytes
                stream.advance(start + at - stream.offset)
                yield from stream.bits(
                    f"{run.table} {first + slot:#x}",
                    run.slot_bytes,
                    objects.fields(content[at : at + run.slot_bytes]),
                )
        stream.advance(start + PAGE_SIZE - stream.offset)
