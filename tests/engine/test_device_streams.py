"""A device's state with records altered, through the whole engine: one line with the place, or it runs."""

from collections.abc import Callable

import pytest
import xxhash

from precopy.engine.channel import MAX_DATA
from precopy.engine.outcome import Failed
from precopy.engine.target import Received
from precopy.mlx5_abi.records import HEADER_SIZE, MAX_IMAGE_SIZE, RecordFlags, RecordHeader, Tag
from tests.engine.relay import Frame
from tests.engine.rig import as_before, control, data, target, works

Record = tuple[RecordHeader, bytes]
Alter = Callable[[list[Record]], list[Record]]


def records_of(conversation: list[Frame]) -> list[Record]:
    end = [frame.kind for frame in conversation].index("end")
    stream = b"".join(frame.payload for frame in conversation[:end] if frame.kind == "data")
    found, at = [], 0
    while at < len(stream):
        header = RecordHeader.parse(stream[at : at + HEADER_SIZE])
        at += HEADER_SIZE
        found.append((header, stream[at : at + header.size]))
        at += header.size
    return found


def stream_of(records: list[Record]) -> bytes:
    return b"".join(header.pack() + payload for header, payload in records)


def conversation_with(conversation: list[Frame], stream: bytes) -> list[Frame]:
    """The conversation, with ``stream`` as the device's state and an end that says so."""
    end = [frame.kind for frame in conversation].index("end")
    pieces = [stream[at : at + MAX_DATA] for at in range(0, len(stream), MAX_DATA)]
    closing = control("end", bytes=len(stream), digest=xxhash.xxh3_64_intdigest(stream))
    return [
        *conversation[:2],
        *(frame for frame in conversation[2:end] if frame.kind in ("pages", "memory")),
        *map(data, pieces),
        control("final"),
        closing,
        *conversation[end + 1 :],
    ]


def images(records: list[Record]) -> list[int]:
    """Where the images are among the records."""
    return [at for at, (header, _) in enumerate(records) if header.tag == Tag.FW_DATA]


def unknown(flags: int, payload: bytes = b"surprise", size: int | None = None) -> Record:
    return (RecordHeader(len(payload) if size is None else size, flags, 0x77), payload)


def swapped(records: list[Record]) -> list[Record]:
    one, other, *_ = images(records)
    records[one], records[other] = records[other], records[one]
    return records


def doubled(records: list[Record]) -> list[Record]:
    at = images(records)[1]
    return [*records[: at + 1], *records[at:]]


def one_missing(records: list[Record]) -> list[Record]:
    del records[images(records)[1]]
    return records


def last_missing(records: list[Record]) -> list[Record]:
    del records[images(records)[-1]]
    return records


def oversized(records: list[Record]) -> list[Record]:
    at = images(records)[1]
    records[at] = (records[at][0]._replace(size=MAX_IMAGE_SIZE + 1), records[at][1])
    return records


def longer_than_it_is(records: list[Record]) -> list[Record]:
    at = images(records)[-1]
    records[at] = (records[at][0]._replace(size=records[at][0].size + 4096), records[at][1])
    return records


def damaged(records: list[Record]) -> list[Record]:
    at = images(records)[0]
    payload = bytearray(records[at][1])
    payload[len(payload) // 2] ^= 1
    records[at] = (records[at][0], bytes(payload))
    return records


def empty_image(records: list[Record]) -> list[Record]:
    records.insert(1, (RecordHeader(0, 0, Tag.FW_DATA), b""))
    return records


def mandatory(records: list[Record]) -> list[Record]:
    return [records[0], unknown(0), *records[1:]]


def short_size(records: list[Record]) -> list[Record]:
    return [(RecordHeader(4, RecordFlags.OPTIONAL, Tag.STOP_COPY_SIZE), bytes(4)), *records]


def huge_optional(records: list[Record]) -> list[Record]:
    return [*records, unknown(RecordFlags.OPTIONAL, b"", 1 << 40)]


def nothing(records: list[Record]) -> list[Record]:
    return []


REFUSED: list[tuple[Alter, str]] = [
    (swapped, "image 0"),
    (doubled, "image 2"),
    (one_missing, "image 1"),
    (last_missing, "the state is not complete: the final image has not come"),
    (oversized, "record at offset {second} claims 4294967296 bytes"),
    (longer_than_it_is, "the state is not complete"),
    (damaged, "image 0"),
    (empty_image, "0 bytes"),
    (mandatory, "record at offset {first} has the unknown tag 0x77 and is mandatory"),
    (short_size, "record at offset 0 (STOP_COPY_SIZE) has only 4 bytes"),
    (huge_optional, "claims 1099511627776 bytes"),
    (nothing, "the state is not complete"),
]


@pytest.mark.parametrize(("alter", "text"), REFUSED, ids=lambda each: getattr(each, "__name__", ""))
def test_a_stream_that_is_refused(conversation: list[Frame], alter: Alter, text: str) -> None:
    records = records_of(conversation)
    offsets = [len(stream_of(records[:at])) for at in range(len(records))]
    place = text.format(first=offsets[1], second=offsets[images(records)[1]])
    with target() as side:
        heard = side.take(conversation_with(conversation, stream_of(alter(records))))
        assert type(side.outcome) is Failed
        line = str(side.outcome)
        assert place in line
        assert line.endswith("; nothing runs here")
        assert "\n" not in line
        assert place in heard["failed"]["reason"]
        assert as_before(side.opened)


def test_a_stream_that_is_cut_in_a_record(conversation: list[Frame]) -> None:
    stream = stream_of(records_of(conversation))
    for cut in (1, HEADER_SIZE + 3, len(stream) // 2, len(stream) - 1):
        with target() as side:
            heard = side.take(conversation_with(conversation, stream[:cut]))
            assert type(side.outcome) is Failed
            assert "the state is not complete" in str(side.outcome)
            assert "the state is not complete" in heard["failed"]["reason"]


@pytest.mark.parametrize("size", [0, 1, 8, 5 << 20])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_an_unknown_record_that_is_optional(conversation: list[Frame], size: int, at: int) -> None:
    """It is skipped, wherever it is and whatever its size, and the device runs."""
    records = records_of(conversation)
    records.insert(at % (len(records) + 1), unknown(RecordFlags.OPTIONAL, bytes(size)))
    with target() as side:
        heard = side.take(conversation_with(conversation, stream_of(records)))
        assert isinstance(side.outcome, Received)
        assert "running" in heard
        assert works(side.opened)


def test_a_stream_of_another_device(conversation: list[Frame]) -> None:
    with target() as side:
        heard = side.take(
            conversation_with(conversation, b"\x2e\x3c\x4e\x8c\x09\x9d\x9d\x7e" * 512)
        )
        assert type(side.outcome) is Failed
        assert "record at offset 0" in heard["failed"]["reason"]
