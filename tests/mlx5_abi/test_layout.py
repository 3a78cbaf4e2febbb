"""Bit fields against an independent reading of the same bits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.mlx5_abi import commands
from precopy.mlx5_abi.layout import Field, Layout, Nested


class Inner(Layout):
    SIZE = 4
    low = Field(0x10, 0x10)


class Sample(Layout):
    SIZE = 32
    nibble = Field(0x04, 4)
    odd = Field(0x0B, 0x13)
    wide = Field(0x40, 0x40)
    across = Field(0x85, 0x36)
    inner = Nested(0xC0, Inner)


FIELDS = [Sample.nibble, Sample.odd, Sample.wide, Sample.across]


def bits(data: bytes, field: Field) -> int:
    text = "".join(f"{byte:08b}" for byte in data)
    return int(text[field.offset : field.offset + field.width], 2)


@given(st.binary(min_size=32, max_size=32), st.sampled_from(FIELDS), st.integers(min_value=0))
def test_a_field_reads_and_writes_its_own_bits_only(data: bytes, field: Field, value: int) -> None:
    view = Sample(bytearray(data))
    assert getattr(view, field.name) == bits(data, field)
    assert field.read(b"\xaa" * 3 + data, 3) == bits(data, field)
    value &= field.mask
    setattr(view, field.name, value)
    after = bytes(view)
    assert bits(after, field) == value
    hole = ~(field.mask << (256 - field.offset - field.width))
    assert int.from_bytes(after, "big") & hole == int.from_bytes(data, "big") & hole


def test_nested_structures_share_the_bytes() -> None:
    sample = Sample()
    sample.inner.low = 0xBEEF
    assert bytes(sample)[24:28] == b"\x00\x00\xbe\xef"


def test_a_value_too_large_is_refused_with_its_field() -> None:
    with pytest.raises(ValueError, match=r"Sample\.nibble has 4 bits: 0x10"):
        Sample(nibble=0x10)


def test_a_short_buffer_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 31"):
        Sample(bytes(31))


@pytest.mark.parametrize("command", commands.COMMANDS.values(), ids=lambda each: each.opcode.name)
def test_every_command_begins_as_all_do(command: commands.Command) -> None:
    inbox = command.inbox(opcode=0x1234, op_mod=0x5678)
    assert bytes(inbox)[:8].hex() == "1234000000005678"
    reply = command.outbox(status=0x12, syndrome=0x3456789A)
    assert bytes(reply)[:8].hex() == "120000003456789a"


#: Encodings worked out by hand from the bit offsets.
GOLDEN = [
    (commands.SuspendVhcaIn(opcode=0x115, op_mod=1, vhca_id=0x203), "01150000000000010000020300000000"),
    (
        commands.SaveVhcaStateIn(
            opcode=0x118, incremental=1, set_track=1, vhca_id=2, mkey=0xABCD00, size=0x12345000
        ),
        "0118000000000000" + "c0000002" + "00000000" + "0000000000000000" + "00abcd0012345000",
    ),
    (
        commands.QueryVhcaMigrationStateIn(opcode=0x117, chunk=1, vhca_id=2),
        "0117000000000000" + "4000000200000000",
    ),
    (
        commands.QueryHcaCapIn(opcode=0x100, op_mod=0x40, other_function=1, function_id=3),
        "0100000000000040" + "8000000300000000",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("inbox", "literal"), GOLDEN, ids=lambda each: type(each).__name__)
def test_encodings(inbox: Layout, literal: str) -> None:
    assert bytes(inbox).hex() == literal
