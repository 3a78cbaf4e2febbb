"""What comes before a client has the device, and what is no request."""

import contextlib
import errno
import os
import struct

import pytest

from precopy.vfio_user.messages import COMMANDS, HEADER, Command, Version
from precopy.vfio_user.version import OURS
from tests.frontends.vfio_user.fakes import FakeFace
from tests.frontends.vfio_user.rig import RawClient, Served
from tests.vfio_user.wires import open_fds, packed

VERSION = COMMANDS[Command.VERSION].request


def say(client: RawClient, text: bytes, major: int = 0) -> int:
    return client.ask_raw(Command.VERSION, VERSION.pack(Version(major, 0, text)))[0]


def test_what_is_agreed(faked: Served) -> None:
    client = faked.connect()
    assert client.negotiate() == {
        "max_msg_fds": 16,
        "max_data_xfer_size": 1 << 20,
        "max_dma_maps": 65535,
        "pgsizes": 4096,
        "write_multiple": True,
        "migration_extension": 1,
    }
    assert OURS.max_data_xfer_size == 1 << 20


def test_who_asks_for_nothing_gets_nothing(faked: Served) -> None:
    client = faked.connect()
    said = client.negotiate(write_multiple=False, migration_extension=0)
    assert "write_multiple" not in said
    assert "migration_extension" not in said
    assert "twin_socket" not in said


def test_the_twin_socket(faked: Served) -> None:
    client = faked.connect()
    said = client.negotiate(twin_socket={"supported": True})
    assert said["twin_socket"] == {"supported": True, "fd_index": 0}
    assert client.twin is not None


@pytest.mark.parametrize(
    ("text", "major", "code"),
    [
        (b"{}\0", 1, errno.ENOTSUP),
        (b"{}\0", 0xFFFF, errno.ENOTSUP),
        (b"{}", 0, errno.EINVAL),
        (b"{\0", 0, errno.EINVAL),
        (b"[1]\0", 0, errno.EINVAL),
        (b'{"capabilities": []}\0', 0, errno.EINVAL),
        (b'{"capabilities": {"max_msg_fds": "1"}}\0', 0, errno.EINVAL),
        (b'{"capabilities": {"max_msg_fds": -1}}\0', 0, errno.EINVAL),
        (b'{"capabilities": {"max_data_xfer_size": true}}\0', 0, errno.EINVAL),
        (b'{"capabilities": {"max_data_xfer_size": 3}}\0', 0, errno.EINVAL),
        (b'{"capabilities": {"twin_socket": true}}\0', 0, errno.EINVAL),
        (b'{"capabilities": {"twin_socket": {"supported": 1}}}\0', 0, errno.EINVAL),
        (b"[" * 4090 + b"\0", 0, errno.EINVAL),
        (b"{}" + b" " * 5000 + b"\0", 0, errno.EINVAL),
    ],
)
def test_versions_that_are_refused(faked: Served, text: bytes, major: int, code: int) -> None:
    """And the client may try again."""
    client = faked.connect()
    assert say(client, text, major) == code
    assert client.negotiate()


def test_a_version_without_text(faked: Served) -> None:
    assert say(faked.connect(), b"") == 0


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\0"])
def test_a_version_that_is_too_small(faked: Served, payload: bytes) -> None:
    assert faked.connect().ask_raw(Command.VERSION, payload)[0] == errno.EINVAL


def test_another_command_before_the_version(faked: Served, face: FakeFace) -> None:
    client = faked.connect()
    for command in (Command.DEVICE_GET_INFO, Command.DEVICE_RESET, 0, 99):
        assert client.ask_raw(command, bytes(16))[0] == errno.EINVAL
    assert face.log == []
    assert client.negotiate()


def test_the_version_again(client: RawClient) -> None:
    assert say(client, b"{}\0") == errno.EINVAL
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0


def test_a_second_client_has_to_wait(faked: Served) -> None:
    first, second = faked.client(), faked.connect()
    assert say(second, b"{}\0") == errno.EBUSY
    faked.leave(first)
    assert say(second, b"{}\0") == 0


def test_who_never_agrees_is_dropped(faked: Served, caplog: pytest.LogCaptureFixture) -> None:
    silent, talks = faked.connect(0.05), faked.connect(0.05)
    assert silent.ended()
    with contextlib.suppress(EOFError, ConnectionError):
        while talks.ask_raw(Command.DEVICE_RESET)[0]:
            pass
    faked.leave(silent)
    faked.leave(talks)
    assert caplog.text.count("agreed on no version within 0.05 s") == 2
    assert faked.client().ask_raw(Command.DEVICE_RESET)[0] == 0


def test_who_goes_before_it_agrees(faked: Served) -> None:
    for data in (b"", packed(1)[:7], packed(1, b"\0\0\0\0{}\0")[:20]):
        client = faked.connect()
        client.send(data)
        faked.leave(client)
    # One that does not wait for the reply.
    client = faked.connect()
    client.say_version({})
    faked.leave(client)
    assert faked.client().ask_raw(Command.DEVICE_RESET)[0] == 0


