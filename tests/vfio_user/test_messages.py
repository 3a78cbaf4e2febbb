"""Every message of the table there and back, and the chain of a region's capabilities."""

import errno
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.vfio_user.messages import (
    CAP_HEADER,
    CAP_SPARSE_MMAP,
    COMMANDS,
    HEADER,
    MOST_FDS,
    SPARSE_HEAD,
    Command,
    Form,
    Header,
    MessageFlags,
    RegionInfoMessage,
    WireError,
    pack_sparse_areas,
    parse_sparse_areas,
)

FORMS = [
    pytest.param(getattr(spec, way), id=f"{command.name} {way}")
    for command, spec in COMMANDS.items()
    for way in ("request", "reply")
]

#: The largest value of each field that a layout has.
_MOST = {"H": 0xFFFF, "I": 0xFFFF_FFFF, "Q": (1 << 64) - 1}


def fields(form: Form) -> list[int]:
    """The largest value of each fixed field."""
    return [_MOST[letter] for letter in re.findall("[HIQ]", form.layout.format)]


@pytest.mark.parametrize("form", FORMS)
@given(data=st.data())
def test_there_and_back(form: Form, data: st.DataObject) -> None:
    fixed = [data.draw(st.integers(0, most)) for most in fields(form)]
    tail = [data.draw(st.binary(max_size=40))] if form.tail else []
    message = form.make(*fixed, *tail)
    packed = form.pack(message)
    assert len(packed) == form.layout.size + sum(map(len, tail))
    assert form.parse(memoryview(packed)) == message
    assert form.pack_fixed(message) + b"".join(tail) == packed


@pytest.mark.parametrize("form", FORMS)
def test_sizes_that_cant_be(form: Form) -> None:
    size = form.layout.size
    wrong = list(range(size)) + ([] if form.tail else [size + 1, size + 4096])
    for length in wrong:
        with pytest.raises(WireError, match=rf"{length} bytes is not .*{size}") as caught:
            form.parse(memoryview(bytes(length)))
        assert caught.value.errno == errno.EINVAL


def test_the_table_has_every_command() -> None:
    assert set(COMMANDS) == set(Command)
    by_server = {command for command, spec in COMMANDS.items() if spec.by_server}
    assert by_server == {Command.DMA_READ, Command.DMA_WRITE}
    assert {command for command, spec in COMMANDS.items() if spec.extension} == {
        command for command in Command if command >= 19
    }
    for spec in COMMANDS.values():
        assert 0 <= spec.request_fds <= MOST_FDS
        assert 0 <= spec.reply_fds <= MOST_FDS


#: Sizes in bytes of the fixed part of request and reply, as the specification's tables add up.
SIZES = {
    "VERSION": (4, 4),
    "DMA_MAP": (32, 0),
    "DMA_UNMAP": (24, 24),
    "DEVICE_GET_INFO": (16, 16),
    "DEVICE_GET_REGION_INFO": (32, 32),
    "DEVICE_GET_REGION_IO_FDS": (16, 16),
    "DEVICE_GET_IRQ_INFO": (16, 16),
    "DEVICE_SET_IRQS": (20, 0),
    "REGION_READ": (16, 16),
    "REGION_WRITE": (16, 16),
    "DMA_READ": (16, 16),
    "DMA_WRITE": (16, 16),
    "DEVICE_RESET": (0, 0),
    "REGION_WRITE_MULTI": (8, 8),
    "DEVICE_FEATURE": (8, 8),
    "MIG_DATA_READ": (8, 8),
    "MIG_DATA_WRITE": (8, 0),
    "MIG_PRECOPY_INFO": (24, 24),
    "MIG_DATA_POLL": (12, 12),
    "DEVICE_IDENTITY": (4, 4),
    "MIG_DATA_AREA": (16, 0),
    "MIG_DATA_READ_AREA": (16, 8),
    "MIG_DATA_WRITE_AREA": (16, 0),
}


