"""multifd's channels, alone and beside the main stream."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.stream.cursor import FILE_SHIFT
from precopy.stream.dissect import dissect
from tests.stream.formats import qemu_parts as q
from tests.stream.formats.test_qemu import capture, fields, names, summary, uncovered
from tests.stream.hearing import Heard, cut_at, heard, heard_in_pieces

OTHER = "0000:00:05.0/vfio"
STATE = q.MTTY
LAST = q.piece(9, q.config(), 1)

CHANNEL = q.channel(
    1,
    q.sync(),
    q.pages([0, 8192], [4096]),
    q.pages([12288]),
    q.sync(),
    q.piece(0, b"state of a device"),
    q.piece(1, q.config(), 1),
    q.sync(),
)


def together(main: bytes, *channels: bytes) -> Heard:
    """All that is said of ``main`` with ``channels`` beside it."""
    found = Heard()
    dissect(io.BytesIO(main), found, beside=[io.BytesIO(each) for each in channels])
    return found


def test_a_channel_by_itself() -> None:
    found = heard(CHANNEL)
    assert not found.wrongs
    assert not uncovered(found, len(CHANNEL))
    assert names(found) == [
        "channel",
        "sync 1",
        "pages 1",
        "sync 2",
        f"{q.DEVICE} data 0",
        f"{q.DEVICE} config 1",
        "sync 3",
    ]
    told = summary(found)
    assert (told["packets"], told["pages"], told["zero pages"], told["syncs"]) == (7, 3, 1, 3)
    assert told["RAM pc.ram"] == 3 << 12


def test_captures_of_qemu() -> None:
    """Two devices, whose last parts went over two channels."""
    main, *channels = (
        capture(f"qemu-11.1-multifd-{name}") for name in ("main", "channel-0", "channel-1")
    )
    for channel in channels:
        found = heard(channel)
        assert not found.wrongs
        assert not uncovered(found, len(channel))
        assert found.summaries[0].format == "qemu-multifd"
    found = together(main, *channels)
    assert not found.wrongs
    assert not uncovered(found, len(main))
    for device in (q.DEVICE, OTHER):
        told = summary(found, device)
        assert (told["pre-copy"], told["stop-copy"]) == (24, 72)
        assert len(found.carried[device]) == 96
        assert found.carried[device][:24] == STATE[:24]
    # Line control and modem control of the ports, as they were set in the two devices.
    assert found.carried[q.DEVICE] != found.carried[OTHER]


def test_without_its_channels_a_state_is_not_called_cut() -> None:
    main = capture("qemu-11.1-multifd-main")
    found = heard(main)
    assert not found.wrongs
    assert [item.stream for item in found.named("goes on elsewhere")] == [q.DEVICE, OTHER]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_pieces_come_in_any_order_over_any_channel(data: st.DataObject) -> None:
    rest = STATE[24:]
    places = data.draw(st.lists(st.integers(0, len(rest)), max_size=6))
    packets = [q.piece(index, part) for index, part in enumerate(cut_at(rest, places))]
    packets.append(q.piece(len(packets), q.config(), 1))
    lanes: list[list[bytes]] = [[], [], []]
    for packet in data.draw(st.permutations(packets)):
        data.draw(st.sampled_from(lanes)).append(packet)
    channels = [q.channel(number, q.sync(), *lane) for number, lane in enumerate(lanes)]
    found = together(q.main_of_multifd(STATE), *channels)
    assert not found.wrongs
    assert found.carried == {q.DEVICE: STATE}
    assert summary(found, q.DEVICE)["stop-copy"] == len(rest)


def test_where_a_piece_lies_is_told_with_the_number_of_its_file() -> None:
    channels = [q.channel(0), q.channel(1, q.piece(0, STATE[24:]), q.piece(1, q.config(), 1))]
    found = together(q.main_of_multifd(STATE), *channels)
    (port, _) = [item for item in found.items if item.name.startswith("port ")]
    assert port.file_offset >> FILE_SHIFT == 2
    assert port.file_offset & ((1 << FILE_SHIFT) - 1) == 64 + 276 + 12


@pytest.mark.parametrize(
    ("packets", "missing"),
    [
        ([q.piece(1, b"b"), q.piece(2, q.config(), 1)], "piece 0"),
        ([q.piece(0, b"a"), q.piece(2, q.config(), 1)], "piece 1"),
        ([q.piece(0, STATE[24:])], "the piece with the config"),
    ],
)
def test_a_piece_that_is_missing(packets: list[bytes], missing: str) -> None:
    found = together(q.main_of_multifd(STATE), q.channel(0, *packets))
    (wrong,) = found.wrongs
    assert wrong.expected == f"{missing} of {q.DEVICE} in a channel"


def test_a_piece_that_comes_twice() -> None:
    channels = [q.channel(0, q.piece(0, STATE[24:])), q.channel(1, q.piece(0, b"again"))]
    found = together(q.main_of_multifd(STATE), *channels)
    assert found.wrongs[0].found == "piece 0 again"
    assert found.wrongs[0].file_offset >> FILE_SHIFT == 2
    assert found.carried == {q.DEVICE: STATE}


def test_a_file_beside_that_is_no_channel() -> None:
    found = together(q.main_of_multifd(STATE), b"something else" * 9)
    (wrong,) = found.wrongs
    assert wrong.expected.startswith("a multifd channel as file 1")
    assert wrong.file_offset == 1 << FILE_SHIFT


def test_a_pipe_cannot_be_beside() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    found = Heard()
    dissect(io.BytesIO(q.main_of_multifd(STATE)), found, beside=[Pipe(q.channel(0))])
    assert "read twice" in found.wrongs[0].expected


def test_other_formats_have_nothing_beside_them() -> None:
    found = together(STATE, q.channel(0))
    assert found.wrongs[0].expected == "a format with parts in other files"


@pytest.mark.parametrize("room", [8, 32, 64, 128, 256])
def test_the_room_for_addresses_shows_by_the_next_packet(room: int) -> None:
    """Before the first pages nothing says how long a packet is."""
    found = heard(q.channel(0, q.sync(room), q.sync(room), q.pages([0], room=room), q.sync(room)))
    assert not found.wrongs
    assert summary(found)["syncs"] == 3


def test_compressed_pages_are_passed_over() -> None:
    packet = bytearray(q.pages([0, 4096]))
    packet[8:12] = q.ZLIB.to_bytes(4, "big")
    packet[20:24] = (100).to_bytes(4, "big")
    found = heard(q.channel(0, bytes(packet[: 1344 + 100]), q.sync()))
    assert not found.wrongs
    assert summary(found)["RAM pc.ram"] == 100


def test_every_page_where_it_is_wanted() -> None:
    found = heard(CHANNEL, digests=True)
    pages = [item for item in found.items if item.name.startswith("page 0x")]
    assert [item.name for item in pages] == [f"page {n:#x} of pc.ram" for n in (0, 8192, 12288)]
    assert len({item.digest for item in pages}) == 1
    assert not uncovered(found, len(CHANNEL))


def test_pieces_of_any_size_and_every_cut() -> None:
    small = q.channel(0, q.sync(8), q.pages([0], room=8)[: 320 + 64 + 4096], q.piece(0, b"x" * 40))
    by_byte = heard_in_pieces(small[n : n + 1] for n in range(len(small)))
    assert by_byte.told() == heard_in_pieces([small]).told()
    for size in range(8, len(small)):
        found = heard_in_pieces([small[:size]])
        assert not uncovered(found, size), size
        assert all(wrong.offset == size for wrong in found.wrongs), size


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(CHANNEL) - 1), st.integers(1, 255))
def test_flipped_bytes_are_damage_or_nothing(at: int, mask: int) -> None:
    spoilt = bytearray(CHANNEL)
    spoilt[at] ^= mask
    assert not uncovered(heard(bytes(spoilt)), len(spoilt))


def test_it_goes_on_at_the_next_packet() -> None:
    data = bytearray(CHANNEL)
    at = data.index(q.piece(0, b"state of a device"))
    data[at + 8] = 0xFF
    found = heard(bytes(data))
    (wrong,) = found.wrongs
    assert (wrong.offset, wrong.expected) == (at + 8, "a packet's flags")
    assert names(found)[-2:] == [f"{q.DEVICE} config 1", "sync 3"]
    assert fields(found.named("piece")[0])["index"] == 1
