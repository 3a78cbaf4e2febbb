"""Guest memory in a stream: migration/ram.c.

A record is a big-endian word, an address with flags below the page size, and what they tell of. Pages
of one block are one item, unless whoever hears of it wants each (``--at``, ``diff``).
"""

import struct
from dataclasses import dataclass, field

from precopy.stream.cursor import Steps, Stream
from precopy.stream.layout import Layout, hexadecimal, printable, size
from precopy.stream.qemu.state import Main

ZERO, MEM_SIZE, PAGE, EOS, CONTINUE, XBZRLE, HOOK = 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80
COMPRESS, MULTIFD_FLUSH = 0x100, 0x200

#: What a word without an address can be, and what it is called.
_MARKS = {EOS: "end of section", HOOK: "hook", MULTIFD_FLUSH: "multifd flush"}

#: The kinds of a page, by the flag that says so.
_PAGES = {PAGE: "pages", ZERO: "zero pages", XBZRLE: "XBZRLE pages", COMPRESS: "compressed pages"}

#: The first byte of an XBZRLE page's header.
_XBZRLE_ENCODING = 1

#: A block's name: a length of 8 bits, then as many signs.
_MAX_NAME = 255

#: Blocks of memory; a guest has some dozens.
_MAX_BLOCKS = 4096

#: Larger pages than any target has.
MAX_PAGE = 1 << 16

_WORD = struct.Struct(">Q")
WORD = Layout(">", ("word", "Q", hexadecimal))

MAPPED = Layout(
    ">",
    ("version", "I"),
    ("page_size", "Q"),
    ("bitmap_offset", "Q", hexadecimal),
    ("pages_offset", "Q", hexadecimal),
)
_MAPPED_VERSION = 1

#: What a block's pages are aligned to in a mapped-ram file.
_MAPPED_ALIGNMENT = 1 << 20


@dataclass(slots=True)
class _Run:
    """Pages of one block, one behind the other in the stream."""

    block: str
    first: int = -1
    last: int = -1
    kinds: dict[int, int] = field(default_factory=lambda: dict.fromkeys(_PAGES, 0))

    def saw(self, kind: int, address: int) -> None:
        self.kinds[kind] += 1
        self.first = address if self.first < 0 else self.first
        self.last = address

    def __str__(self) -> str:
        told = [f"{number} {_PAGES[kind]}" for kind, number in self.kinds.items() if number]
        return f"{', '.join(told)}, {self.first:#x} to {self.last:#x}" if told else ""


@dataclass(frozen=True, slots=True)
class _Record:
    """A page's record: ``head`` bytes, ``more`` of which are its name's, then ``body`` bytes."""

    kind: int
    block: str
    address: int
    head: int
    body: int


def body(stream: Stream, main: Main) -> Steps[None]:
    """Records up to the one that ends the section. Damage."""
    runs: dict[str, int] = {}
    while True:
        (word,) = _WORD.unpack_from((yield from stream.window(8, "a record of memory")))
        flags = word & (main.page_size - 1)
        if flags in _MARKS:
            if word != flags:
                raise stream.damage(f"a mark, {flags:#x}, without an address", f"{word:#x}")
            yield from stream.struct(_MARKS[flags], WORD)
            if flags == EOS:
                return
        elif flags == MEM_SIZE:
            yield from _blocks(stream, main, word - MEM_SIZE)
        else:
            yield from _pages(stream, main, runs)


def _pages(stream: Stream, main: Main, runs: dict[str, int]) -> Steps[None]:
    """Pages of one block."""
    record = yield from _record(stream, main)
    assert record is not None
    block = main.block = record.block
    runs[block] = runs.get(block, 0) + 1
    name = f"pages of {block}" if runs[block] == 1 else f"pages of {block}, {runs[block]}"
    run, start = _Run(block), stream.offset
    with stream.group(name) as item:
        try:
            yield from _passed(stream, run, record)
            while (yield from _fast(stream, main, run)):
                record = yield from _record(stream, main)
                if record is None or record.block != block:
                    break
                yield from _passed(stream, run, record)
        finally:
            item.text = str(run)
            for kind, number in run.kinds.items():
                if number:
                    stream.count(_PAGES[kind], number)
            stream.phase(f"RAM {block}", stream.offset - start)