def test_sizes_of_the_specification() -> None:
    found = {
        command.name: (spec.request.layout.size, spec.reply.layout.size)
        for command, spec in COMMANDS.items()
    }
    assert found == SIZES
    assert HEADER.size == 16


@pytest.mark.parametrize(
    ("flags", "reply", "wants"),
    [(0, False, True), (1, True, True), (0x10, False, False), (0x21, True, True), (2, False, True)],
)
def test_flags_of_a_header(flags: int, reply: bool, wants: bool) -> None:
    header = Header(1, 2, 16, flags, 0)
    assert (header.is_reply, header.wants_reply) == (reply, wants)
    assert int(MessageFlags.ERROR) == 0x20


# --- Areas of a region ----------------------------------------------------------------------------

BASE = 32
AREAS = st.lists(
    st.tuples(st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1)), max_size=5
).map(tuple)


def info(chain: bytes, at: int = BASE) -> RegionInfoMessage:
    return RegionInfoMessage(BASE + len(chain), 8, 0, at, 0x1000, 0, chain)


@given(AREAS)
def test_areas_there_and_back(areas: tuple[tuple[int, int], ...]) -> None:
    assert parse_sparse_areas(info(pack_sparse_areas(areas))) == areas


@given(AREAS, st.binary(max_size=24))
def test_areas_behind_another_capability(
    areas: tuple[tuple[int, int], ...], between: bytes
) -> None:
    first = CAP_HEADER.size + len(between)
    chain = CAP_HEADER.pack(3, 1, BASE + first) + between + pack_sparse_areas(areas)
    assert parse_sparse_areas(info(chain)) == areas


def test_a_chain_without_areas() -> None:
    assert parse_sparse_areas(info(b"", 0)) is None
    assert parse_sparse_areas(info(CAP_HEADER.pack(3, 1, 0))) is None


SPARSE = CAP_HEADER.pack(CAP_SPARSE_MMAP, 1, 0)


@pytest.mark.parametrize(
    ("chain", "at", "text"),
    [
        (b"", BASE, "not in its info"),
        (b"\0" * 7, BASE, "not in its info"),
        (SPARSE, BASE - 1, "not in its info"),
        (SPARSE, BASE + 1, "not in its info"),
        (SPARSE, 0xFFFF_FFFF, "not in its info"),
        (SPARSE, BASE, "cut off"),
        (SPARSE + b"\0" * 7, BASE, "cut off"),
        (SPARSE + SPARSE_HEAD.pack(1, 0), BASE, "more than came"),
        (SPARSE + SPARSE_HEAD.pack(2, 0) + b"\0" * 31, BASE, "more than came"),
        (SPARSE + SPARSE_HEAD.pack(0xFFFF_FFFF, 0), BASE, "more than came"),
        (CAP_HEADER.pack(3, 1, BASE), BASE, "in a circle"),
        (b"\0" * 8 + CAP_HEADER.pack(3, 1, BASE), BASE + 8, "in a circle"),
        (CAP_HEADER.pack(3, 1, 5000), BASE, "not in its info"),
    ],
)
def test_broken_chains(chain: bytes, at: int, text: str) -> None:
    with pytest.raises(WireError, match=text) as caught:
        parse_sparse_areas(info(chain, at))
    assert caught.value.errno == errno.EINVAL


@given(st.binary(max_size=120), st.integers(0, 200))
def test_any_chain_ends(chain: bytes, at: int) -> None:
    """Areas, none, or EINVAL: nothing else, and never for ever."""
    try:
        found = parse_sparse_areas(info(chain, at))
    except WireError as error:
        assert error.errno == errno.EINVAL
    else:
        assert found is None or len(found) * 16 <= len(chain)


def test_areas_lie_as_the_kernel_has_them() -> None:
    chain = pack_sparse_areas(((0x1000, 0x2000), (0x8000, 0x1000)))
    assert chain == struct.pack("=HHIIIQQQQ", 1, 1, 0, 2, 0, 0x1000, 0x2000, 0x8000, 0x1000)
