"""QEMU's main stream: captures of QEMU's own, and streams put together."""

import io
import lzma
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.stream.dissect import dissect
from precopy.stream.item import Item
from precopy.stream.place import Place
from tests.stream.formats import qemu_parts as q
from tests.stream.hearing import Heard, cut_at, heard, heard_in_pieces

DATA = Path(__file__).parents[1] / "data"


def capture(name: str) -> bytes:
    """Of QEMU 11.1.3: a machine with 1 MiB and mtty devices of the kernel's samples."""
    return lzma.decompress((DATA / f"{name}.xz").read_bytes())


@pytest.fixture(scope="module")
def of_qemu() -> bytes:
    return capture("qemu-11.1-mtty")


def names(found: Heard, depth: int = 0) -> list[str]:
    return [item.name for item in found.items if item.depth == depth and not item.stream]


def fields(item: Item) -> dict[str, object]:
    return {field.name: field.value for field in item.fields}


def summary(found: Heard, stream: str = "") -> dict[str, int]:
    (one,) = [each for each in found.summaries if each.stream == stream]
    return {**one.counts, **one.phases}


def uncovered(found: Heard, size: int) -> list[tuple[int, int]]:
    """Ranges of the file that no item tells of."""
    at, gaps = 0, []
    for item in found.items:
        if item.depth == 0 and not item.stream:
            if item.offset != at:
                gaps.append((at, item.offset))
            at = item.offset + (item.size or 0)
    return [*gaps, *([(at, size)] if at != size else [])]


# --- QEMU's own ---------------------------------------------------------------------------------


def test_a_capture_of_qemu_is_dissected_to_the_last_byte(of_qemu: bytes) -> None:
    found = heard(of_qemu)
    assert not found.wrongs
    assert not uncovered(found, len(of_qemu))
    opaque = [item.name for item in found.items if "not looked at" in item.text]
    assert not opaque
    assert names(found)[:4] == ["header", "configuration", "START ram", f"START {q.DEVICE}"]
    assert names(found)[-2:] == ["end of sections", "description"]
    assert "command SWITCHOVER_START" in names(found)


def test_the_description_gives_the_fields_of_other_devices(of_qemu: bytes) -> None:
    found = heard(of_qemu)
    (rip,) = found.named("env.eip")
    assert fields(rip) == {"value": 0xFFF0}
    (dma,) = found.named("fw_cfg/dma")
    assert "dma.dma_addr" in fields(dma)


def test_a_pipe_has_no_end_to_look_at_first(of_qemu: bytes) -> None:
    """So the devices' fields have no names, and where a section ends is found by its footer."""
    piped, found = heard_in_pieces([of_qemu]), heard(of_qemu)
    assert not piped.wrongs
    assert names(piped) == names(found)
    assert [item.size for item in piped.items if item.depth == 0] == [
        item.size for item in found.items if item.depth == 0
    ]
    assert not piped.named("env.eip")
    assert summary(piped) == summary(found)


def test_the_device_s_state_is_a_stream_of_its_own(of_qemu: bytes) -> None:
    found = heard(of_qemu)
    (device,) = [each for each in found.summaries if each.stream]
    assert (device.stream, device.format, device.bytes) == (q.DEVICE, "mtty", 96)
    told = summary(found, q.DEVICE)
    assert told["pieces of data"] == 2
    assert (told["pre-copy"], told["stop-copy"], told["config"]) == (24, 72, 4116)
    assert len(found.carried[q.DEVICE]) == 96
    # A boot ROM that does nothing leaves config space as it was at reset.
    (space,) = found.named("config space")
    assert (fields(space)["vendor"], fields(space)["device"]) == (0x4348, 0x3253)


def test_where_a_capture_is_cut_shows(of_qemu: bytes) -> None:
    for size in range(8, len(of_qemu), 3001):
        found = heard(of_qemu[:size])
        told = [wrong for wrong in found.wrongs if not wrong.stream]
        whole = size > of_qemu.rindex(b"\0\6\0") and size < len(of_qemu)
        assert told or not whole, size
        assert all(wrong.offset == size for wrong in told), size


# --- All that there is --------------------------------------------------------------------------


