"""mlx5: records and images, and what is in an image of the software adapter."""

import functools
import io
import struct

import pytest

from precopy.stream.dissect import dissect
from precopy.stream.place import Place
from tests.stream.formats.builders import (
    FINAL,
    FULL,
    PD,
    QP,
    image,
    mlx5,
    mlx5_images,
    qp_page,
    record,
    size_record,
)
from tests.stream.formats.own_device import precopy_stream, stopped_stream
from tests.stream.hearing import Heard, heard

DEVICE = "sim:mlx5?qps=8&log_max_qp=8&first_session=1&state=64K"
MIDDLE = 3

RECORD_BYTES = 16


@functools.cache
def own() -> bytes:
    """PRE_COPY of the project's device under a working guest."""
    return precopy_stream(DEVICE, MIDDLE)


def images_of(found: Heard) -> list[str]:
    return [item.text for item in found.items if item.name.startswith("image ")]


def fields(found: Heard, name: str) -> dict[str, str]:
    """Of the only item of that name."""
    (item,) = found.named(name)
    return {each.name: each.text for each in item.fields}


# --- The project's own device -----------------------------------------------------------------


def test_a_stream_of_the_own_device_is_whole() -> None:
    found = heard(own())
    assert found.wrongs == []
    (summary,) = found.summaries
    assert summary.format == "mlx5"
    assert summary.counts["images"] == MIDDLE + 2
    assert list(summary.phases) == ["initial", "middle", "final"]
    assert sum(summary.phases.values()) == len(own())
    assert images_of(found)[0].startswith("full, sequence 0, ")
    assert images_of(found)[-1].startswith(f"final, sequence {MIDDLE + 1}, ")


def test_its_initial_phase_is_what_initial_bytes_counted() -> None:
    """The size record, and the first image with its header."""
    first = struct.unpack_from("<Q", own(), 24)[0]
    assert heard(own()).summaries[0].phases["initial"] == 24 + RECORD_BYTES + first


def test_its_objects_are_counted_and_named() -> None:
    found = heard(stopped_stream(DEVICE))
    assert found.wrongs == []
    (table,) = found.named("table qp")
    assert table.text.endswith("16 QPs in use (16 RTS)")
    qp = fields(found, "qp 0x2")
    assert (qp["state"], qp["st"], qp["remote_qpn"]) == ("RTS", "RC", "0x3")
    assert found.named("table steering")[0].text == "16 pages"
    assert list(found.summaries[0].phases) == ["final"]


def test_a_page_of_a_table_is_found_by_its_offset() -> None:
    """Bulk state is one item, unless someone asks what is in the middle of it."""
    data = stopped_stream(DEVICE)
    assert not any(item.name.startswith("page steering") for item in heard(data).items)
    (table,) = heard(data).named("table steering")
    place = Place(table.offset + 5 * 4096 + 17)
    dissect(io.BytesIO(data), place)
    names = [item.name for item in place.items()]
    assert names == ["record 2", "image 1", "table steering", "page steering[5]"]


def test_for_a_comparison_every_page_has_a_digest() -> None:
    data = stopped_stream(DEVICE)
    pages = [
        item
        for item in heard(data, digests=True).items
        if item.name.startswith("page ") and "[" in item.name
    ]
    assert len(pages) == heard(data).summaries[0].counts["pages"]
    assert all(len(page.digest) == 16 for page in pages)


# --- Checks -----------------------------------------------------------------------------------


def wrongs(data: bytes) -> list[tuple[int, str]]:
    return [(wrong.offset, wrong.expected) for wrong in heard(data, "mlx5").wrongs]


