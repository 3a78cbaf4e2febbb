"""Records of a stream: headers, the size record, and how many there are."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.mlx5_abi.records import (
    HEADER_SIZE,
    MAX_IMAGE_SIZE,
    MAX_SAVE_SIZE,
    SIZE_RECORD_BYTES,
    RecordCounter,
    RecordFlags,
    RecordHeader,
    Tag,
    size_record,
)


def test_a_header_is_as_the_kernel_writes_it() -> None:
    """struct mlx5_vf_migration_header: le64 record_size, le32 flags, le32 tag."""
    packed = RecordHeader(0x1122334455667788, 0x99AABBCC, 0xDDEEFF00).pack()
    assert packed == bytes.fromhex("8877665544332211ccbbaa9900ffeedd")
    assert len(packed) == HEADER_SIZE == 16
    assert RecordHeader(5, RecordFlags(0), Tag.FW_DATA).pack() == b"\x05" + bytes(15)


@given(
    size=st.integers(0, (1 << 64) - 1),
    flags=st.integers(0, (1 << 32) - 1),
    tag=st.integers(0, (1 << 32) - 1),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_header_comes_back(size: int, flags: int, tag: int) -> None:
    header = RecordHeader(size, flags, tag)
    for kind in (bytes, bytearray, memoryview):
        assert RecordHeader.parse(kind(header.pack() + b"what follows")) == header


@pytest.mark.parametrize("length", range(HEADER_SIZE))
def test_less_than_a_header_is_none(length: int) -> None:
    with pytest.raises(struct.error):
        RecordHeader.parse(bytes(length))


@pytest.mark.parametrize("header", [(1 << 64, 0, 0), (0, 1 << 32, 0), (0, 0, 1 << 32), (-1, 0, 0)])
def test_what_does_not_fit_a_header_is_not_cut(header: tuple[int, int, int]) -> None:
    with pytest.raises(struct.error):
        RecordHeader(*header).pack()


def test_the_size_record_opens_every_stream() -> None:
    """Tag 1, optional, one le64: 24 bytes that the kernel's driver writes and reads."""
    record = size_record(0x0102030405060708)
    assert record == bytes.fromhex("080000000000000001000000010000000807060504030201")
    assert len(record) == SIZE_RECORD_BYTES == 24
    assert size_record((1 << 64) - 1)[-8:] == b"\xff" * 8


def test_what_a_command_can_carry() -> None:
    # SAVE_VHCA_STATE and LOAD_VHCA_STATE have 32 bits for a size; a save is made of whole pages.
    assert MAX_IMAGE_SIZE == 0xFFFFFFFF
    assert MAX_SAVE_SIZE == 0xFFFFF000


# --- Counting -------------------------------------------------------------------------------------

payloads = st.lists(st.integers(0, 50), min_size=1, max_size=12)


def stream_of(sizes: list[int]) -> tuple[bytes, list[int]]:
    """Records with payloads of ``sizes`` that look like headers, too; and where each begins."""
    stream, starts = b"", []
    for tag, size in enumerate(sizes):
        starts.append(len(stream))
        stream += RecordHeader(size, 0, tag).pack() + size_record(7)[:size].ljust(size, b"\x10")
    return stream, starts


@given(sizes=payloads, cuts=st.lists(st.integers(0, 1000), max_size=30))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_records_that_have_begun_however_the_stream_is_cut(
    sizes: list[int], cuts: list[int]
) -> None:
    stream, starts = stream_of(sizes)
    count = RecordCounter()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(edges):
        assert count(stream[start:end]) == sum(at < end for at in starts)
    assert count(b"") == len(sizes)


def test_byte_by_byte_and_at_once_are_the_same() -> None:
    stream, starts = stream_of([0, 1, 16, 17, 0, 0, 40])
    count = RecordCounter()
    for at in range(len(stream)):
        assert count(memoryview(stream)[at : at + 1]) == sum(start <= at for start in starts)
    assert RecordCounter()(bytearray(stream)) == len(starts)


def test_a_record_that_claims_more_than_there_will_ever_be_costs_nothing() -> None:
    count = RecordCounter()
    assert count(RecordHeader((1 << 64) - 1, 0, 0).pack()) == 1
    for _ in range(10):
        assert count(bytes(1 << 16)) == 1