def test_sections_and_what_is_in_them() -> None:
    found = heard(q.stream())
    assert not found.wrongs
    assert names(found) == [
        "header",
        "configuration",
        "START ram",
        f"START {q.DEVICE}",
        "PART 1 ram",
        f"PART 1 {q.DEVICE}",
        "command SWITCHOVER_START",
        "END ram",
        f"END {q.DEVICE}",
        "FULL timer",
        f"FULL {q.DEVICE}",
        "end of sections",
        "description",
    ]
    told = summary(found)
    assert (told["pages"], told["zero pages"], told["XBZRLE pages"]) == (3, 2, 1)
    assert found.carried == {q.DEVICE: q.MTTY}
    assert [fields(item) for name in ("level", "regs") for item in found.named(name)] == [
        {"value": 7},
        {"value": bytes(range(32)).hex()},
    ]


def test_flags_of_vfio_are_named() -> None:
    found = heard(q.stream())
    for flag in ("DEV_SETUP_STATE", "DEV_DATA_STATE", "DEV_INIT_DATA_SENT", "DEV_CONFIG_STATE"):
        assert found.named(flag), flag


def test_a_description_that_tells_something_else_is_not_believed() -> None:
    devices: list[tuple[int, object]] = [(3, "uint8"), (8, "uint64"), (-1, "x"), (1 << 40, "x")]
    for size, kind in devices:
        told: dict[str, object] = {"name": "f", "type": kind, "size": size}
        wrong = q.stream(described=False) + q.description(("timer", 0, [told]))
        found = heard(wrong)
        assert not [each for each in found.wrongs if not each.stream and size > 0], size
        (timer,) = found.named("FULL timer")
        assert timer.size == len(q.full(0, "timer", q.TIMER))


def test_msix_is_told_by_its_capability() -> None:
    machine = q.header() + q.start(39, q.DEVICE, q.SETUP + q.END_OF_STATE)
    found = heard(machine + q.full(39, q.DEVICE, q.config(9)) + b"\0")
    assert not found.wrongs
    (msix,) = found.named("MSI-X")
    assert (msix.size, msix.text[:9]) == (9 * 16 + 2, "9 vectors")


def test_a_state_that_holds_what_looks_like_a_footer() -> None:
    """It is believed only where something may follow it."""
    trap = b"ab" + q.footer(9) + b"\x99" + q.footer(9) + b"\x02" + b"\0\0\0\x63" + b"tail"
    found = heard_in_pieces(
        [q.header() + q.full(9, "odd", trap) + q.full(10, "more", b"x") + b"\0"]
    )
    assert not found.wrongs
    (state, _) = found.named("state")
    assert state.size == len(trap)


def test_a_large_state_in_a_pipe() -> None:
    state = bytes(range(256)) * (3 << 13)
    found = heard_in_pieces(
        cut_at(
            q.header()
            + q.full(9, "big", state)
            + q.full(10, "more", b"x")
            + b"\0"
            + q.description(),
            range(0, 7 << 20, 65536),
        )
    )
    assert not found.wrongs
    (big,) = found.named("FULL big")
    assert big.size == len(q.full(9, "big", state))


def test_two_devices_of_one_name() -> None:
    states = [q.MTTY, q.MTTY[:24] + b"\1" * 72]
    parts = [q.header()]
    for number, state in enumerate(states):
        head = q.SETUP + q.END_OF_STATE
        parts.append(q.start(number, "vfio", head, instance=number))
        parts.append(q.end(number, q.data(state) + q.END_OF_STATE))
    found = heard(b"".join(parts) + b"\0")
    assert {name: bytes(data) for name, data in found.carried.items()} == {
        "vfio": states[0],
        "vfio#1": states[1],
    }


# --- Guest memory -------------------------------------------------------------------------------


def guest(*parts: bytes, subsections: bytes = b"", setup: bytes = b"") -> bytes:
    blocks = setup or q.mem_size({"pc.ram": 16 << 12})
    return (
        q.header(subsections=subsections)
        + q.start(2, "ram", blocks + q.eos())
        + q.part(2, b"".join(parts) + q.eos())
        + b"\0"
    )


def test_pages_are_one_item_and_at_names_the_page() -> None:
    data = guest(q.page(0, "pc.ram"), *(q.page(n << 12) for n in range(1, 9)), q.zero(9 << 12))
    found = heard(data)
    (run,) = found.named("pages of pc.ram")
    assert run.text == "9 pages, 1 zero pages, 0x0 to 0x9000"
    assert not [item for item in found.items if item.name.startswith("page ")]
    for number in range(9):
        at = data.index(q.page(number << 12, "" if number else "pc.ram"))
        place = Place(at + 100)
        dissect(io.BytesIO(data), place)
        assert f"page {number << 12:#x} of pc.ram" in [item.name for item in place.items()]