# --- Requests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [0, 14, 22, 99, 0x1234, 0xFFFF])
def test_commands_that_there_are_not(client: RawClient, command: int) -> None:
    assert client.ask_raw(command, b"some")[0] == errno.EINVAL


@pytest.mark.parametrize("command", [Command.DMA_READ, Command.DMA_WRITE])
def test_commands_of_a_servers(client: RawClient, command: Command) -> None:
    assert client.ask_raw(command, bytes(16))[0] == errno.EINVAL


@pytest.mark.parametrize("command", [command for command in Command if command > 1])
def test_payloads_that_are_too_small(client: RawClient, command: Command) -> None:
    """None at all, one that is cut, and where it has a size one that is too long."""
    request = COMMANDS[command].request
    sizes = [0, 1, request.layout.size - 1] if request.layout.size else []
    for size in sizes + ([] if request.tail else [request.layout.size + 1]):
        assert client.ask_raw(command, bytes(size))[0] == errno.EINVAL
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0


@pytest.mark.parametrize("size", [0, 4, 15, (1 << 20) + 64 + 17, 0xFFFF])
def test_sizes_that_cant_be(client: RawClient, size: int) -> None:
    """What is announced is passed over."""
    body = b"" if size < 16 else bytes(size - 16)
    client.send(HEADER.pack(7, Command.REGION_READ, size, 0, 0) + body)
    header, _, _ = client.hear()
    assert header == (7, Command.REGION_READ, 16, 0x21, errno.EINVAL)
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0


def test_replies_that_nobody_asked_for(client: RawClient) -> None:
    client.say(Command.DMA_READ, b"12345678", number=3, flags=1)
    assert client.hear()[0] == (3, Command.DMA_READ, 16, 0x21, errno.EINVAL)
    # An error is not answered: it would go on for ever.
    client.say(Command.DMA_READ, number=3, flags=0x21, error=5)
    client.say(Command.DEVICE_RESET, number=4, flags=7)
    assert client.hear()[0] == (4, Command.DEVICE_RESET, 16, 0x21, errno.EINVAL)


def test_who_wants_no_reply_gets_none(client: RawClient) -> None:
    client.say(Command.DEVICE_RESET, flags=0x10)
    client.say(99, flags=0x10)
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0


def test_several_commands_before_the_first_reply(client: RawClient, face: FakeFace) -> None:
    """In order (QEMU sends its mappings so)."""
    face.bytes_of[7][:8] = b"\1\2\3\4\5\6\7\x08"
    for number in range(8):
        client.say(Command.REGION_READ, struct.pack("=QII", number, 7, 1), number=number)
    for number in range(8):
        header, payload, _ = client.hear()
        assert (header.message_id, payload[16]) == (number, number + 1)


@pytest.mark.parametrize(
    ("command", "payload"),
    [
        (Command.DEVICE_GET_INFO, struct.pack("=IIII", 16, 0, 0, 0)),
        (Command.DEVICE_RESET, b""),
        (Command.REGION_READ, struct.pack("=QII", 0, 7, 4)),
        (Command.DMA_UNMAP, struct.pack("=IIQQ", 24, 2, 0, 0)),
        (99, b""),
        (Command.VERSION, b""),
    ],
)
def test_descriptors_of_a_bad_request_are_closed(
    client: RawClient, command: int, payload: bytes
) -> None:
    before = open_fds()
    for count in (1, 5, 16):
        assert client.ask_raw(command, payload, [0] * count)[0] == errno.EINVAL
    assert client.ask_raw(Command.DEVICE_RESET)[0] == 0
    assert open_fds() == before


def test_a_second_descriptor_of_a_mapping(client: RawClient) -> None:
    memory = os.memfd_create("memory")
    os.ftruncate(memory, 4096)
    before = open_fds()
    payload = struct.pack("=IIQQQ", 32, 3, 0, 0, 4096)
    assert client.ask_raw(Command.DMA_MAP, payload, [memory, memory])[0] == errno.EINVAL
    assert open_fds() == before
    os.close(memory)


@pytest.mark.parametrize("most", [1, 15, 16, 17, 20, 31])
def test_a_socket_that_is_dropped_in_the_middle(faked: Served, most: int) -> None:
    before = open_fds()
    client = faked.client()
    client.send(packed(Command.REGION_READ, bytes(16))[:most], [0])
    faked.leave(client)
    assert open_fds() == before
    assert faked.client().ask_raw(Command.DEVICE_RESET)[0] == 0


def test_what_is_refused_is_told_in_one_line(
    client: RawClient, caplog: pytest.LogCaptureFixture
) -> None:
    client.ask_raw(Command.REGION_READ, struct.pack("=QII", 0x200, 0, 4))
    assert caplog.messages[-1] == (
        "test: REGION_READ (message 1): region 0, 0x200+0x4: beyond its end"
    )