def _fast(stream: Stream, main: Main, run: _Run) -> Steps[bool]:
    """Pass over full pages and zero pages; whether something else stands there."""
    page, mask = main.page_size, main.page_size - 1
    limit = main.blocks.get(run.block, 1 << 64) if main.blocks else 1 << 64
    full, zero = PAGE | CONTINUE, ZERO | CONTINUE
    named = bytes([len(run.block)]) + run.block.encode("ascii")
    unpack, want = _WORD.unpack_from, 8
    while True:
        data = yield from stream.window(want, "a page")
        size, at, want = len(data), 0, 8
        if stream.wants(size):
            return True
        fulls = zeros = deltas = 0
        address, stopped = run.last, False
        while size - at >= 8:
            (word,) = unpack(data, at)
            flags = word & mask
            # The two kinds that most are, then the others.
            if flags == full:
                end = at + 8 + page
            elif flags == zero:
                end = at + 9
            else:
                head = at + 8
                if not flags & CONTINUE:
                    if data[head : head + len(named)] != named:
                        stopped = True
                        break
                    head += len(named)
                kind = flags & ~CONTINUE
                if kind == XBZRLE and head + 3 <= size and data[head] == _XBZRLE_ENCODING:
                    length = data[head + 1] << 8 | data[head + 2]
                    end = head + 3 + length
                    stopped = length > page
                else:
                    end = head + (page if kind == PAGE else 1)
                    stopped = kind != PAGE and kind != ZERO
            if stopped or word - flags >= limit:
                stopped = True
                break
            if end > size:
                want = end - at
                break
            if flags & PAGE:
                fulls += 1
            elif flags & ZERO:
                zeros += 1
            else:
                deltas += 1
            address = word - flags
            at = end
        stream.advance(at)
        run.kinds[PAGE] += fulls
        run.kinds[ZERO] += zeros
        run.kinds[XBZRLE] += deltas
        run.last = address
        if stopped:
            return True


def _record(stream: Stream, main: Main) -> Steps[_Record | None]:
    """The page's record that stands here; None for one of another kind. Damage."""
    data = yield from stream.window(8, "a record of memory")
    (word,) = _WORD.unpack_from(data)
    flags = word & (main.page_size - 1)
    kind, address = flags & ~CONTINUE, word - flags
    if flags in _MARKS or flags == MEM_SIZE:
        return None
    if kind not in _PAGES:
        raise stream.damage(
            "the flags of a record of memory", f"{flags:#x}", stream.offset + 8 - _flag_bytes(flags)
        )
    head, block = 8, main.block
    if not flags & CONTINUE:
        block = yield from _name(stream, 8)
        head = 9 + len(block)
        if main.blocks and block not in main.blocks:
            raise stream.damage(
                "a RAM block of the list", printable(block.encode()), stream.offset + 9
            )
    elif not block:
        raise stream.damage("the name of a RAM block", "the flag for the same as before")
    if address >= main.blocks.get(block, 1 << 64):
        raise stream.damage(f"an address in {block}", f"{address:#x}")
    rest = yield from _body_bytes(stream, main, kind, head)
    return _Record(kind, block, address, head, rest)


def _flag_bytes(flags: int) -> int:
    return 2 if flags > 0xFF else 1


def _body_bytes(stream: Stream, main: Main, kind: int, head: int) -> Steps[int]:
    """What follows a record's head."""
    if kind == PAGE:
        return main.page_size
    if kind == ZERO:
        return 1
    at = stream.offset + head
    if kind == XBZRLE:
        data = yield from stream.window(head + 3, "an XBZRLE page")
        if data[head] != _XBZRLE_ENCODING:
            raise stream.damage("the encoding XBZRLE, 1", str(data[head]), at)
        length, own, most = int.from_bytes(data[head + 1 : head + 3], "big"), 3, main.page_size
    else:
        data = yield from stream.window(head + 4, "a compressed page")
        length, own, most = int.from_bytes(data[head : head + 4], "big"), 4, 2 * main.page_size
    if length > most:
        raise stream.damage(f"at most {most} bytes of a page", str(length), at + own - 2)
    return own + length


def _name(stream: Stream, at: int) -> Steps[str]:
    """The name ``at`` bytes from here. Damage."""
    data = yield from stream.window(at + 1, "the name of a RAM block")
    length = data[at]
    data = yield from stream.window(at + 1 + length, "the name of a RAM block")
    found = bytes(data[at + 1 : at + 1 + length])
    for place, byte in enumerate(found):
        if not 0x20 <= byte < 0x7F:
            raise stream.damage(
                "the name of a RAM block", f"a byte {byte:#x}", stream.offset + at + 1 + place
            )
    if not found:
        raise stream.damage("the name of a RAM block", "no name", stream.offset + at)
    return found.decode("ascii")