@pytest.mark.parametrize(
    ("records", "expected", "found"),
    [
        (lambda: q.zero(0), "the name of a RAM block", "the flag for the same"),
        (lambda: q.zero(0, "pc.rom"), "a RAM block of the list", "pc.rom"),
        (lambda: q.zero(16 << 12, "pc.ram"), "an address in pc.ram", "0x10000"),
        (lambda: q.zero(0, "pc.ram") + q.zero(1 << 40), "an address in pc.ram", "0x10000000000"),
        (lambda: q.record(0, 0x400, b"", "pc.ram"), "the flags of a record", "0x400"),
        (lambda: q.record(0, 0x40, b"\2\0\1a", "pc.ram"), "the encoding XBZRLE", "2"),
        (lambda: q.xbzrle(0, bytes(5000), "pc.ram"), "at most 4096 bytes", "5000"),
    ],
)
def test_damage_in_memory_is_named(records: object, expected: str, found: str) -> None:
    assert callable(records)
    told = heard(guest(records()))
    assert told.wrongs[0].expected.startswith(expected)
    assert told.wrongs[0].found.startswith(found)


def test_marks_between_pages() -> None:
    flush, hook = (0x200).to_bytes(8, "big"), (0x80).to_bytes(8, "big")
    found = heard(guest(q.zero(0, "pc.ram"), flush, hook, q.zero(4096)))
    assert not found.wrongs
    assert len(found.named("multifd flush")) == len(found.named("hook")) == 1
    assert summary(found)["zero pages"] == 2


def test_the_size_of_a_page_is_the_target_s() -> None:
    bits = b"\5" + q.text("configuration/target-page-bits") + bytes([0, 0, 0, 1, 0, 0, 0, 16])
    pages = q.page(0, "pc.ram", q.PAGE * 16), q.page(1 << 16, content=q.PAGE * 16)
    setup = q.mem_size({"pc.ram": 4 << 16})
    found = heard(guest(*pages, subsections=bits, setup=setup))
    assert not found.wrongs
    assert summary(found)["pages"] == 2


def test_a_mapped_file() -> None:
    """Its pages lie in their places, behind a bitmap, in the middle of the list of blocks."""
    head = q.header(subsections=q.capabilities("mapped-ram"))
    before = head + b"\1\0\0\0\2" + q.text("ram") + bytes(8)
    listed = (0x4000 | 4).to_bytes(8, "big") + q.text("pc.ram") + (0x4000).to_bytes(8, "big")
    bitmap_at = len(before) + len(listed) + 28
    own = b"\0\0\0\1" + b"".join(each.to_bytes(8, "big") for each in (4096, bitmap_at, 1 << 20))
    gap = bytes((1 << 20) - bitmap_at - 8)
    data = before + listed + own + b"\x05" + bytes(7) + gap + q.PAGE * 4 + q.eos() + q.footer(2)
    found = heard(data + b"\0")
    assert not found.wrongs
    (bitmap,) = found.named("bitmap")
    assert bitmap.text == "2 of 4 pages are there"
    (pages,) = found.named("pages of pc.ram")
    assert (pages.offset, pages.size) == (1 << 20, 0x4000)


def test_shared_memory_that_is_left_out_has_an_address() -> None:
    setup = q.mem_size({"pc.ram": 4096}, [(1 << 30).to_bytes(8, "big")])
    found = heard(guest(subsections=q.capabilities("x-ignore-shared"), setup=setup))
    assert not found.wrongs
    (block,) = found.named("block pc.ram")
    assert fields(block) == {"used_length": 4096, "address": 1 << 30}


# --- Pieces, cuts, damage -----------------------------------------------------------------------


SMALL = q.header() + b"".join(
    [
        q.start(2, "ram", q.mem_size({"a": 3 << 12}) + q.eos()),
        q.start(39, q.DEVICE, q.SETUP + q.END_OF_STATE),
        q.part(2, q.zero(0, "a") + q.page(4096) + q.xbzrle(8192, b"xy") + q.eos()),
        q.part(39, q.data(q.MTTY[:24]) + q.INIT_DATA_SENT),
        q.command(2, b"\0\0\0\7"),
        q.end(39, q.data(q.MTTY[24:]) + q.END_OF_STATE),
        q.full(0, "timer", q.TIMER),
        q.full(39, q.DEVICE, q.LOAD_READY),
        b"\0",
        q.description(("timer", 0, q.TIMER_FIELDS)),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, len(SMALL)), max_size=30))