def changed(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


#: Where the first image of the stream below begins.
AT = 24 + RECORD_BYTES
STREAM = mlx5(*mlx5_images())


@pytest.mark.parametrize(
    ("at", "flip", "named", "expected"),
    [
        (0, 0x06, 0, "8 bytes of a STOP_COPY_SIZE"),
        (0, 0x0C, 0, "8 bytes of a STOP_COPY_SIZE"),
        (24, 0x10, 24, "a record of 8272 bytes, the length of the image in it"),
        (24 + 7, 0x10, 24, "a record of 8272 bytes"),
        (24 + 12, 0x10, 24 + 12, "tag 0"),
        (24 + 12, 0x01, 24 + 12, "tag 0"),
        (AT, 0x10, AT, "magic"),
        (AT + 7, 0x10, AT, "magic"),
        (AT + 12, 0x10, AT + 12, "sequence 0"),
        (AT + 24, 0x10, AT + 24, "model 0x101e"),
        (AT + 40, 0x10, AT + 40, "page_count 2"),
        (AT + 48, 0x10, AT + 48, "length 8272"),
        (AT + 56, 0x10, AT + 56, "the image's checksum"),
        (AT + 64, 0x10, AT + 56, "the image's checksum"),
        (AT + 64 + 7, 0x10, AT + 64, "a page of a table, 0 to 8"),
        (AT + 64 + 3, 0x10, AT + 64, "one of the 128 pages of table 6"),
        (AT + 64 + 8, 0x10, AT + 64 + 8, "one of the 4 pages of table 7"),
        (AT + 64 + 12, 0x02, AT + 64 + 8, "pages in ascending order"),
        (AT + 64 + 16 + 4096, 0x10, AT + 56, "the image's checksum"),
    ],
)
def test_a_flipped_byte_is_named_once(at: int, flip: int, named: int, expected: str) -> None:
    ((offset, told),) = wrongs(changed(STREAM, at, bytes([STREAM[at] ^ flip])))
    assert offset == named
    assert told.startswith(expected)


def test_what_no_check_covers_is_not_wrong() -> None:
    """What was expected of the final image is only an announcement."""
    assert wrongs(changed(STREAM, RECORD_BYTES, b"\xff")) == []


def test_an_image_that_is_missing_is_named() -> None:
    initial, _, final = mlx5_images()
    data = mlx5(initial, final)
    at = len(mlx5(initial)) + RECORD_BYTES + 12
    assert wrongs(data) == [(at, "sequence 1, the next image of the session")]


def test_an_image_of_another_session_is_named() -> None:
    initial, middle, _ = mlx5_images()
    stranger = image({(QP, 1): qp_page(1)}, flags=FINAL, sequence=2, session=5)
    at = len(mlx5(initial, middle)) + RECORD_BYTES + 16
    assert wrongs(mlx5(initial, middle, stranger)) == [
        (at, "session 0x9, the session of the images before")
    ]


def test_without_the_final_image_the_state_is_not_whole() -> None:
    initial, middle, _ = mlx5_images()
    data = mlx5(initial, middle)
    assert wrongs(data) == [(len(data), "the final image")]
    assert list(heard(data).summaries[0].phases) == ["initial", "middle"]


def test_a_size_record_alone_is_no_state() -> None:
    assert wrongs(size_record(1)) == [(24, "a record with an image (tag 0)")]


# --- Tags -------------------------------------------------------------------------------------


def test_an_unknown_optional_record_is_passed_over() -> None:
    initial, middle, final = map(record, mlx5_images())
    data = size_record(1) + initial + record(b"new", 1, 7) + middle + final
    found = heard(data)
    assert found.wrongs == []
    assert found.named("record 3")[0].text == "optional"


def test_an_unknown_mandatory_record_is_what_the_kernel_refuses() -> None:
    initial, middle, final = map(record, mlx5_images())
    before = size_record(1) + initial
    found = heard(before + record(b"new", 0, 7) + middle + final)
    ((offset, expected),) = [(wrong.offset, wrong.expected) for wrong in found.wrongs]
    assert offset == len(before) + 12
    assert "EOPNOTSUPP" in expected
    assert found.summaries[0].counts["images"] == 3


def test_a_record_that_nobody_takes_is_named_and_the_next_is_found() -> None:
    initial, middle, final = map(record, mlx5_images())
    before = size_record(1) + initial
    garbage = struct.pack("<QII", 1 << 32, 0, 0) + b"garbage" * 100
    found = heard(before + garbage + middle + final)
    assert [wrong.offset for wrong in found.wrongs] == [len(before)]
    assert found.summaries[0].counts["images"] == 3
    (passed,) = found.named("passed over")
    assert (passed.offset, passed.size) == (len(before), len(garbage))


def test_zeroes_are_no_images() -> None:
    """A part of a stream that was lost to zeroes is passed over at once."""
    initial, middle, final = map(record, mlx5_images())
    before = size_record(1) + initial
    found = heard(before + bytes(1 << 20) + middle + final)
    assert [(each.offset, each.found) for each in found.wrongs] == [(len(before), "no bytes")]
    assert found.named("passed over")[0].size == 1 << 20
    assert found.summaries[0].counts["images"] == 3


# --- Whose stream it is -----------------------------------------------------------------------


def test_the_image_of_a_real_firmware_is_opaque() -> None:
    data = size_record(9) + record(b"firmware" * 9) + record(b"more") + record(b"last")
    found = heard(data)
    assert found.wrongs == []
    assert images_of(found) == [
        "initial, or all there is if it is the only one; opaque, the firmware's own",
        "middle, or final if it is the last; opaque, the firmware's own",
        "middle, or final if it is the last; opaque, the firmware's own",
    ]
    assert found.summaries[0].phases == {"initial": 24 + 88, "middle": 20, "final": 20}
    assert not found.named("a guess")


def test_what_could_be_virtio_s_as_well_is_said_to_be_a_guess() -> None:
    found = heard(record(b"whoever's"))
    assert found.summaries[0].format == "mlx5"
    assert found.named("a guess")


def test_an_image_without_its_record_is_a_stream_of_its_own() -> None:
    found = heard(mlx5_images()[0])
    assert found.summaries[0].format == "connectx"
    assert found.wrongs == []
    assert found.named("qp 0x3")


# --- Much of it -------------------------------------------------------------------------------


def test_items_of_a_large_image_are_bounded() -> None:
    """Of a table with many pages some are told singly, the rest is counted."""
    pages = {(QP, number): qp_page(3, number % 2) for number in range(100)}
    found = heard(mlx5(image({(PD, 0): bytes(4096), **pages}, flags=FULL | FINAL)))
    assert found.wrongs == []
    (table,) = found.named("table qp")
    assert (
        table.text
        == "100 pages, 200 QPs in use (100 RTS, 50 RST, 50 INIT); 84 of them not told singly"
    )
    assert len([item for item in found.items if item.name.startswith("page qp")]) == 16