def _passed(stream: Stream, run: _Run, record: _Record) -> Steps[None]:
    """One record; an item where it is wanted."""
    whole = record.head + record.body
    if stream.digests:
        # Only what the page is made of: where its name stands is not the same twice.
        yield from stream.window(record.head, "a page")
        stream.advance(record.head)
        name = f"page {record.address:#x} of {record.block}"
        yield from stream.opaque(name, record.body, _PAGES[record.kind].removesuffix("s"))
    elif stream.wants(whole):
        kind = _PAGES[record.kind].removesuffix("s")
        with stream.group(f"page {record.address:#x} of {record.block}", whole, kind):
            head = [("address", 0, 8, record.address, f"{record.address:#x}")]
            yield from stream.bits("record", record.head, head, kind)
            yield from stream.opaque("bytes", record.body)
    else:
        yield from stream.window(whole, "a page")
        stream.advance(whole)
    run.saw(record.kind, record.address)


# --- The list of blocks -------------------------------------------------------------------------


def _blocks(stream: Stream, main: Main, total: int) -> Steps[None]:
    """The blocks that there are; with mapped-ram their pages as well."""
    with stream.group("RAM blocks", text=f"{size(total)} of memory"):
        yield from stream.struct("total", WORD, size(total))
        left = total
        while left > 0:
            start = stream.offset
            name = yield from _name(stream, 0)
            head = 1 + len(name)
            data = yield from stream.window(head + 8, "a RAM block")
            (length,) = _WORD.unpack_from(data, head)
            if not 0 < length <= left:
                raise stream.damage(f"1 to {left} bytes of {name}", str(length), start + head)
            if len(main.blocks) >= _MAX_BLOCKS:
                raise stream.damage(f"at most {_MAX_BLOCKS} RAM blocks", "one more")
            left -= length
            main.blocks[name] = length
            fields = [("used_length", head, 8, length, f"{length}")]
            extra = 8 if "x-ignore-shared" in main.capabilities else 0
            if extra:
                data = yield from stream.window(head + 16, "a RAM block")
                (address,) = _WORD.unpack_from(data, head + 8)
                fields.append(("address", head + 8, 8, address, f"{address:#x}"))
            yield from stream.bits(f"block {name}", head + 8 + extra, fields, size(length))
            stream.count("RAM blocks")
            if "mapped-ram" in main.capabilities:
                yield from _mapped(stream, main, name, length)


def _mapped(stream: Stream, main: Main, name: str, length: int) -> Steps[None]:
    """A block of mapped-ram: its header, which pages there are, and every page in its place."""
    head = yield from stream.look(MAPPED, "the header of a mapped block")
    start = stream.offset
    if head["version"] != _MAPPED_VERSION:
        raise stream.damage(f"version {_MAPPED_VERSION}", str(head["version"]))
    page = head["page_size"]
    if page != main.page_size:
        raise stream.damage(f"pages of {main.page_size} bytes", str(page), start + 4)
    if not head["pages_offset"]:
        # Shared memory that is left out.
        yield from stream.struct("header", MAPPED)
        return
    base = head["bitmap_offset"] - start - MAPPED.size
    if main.mapped_base is None and base >= 0:
        main.mapped_base = base
    if base != main.mapped_base:
        expected = start + MAPPED.size + (main.mapped_base or 0)
        raise stream.damage(
            f"the bitmap at {expected:#x}", f"{head['bitmap_offset']:#x}", start + 12
        )
    bitmap = -(-length // page // 64) * 8
    gap = head["pages_offset"] - head["bitmap_offset"] - bitmap
    if not 0 <= gap < _MAPPED_ALIGNMENT:
        raise stream.damage("the pages behind the bitmap", f"{head['pages_offset']:#x}", start + 20)
    yield from stream.struct("header", MAPPED)
    yield from _bitmap(stream, bitmap, -(-length // page))
    if gap:
        yield from stream.opaque("gap", gap, "up to where pages may begin")
    stream.phase(f"RAM {name}", length)
    yield from stream.opaque(f"pages of {name}", length, "in their places; zero pages are holes")


def _bitmap(stream: Stream, size: int, pages: int) -> Steps[None]:
    """A bit for each page that is in the file."""
    if stream.digests:
        yield from stream.opaque("bitmap", size)
        return
    there = 0
    yield from stream.window(1, "the bitmap")
    with stream.group("bitmap", size) as item:
        while size:
            piece = yield from stream.take(min(size, 1 << 16), "the bitmap")
            there += int.from_bytes(piece, "little").bit_count()
            size -= len(piece)
        item.text = f"{there} of {pages} pages are there"
    stream.count("pages", there)
