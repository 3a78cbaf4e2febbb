"""What QEMU sends and takes, byte by byte: its VERSION, and DMA over the socket as 10.x has it."""

import struct
from concurrent.futures import ThreadPoolExecutor

import pytest

from precopy.frontends.vfio_user.quirks import QUIRKS
from precopy.vfio_user.messages import HEADER, Command, DmaMap, DmaMapFlags, WireError
from tests.frontends.vfio_user.fakes import FakeFace
from tests.frontends.vfio_user.rig import RawClient, Served, opened_sim, served

#: Of QEMU 10.2.2 and 11.1.3, as it was recorded. A longer reply fails its start.
VERSION = (
    b'\0\0\0\0{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, '
    b'"max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, '
    b'"pgsize": 4096}, "write_multiple": true}}\0'
)
MOST_REPLY = 214

ADDRESS, SIZE = 0x10_0000, 0x1000


def _qemu(made: Served) -> RawClient:
    """QEMU, with memory that only it can reach."""
    client = made.connect()
    client.say(Command.VERSION, VERSION)
    client.hear()
    flags = DmaMapFlags.READ | DmaMapFlags.WRITE
    client.ask(Command.DMA_MAP, DmaMap(32, flags, 0, ADDRESS, SIZE))
    return client


def test_the_reply_to_qemus_version_is_no_longer_than_its_request(faked: Served) -> None:
    assert HEADER.size + len(VERSION) == MOST_REPLY
    client = faked.connect()
    client.say(Command.VERSION, VERSION)
    header, payload, fds = client.hear()
    assert (header.error, fds) == (0, [])
    assert header.size <= MOST_REPLY
    assert payload.startswith(b"\0\0\0\0{")
    assert payload.endswith(b"}\0")


def test_dma_read_as_qemu_10_answers_it(face: FakeFace) -> None:
    with (
        opened_sim(face=False).device as device,
        served(device, face, quirks=QUIRKS["qemu-10"]) as made,
        ThreadPoolExecutor(1) as pool,
    ):
        client = _qemu(made)
        reading = pool.submit(face.dma.read, ADDRESS + 8, 5)
        header, payload, _ = client.hear()
        # It refuses what is shorter than its own structure, 32 bytes in all.
        assert (header.command, header.size) == (Command.DMA_READ, 32)
        assert struct.unpack_from("=QI", payload) == (ADDRESS + 8, 5)
        answer = struct.pack("=QI5s4x", ADDRESS + 8, 5, b"bytes")
        client.say(Command.DMA_READ, answer, number=header.message_id, flags=1)
        assert reading.result(20) == b"bytes"


def test_dma_write_as_qemu_10_takes_it(face: FakeFace) -> None:
    with (
        opened_sim(face=False).device as device,
        served(device, face, quirks=QUIRKS["qemu-10"]) as made,
        ThreadPoolExecutor(1) as pool,
    ):
        client = _qemu(made)
        writing = pool.submit(face.dma.write, ADDRESS, b"bytes")
        header, payload, _ = client.hear()
        assert header.command == Command.DMA_WRITE
        # As many bytes behind its structure of 32 as the length says, though the data is before them.
        assert header.size == 32 + 5
        assert struct.unpack("=QI5s4x", payload) == (ADDRESS, 5, b"bytes")
        # Its answer is the header alone.
        client.say(Command.DMA_WRITE, number=header.message_id, flags=1)
        writing.result(20)


@pytest.mark.parametrize(
    "payload",
    [
        struct.pack("=QI5s3x", ADDRESS, 5, b"bytes"),
        struct.pack("=QI4s4x", ADDRESS, 5, b"byte"),
        struct.pack("=QI3x", ADDRESS, 5),
        struct.pack("=QI5s4x", ADDRESS + 1, 5, b"bytes"),
    ],
    ids=["padding is short", "data is short", "no data", "another address"],
)
def test_answers_that_qemu_10_would_not_give(face: FakeFace, payload: bytes) -> None:
    with (
        opened_sim(face=False).device as device,
        served(device, face, quirks=QUIRKS["qemu-10"]) as made,
        ThreadPoolExecutor(1) as pool,
    ):
        client = _qemu(made)
        reading = pool.submit(face.dma.read, ADDRESS, 5)
        header, _, _ = client.hear()
        client.say(Command.DMA_READ, payload, number=header.message_id, flags=1)
        with pytest.raises(WireError):
            reading.result(20)
