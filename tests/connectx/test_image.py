"""Images: each byte of one guarded, each claim of one checked, before any of it is loaded."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.connectx import image
from precopy.connectx.context_memory import ContextMemory, TableSpec
from precopy.connectx.image import ImageFault, Scattered
from precopy.connectx.migration import Refused
from precopy.mlx5_abi.status import Status
from tests.connectx.images import FULL, HEADER, PAGE, TABLES, Card, Image

# --- Memory in pieces -----------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    pieces=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    cut=st.integers(0, 40),
    offset=st.integers(0, 120),
    length=st.integers(0, 120),
)
def test_pieces_are_one_memory(pieces: list[int], cut: int, offset: int, length: int) -> None:
    total = sum(pieces)
    size = max(0, total - cut)
    whole = bytearray(n % 251 for n in range(total))
    parts, at = [], 0
    for piece in pieces:
        parts.append(memoryview(whole)[at : at + piece])
        at += piece
    scattered = Scattered(parts, size)
    assert scattered.size == size
    expected = bytes(whole[:size][offset : offset + length])
    assert bytes(scattered.view(offset, length)) == expected
    place = scattered.in_place(offset, length)
    if place is not None:
        assert bytes(place) == expected
    if offset + length <= size:
        data = bytes(range(100, 100 + length))
        scattered.put(offset, data)
        after = bytearray(n % 251 for n in range(total))
        after[offset : offset + length] = data
        assert whole == after


def test_one_piece_is_not_copied() -> None:
    whole = bytearray(100)
    scattered = Scattered([memoryview(whole)[:60], memoryview(whole)[60:]], 100)
    for found in (scattered.view(10, 50), scattered.in_place(10, 50)):
        assert found is not None
        found[0] = 9
        assert whole[10] == 9
        whole[10] = 0
    assert scattered.in_place(50, 20) is None


# --- Page numbers ---------------------------------------------------------------------------------


def test_ids_name_pages_by_table() -> None:
    memory = ContextMemory(TABLES)
    pages = np.array([0, 3, 4, 8])
    ids = image.to_ids(memory, pages)
    assert ids.tolist() == [0, 3, 1 << 32, 1 << 32 | 4]
    assert image.from_ids(memory, ids).tolist() == pages.tolist()
    none = np.array([], dtype=np.int64)
    assert image.from_ids(memory, image.to_ids(memory, none)).tolist() == []


def test_ids_hold_on_a_card_with_larger_tables_and_pass_over_empty_ones() -> None:
    names = ("a", "none", "b", "last")
    here = ContextMemory(dict(zip(names, map(_pages, (3, 0, 2, 0)), strict=True)))
    there = ContextMemory(dict(zip(names, map(_pages, (10, 4, 7, 1)), strict=True)))
    ids = image.to_ids(here, np.arange(5))
    assert ids.tolist() == [0, 1, 2, 2 << 32, 2 << 32 | 1]
    assert image.from_ids(there, ids).tolist() == [0, 1, 2, 14, 15]
    assert image.from_ids(here, ids).tolist() == [0, 1, 2, 3, 4]


def _pages(count: int) -> TableSpec:
    return TableSpec(4096, count)


# --- Images that are refused ----------------------------------------------------------------------


@pytest.fixture
def source() -> Card:
    card = Card()
    card.write("small", 3, 0x33)
    card.write("small", 200, 0x44)
    card.write("page", 2, 0x55)
    return card


@pytest.fixture
def full(source: Card) -> bytes:
    return source.save(incremental=False)[0]


@pytest.fixture
def target() -> Card:
    """A stopped card that holds something, which a refused image must leave as it is."""
    card = Card()
    card.write("small", 100, 0x66)
    card.write("page", 4, 0x77)
    card.stop()
    return card


def assert_refused(card: Card, data: bytes, status: Status, *syndromes: int) -> None:
    before, pages, where = card.vhca.memory.view.tobytes(), card.pages(), card.vhca.generation
    with pytest.raises(Refused) as caught:
        card.load(data)
    assert caught.value.status == status
    assert caught.value.syndrome in syndromes, f"{caught.value.syndrome:#x}: {caught.value}"
    assert str(caught.value)
    assert card.vhca.memory.view == before
    assert (card.pages(), card.vhca.generation) == (pages, where)


def test_what_a_save_writes_is_what_the_description_says(full: bytes) -> None:
    found = Image.parse(full)
    assert found.fields["magic"] == b"CXVHCA\r\n"
    assert found.fields["flags"] == FULL
    assert found.fields["sequence"] == 0
    assert found.ids == [0, 3, 1 << 32 | 2]
    assert found.pages[2] == b"\x55" * PAGE
    assert found.pack() == full
    assert len(full) == image.image_bytes(3)
    assert [image.pages_in(len(full) + more) for more in (-1, 0, 4103, 4104)] == [2, 3, 3, 4]
    assert image.pages_in(HEADER.size - 1) < 0


def test_the_whole_image_is_loaded(target: Card, source: Card, full: bytes) -> None:
    before = target.vhca.generation
    target.load(full)
    assert target.memory() == source.memory()
    assert target.pages() == source.pages()
    assert target.vhca.generation > before, "what was derived from the old slots is void"


#: Syndromes of a damaged image: no magic, length, count, checksum.
MAGIC, LENGTH, COUNT, CHECKSUM = 0x5A11, 0x5A12, 0x5A13, 0x5A14


def test_any_byte_of_it_flipped(target: Card, full: bytes) -> None:
    for at in range(len(full)):
        damaged = bytearray(full)
        damaged[at] ^= 1 << at % 8
        if at < 8:
            expected = [MAGIC]
        elif HEADER.size - 24 <= at < HEADER.size - 16:
            expected = [COUNT]
        elif HEADER.size - 16 <= at < HEADER.size - 8:
            expected = [LENGTH]
        else:
            expected = [CHECKSUM]
        if at % 64 == 0 or at < HEADER.size + 24:
            assert_refused(target, bytes(damaged), Status.BAD_PARAM, *expected)
        else:
            with pytest.raises(ImageFault) as caught:
                image.parse(Scattered([memoryview(damaged)], len(damaged)))
            assert caught.value.syndrome == CHECKSUM, at


def test_cut_at_every_offset(target: Card, full: bytes) -> None:
    for end in range(len(full)):
        expected = LENGTH if end >= HEADER.size else 0x5A10
        if end % 64 == 0 or end < HEADER.size + 2:
            assert_refused(target, full[:end], Status.BAD_PARAM, expected)
        else:
            with pytest.raises(ImageFault) as caught:
                image.parse(Scattered([memoryview(full)[:end]], end))
            assert caught.value.syndrome == expected, end


@pytest.mark.parametrize("more", [b"\0", b"x" * PAGE, b"x" * (PAGE + 8)])
def test_more_than_the_image(target: Card, full: bytes, more: bytes) -> None:
    assert_refused(target, full + more, Status.BAD_PARAM, LENGTH)


@pytest.mark.parametrize("byte", [0, 0xFF])
def test_bytes_that_are_no_image(target: Card, byte: int) -> None:
    assert_refused(target, bytes([byte]) * 8192, Status.BAD_PARAM, MAGIC)


@pytest.mark.parametrize(
    ("changes", "syndrome"),
    [
        ({"version": 2}, 0x5A21),
        ({"version": 0xFFFF}, 0x5A21),
        ({"needs": 7}, 0x5A22),
        ({"needs": 0x8000}, 0x5A22),
        ({"model": 0x101D}, 0x5A20),
        ({"model": 0}, 0x5A20),
        ({"state_pages": 1}, 0x5A23),
        ({"state_pages": (1 << 64) - 1}, 0x5A23),
        ({"session": 0}, 0x5A24),
        ({"page_count": 2}, COUNT),
        ({"page_count": 4}, COUNT),
        ({"page_count": 0}, COUNT),
        ({"page_count": (1 << 64) - 1}, COUNT),
        # Such that the product overflows 64 bits and comes out right.
        ({"page_count": 3 + (1 << 61)}, COUNT),
        ({"length": 0}, LENGTH),
        ({"length": (1 << 64) - 1}, LENGTH),
        ({"checksum": 0}, CHECKSUM),
        ({"magic": b"CXVHCA\n\n"}, MAGIC),
    ],
)
def test_a_well_formed_image_that_is_not_for_this_card(
    target: Card, full: bytes, changes: dict[str, Any], syndrome: int
) -> None:
    assert_refused(target, Image.parse(full).pack(**changes), Status.BAD_PARAM, syndrome)


@pytest.mark.parametrize(
    ("ids", "syndrome"),
    [
        ([0, 3, 3 << 32], 0x5A01),
        ([0, 3, 0xFFFFFFFF << 32], 0x5A01),
        ([0, 3, (1 << 64) - 1], 0x5A01),
        ([0, 3, 1 << 32 | 5], 0x5A02),
        ([0, 3, 4], 0x5A02),
        ([0, 3, 0xFFFFFFFF], 0x5A02),
        ([0, 3, 2 << 32], 0x5A02),
        ([3, 0, 1 << 32], 0x5A03),
        ([1 << 32, 0, 3], 0x5A03),
        ([0, 0, 3], 0x5A03),
        ([0, 3, 3], 0x5A03),
    ],
)
def test_page_numbers_that_can_not_be(
    target: Card, full: bytes, ids: list[int], syndrome: int
) -> None:
    forged = Image.parse(full)
    forged.ids = ids
    assert_refused(target, forged.pack(), Status.BAD_PARAM, syndrome)


def test_an_older_image_is_read(full: bytes) -> None:
    card = Card(image_version=3)
    card.stop()
    card.load(Image.parse(full).pack(version=2))


@pytest.mark.parametrize("lacking", ["multi_load", "tracking_state"])
def test_a_card_without_what_the_image_needs(full: bytes, lacking: str) -> None:
    without: dict[str, Any] = {lacking: False}
    card = Card(**without)
    card.stop()
    assert_refused(card, full, Status.BAD_PARAM, 0x5A22)


def test_a_card_that_works_is_not_loaded_into(full: bytes) -> None:
    card = Card()
    assert_refused(card, full, Status.BAD_RES_STATE, 0x5B30)
    card.migration.suspend(initiator=True)
    assert_refused(card, full, Status.BAD_RES_STATE, 0x5B30)
    card.migration.suspend(initiator=False)
    card.load(full)


# --- Order ----------------------------------------------------------------------------------------


def stream(source: Card) -> list[bytes]:
    """Initial, two middle and the final image."""
    images = [source.save(incremental=False)[0]]
    for number in (10, 11):
        source.write("small", number, number)
        images.append(source.save()[0])
    source.write("page", 1, 0x12)
    source.stop()
    images.append(source.save(track=False)[0])
    return images


Order = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("order", "syndrome"),
    [
        (lambda i: [i[1]], 0x5B31),
        (lambda i: [i[3]], 0x5B31),
        (lambda i: [i[0], i[2]], 0x5B32),
        (lambda i: [i[0], i[3]], 0x5B32),
        (lambda i: [i[0], i[1], i[1]], 0x5B32),
        (lambda i: [i[0], i[1], i[3]], 0x5B32),
        (lambda i: [i[0], i[1], i[2], i[1]], 0x5B32),
        (lambda i: [*i, i[3]], 0x5B31),
        (lambda i: [*i, i[1]], 0x5B31),
        (lambda i: [i[0], i[1], i[0], i[2]], 0x5B32),
        (lambda i: [Image.parse(i[0]).pack(sequence=1)], 0x5B32),
        (lambda i: [i[0], Image.parse(i[1]).pack(sequence=0)], 0x5B32),
        (lambda i: [i[0], Image.parse(i[1]).pack(sequence=0xFFFFFFFF)], 0x5B32),
        (lambda i: [i[0], Image.parse(i[1]).pack(session=99)], 0x5B31),
    ],
)
def test_images_out_of_order(target: Card, source: Card, order: Order, syndrome: int) -> None:
    *good, bad = order(stream(source))
    for data in good:
        target.load(data)
    assert_refused(target, bad, Status.BAD_RES_STATE, syndrome)


def test_images_of_two_sessions_do_not_mix(target: Card, source: Card) -> None:
    first = source.save(incremental=False)[0]
    source.write("small", 1, 1)
    old = source.save()[0]
    # A second session of the same card, with images of the same numbers.
    second = source.save(incremental=False)[0]
    source.write("small", 2, 2)
    new = source.save()[0]
    target.load(first)
    assert_refused(target, new, Status.BAD_RES_STATE, 0x5B31)
    # A full image begins again, and then the old session is over.
    target.load(second)
    assert_refused(target, old, Status.BAD_RES_STATE, 0x5B31)
    target.load(new)
    assert target.memory() == source.memory()


def test_after_a_refusal_the_right_image_is_still_taken(target: Card, source: Card) -> None:
    images = stream(source)
    for data in images:
        damaged = bytearray(data)
        damaged[-1] ^= 1
        assert_refused(target, bytes(damaged), Status.BAD_PARAM, CHECKSUM)
        target.load(data)
    assert target.memory() == source.memory()


def test_a_full_image_takes_the_place_of_all_that_was_there(target: Card, full: bytes) -> None:
    target.load(full)
    assert not any(target.vhca.table("small").slot(100))
    assert not any(target.vhca.table("page").slot(4))
    assert target.pages() == [0, 3, 6]


def test_the_image_that_ends_tracking_is_nobodys_state(target: Card, source: Card) -> None:
    source.save(incremental=False)
    count, following = source.migration.save(
        [memoryview(buffer := bytearray(PAGE))], PAGE, incremental=False, track=False
    )
    assert following == 0
    assert_refused(target, bytes(buffer[:count]), Status.BAD_PARAM, 0x5A24)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.binary(max_size=300), at=st.integers(0, 400), valid=st.booleans())
def test_arbitrary_bytes_are_refused(data: bytes, at: int, valid: bool) -> None:
    """Whatever stands in an image: it is refused, or it is what a save wrote."""
    card = Card()
    card.write("page", 0, 1)
    good = card.save(incremental=False)[0]
    target = Card()
    target.stop()
    forged = bytearray(good if valid else bytes(len(good)))
    forged[at : at + len(data)] = data
    if forged == good:
        target.load(bytes(forged))
    else:
        with pytest.raises(Refused):
            target.load(bytes(forged))
        assert target.pages() == []


def test_the_header_is_as_long_as_it_says() -> None:
    assert image.HEADER_BYTES == HEADER.size == struct.calcsize("<8sHHIQIBBHQQQQ")