def test_pieces_of_any_size_give_the_same(places: list[int]) -> None:
    assert heard_in_pieces(cut_at(SMALL, places)).told() == heard_in_pieces([SMALL]).told()


def test_byte_by_byte() -> None:
    by_byte = heard_in_pieces(SMALL[n : n + 1] for n in range(len(SMALL)))
    assert by_byte.told() == heard_in_pieces([SMALL]).told()


def test_every_cut_is_told_at_the_end() -> None:
    whole = {len(q.header())}
    for size in range(4, len(SMALL)):
        found = heard_in_pieces([SMALL[:size]])
        assert not uncovered(found, size), size
        assert all(each.offset == size for each in found.wrongs if not each.stream), size
        if not found.wrongs:
            whole.add(size)
    # Where it may end: between what it is made of.
    ends = {item.offset for item in heard(SMALL).items if item.depth == 0 and not item.stream}
    assert whole <= ends | {len(SMALL)}


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(SMALL) * 8 - 1), st.integers(1, 255))
def test_flipped_bytes_are_damage_or_nothing(bit: int, mask: int) -> None:
    spoilt = bytearray(SMALL)
    spoilt[bit // 8] ^= mask
    found = heard(bytes(spoilt))
    assert not uncovered(found, len(spoilt))


@settings(max_examples=80, deadline=None)
@given(st.binary(max_size=300))
def test_anything_behind_the_header_gets_a_verdict(rest: bytes) -> None:
    found = heard(q.header() + rest)
    assert not uncovered(found, len(q.header()) + len(rest))


def test_it_goes_on_behind_what_is_wrong() -> None:
    data = bytearray(q.stream())
    at = data.index(q.command(11))
    data[at] = 0x55
    found = heard(bytes(data))
    assert [(wrong.offset, wrong.found) for wrong in found.wrongs] == [(at, "0x55")]
    (passed,) = found.named("passed over")
    assert passed.offset == at
    assert names(found)[-3:] == [f"FULL {q.DEVICE}", "end of sections", "description"]
    assert found.carried == {q.DEVICE: q.MTTY}


def test_a_state_with_a_wrong_piece_is_not_called_cut() -> None:
    data = bytearray(q.stream())
    at = data.index(q.data(q.MTTY[24:]))
    data[at + 7] = 9
    found = heard(bytes(data))
    assert [(wrong.stream, wrong.offset) for wrong in found.wrongs] == [("", at)]
    (left,) = found.named("goes on elsewhere")
    assert (left.stream, left.text) == (q.DEVICE, "a piece of it is wrong")
    assert found.carried == {q.DEVICE: q.MTTY[:24]}


def test_what_follows_a_wrong_piece_is_not_taken_for_the_state() -> None:
    pieces = [q.part(39, q.data(bytes([number]) * 9) + q.END_OF_STATE) for number in range(3)]
    data = q.header() + q.start(39, q.DEVICE, q.SETUP + q.END_OF_STATE) + b"".join(pieces)
    data += q.full(7, "timer", q.TIMER) + b"\0" + q.description(*[("timer", 0, q.TIMER_FIELDS)] * 2)
    spoilt = bytearray(data)
    spoilt[data.index(pieces[1]) + 12] = 9
    found = heard(bytes(spoilt))
    assert len([wrong for wrong in found.wrongs if not wrong.stream]) == 1
    assert found.carried == {q.DEVICE: b"\0" * 9}
    assert found.named("state")[0].text == "behind a wrong place"


@pytest.mark.parametrize(
    ("data", "offset", "expected"),
    [
        (b"QEVM\0\0\0\2", 4, "version 3"),
        (q.header() + b"\x09", 20, "the type of a section"),
        (q.header() + q.part(77, b""), 21, "the number of a section that has begun"),
        (q.header() + q.command(77), 21, "a command, 1 to 11"),
        (q.header() + q.command(2, b"x"), 23, "4 bytes of PING"),
        (q.header() + b"\0\0", 21, "the end of the stream, or the description"),
        (q.header() + q.start(3, "a\x07", b""), 27, "a device's name"),
        (q.header() + q.full(3, "vfio", bytes(8)), 38, "a VFIO flag"),
        (q.header(subsections=b"\5" + q.text("x") + bytes(4)), 22, "a subsection of the config"),
    ],
)
def test_the_first_wrong_byte(data: bytes, offset: int, expected: str) -> None:
    wrong = heard(data).wrongs[0]
    assert (wrong.offset, wrong.expected[: len(expected)]) == (offset, expected)
