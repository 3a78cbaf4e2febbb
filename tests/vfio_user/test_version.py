"""What two peers agree on, and texts on which nobody can."""

import errno
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.vfio_user.messages import Version, WireError
from precopy.vfio_user.version import MOST_TEXT, OURS, Capabilities, agree, pack, parse


def said(capabilities: Any, **more: Any) -> Version:
    return Version(0, 0, json.dumps({"capabilities": capabilities, **more}).encode() + b"\0")


@given(
    st.builds(
        Capabilities,
        max_msg_fds=st.integers(0, 1 << 16),
        max_data_xfer_size=st.integers(0, (1 << 64) - 1),
        max_dma_maps=st.integers(0, (1 << 64) - 1),
        pgsizes=st.integers(0, (1 << 64) - 1),
        write_multiple=st.booleans(),
        twin_socket=st.just(True),
        fd_index=st.none() | st.integers(0, 15),
        extension=st.integers(0, 100),
    )
)
def test_there_and_back(capabilities: Capabilities) -> None:
    assert parse(pack(capabilities)) == capabilities


@pytest.mark.parametrize("text", [b"", b"{}\0", b"{}\0\0\0", b'{"capabilities": {}}\0'])
def test_what_is_not_said_is_the_protocols(text: bytes) -> None:
    assert parse(Version(0, 0, text)) == Capabilities(1, 1 << 20, 65535, 4096)
    assert parse(Version(0, 7, text)) == Capabilities()


@pytest.mark.parametrize("major", [1, 2, 0xFFFF])
def test_another_major(major: int) -> None:
    with pytest.raises(WireError, match=f"version {major}.3; we speak 0.x") as caught:
        parse(Version(major, 3, b"{}\0"))
    assert caught.value.errno == errno.ENOTSUP


WRONG = [
    b"\0",
    b"\0\0",
    b"{}",
    b"{\0",
    b"{'capabilities': 1}\0",
    b'{"capabilities": \0',
    b"[]\0",
    b"null\0",
    b"7\0",
    b'"capabilities"\0',
    b"{}{}\0",
    b"{}\0{}\0",
    b"\xff\xfe{\0",
    b"\xff\0",
    b"[" * 4000 + b"\0",
    b'{"a":' * 800 + b"\0",
    b"{}" + b" " * MOST_TEXT + b"\0",
    b"{}" + b"\0" * MOST_TEXT,
]


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_text_that_is_no_version(text: bytes) -> None:
    with pytest.raises(WireError, match="the version's text") as caught:
        parse(Version(0, 0, text))
    assert caught.value.errno == errno.EINVAL
    assert "\n" not in str(caught.value)


def test_the_longest_text() -> None:
    assert parse(Version(0, 0, b"{}" + b" " * (MOST_TEXT - 3) + b"\0")) == Capabilities()


NUMBERS = ("max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "migration_extension")
NO_NUMBER: list[Any] = ["1", 1.0, 1.5, True, False, None, [], {}, -1, 1 << 64]
NO_SWITCH: list[Any] = ["true", 1, 0, None, [], {}]


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", NO_NUMBER, ids=str)
def test_no_number(key: str, value: Any) -> None:
    with pytest.raises(WireError, match=f"{key} is no number") as caught:
        parse(said({key: value}))
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("value", NO_SWITCH, ids=str)
def test_no_switch(value: Any) -> None:
    with pytest.raises(WireError, match="write_multiple is neither"):
        parse(said({"write_multiple": value}))
    with pytest.raises(WireError, match="supported is neither"):
        parse(said({"twin_socket": {"supported": value}}))


@pytest.mark.parametrize("value", [1, "x", None, [], True], ids=str)
def test_no_object(value: Any) -> None:
    for version in (said(value), said({"twin_socket": value})):
        with pytest.raises(WireError, match="is no JSON object"):
            parse(version)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists))
def test_keys_that_nobody_knows_are_passed_over(value: Any) -> None:
    version = said({"no_such": value, "pgsizes": 4096}, capability=value)
    if len(version.text) <= MOST_TEXT:
        assert parse(version) == Capabilities()


@given(st.binary(max_size=64))
def test_any_text(text: bytes) -> None:
    try:
        parse(Version(0, 0, text))
    except WireError as error:
        assert error.errno == errno.EINVAL


# --- Agreement ------------------------------------------------------------------------------------


def test_the_most_that_both_can_do() -> None:
    theirs = Capabilities(
        max_msg_fds=3, max_data_xfer_size=5000, max_dma_maps=9, extension=7, twin_socket=True
    )
    agreed = agree(theirs)
    assert agreed == replace(
        OURS,
        max_msg_fds=3,
        max_data_xfer_size=5000,
        max_dma_maps=9,
        write_multiple=False,
        extension=1,
    )
    assert not agree(Capabilities()).extension
    assert not agree(Capabilities(twin_socket=True), replace(OURS, twin_socket=False)).twin_socket


def test_extremes() -> None:
    most = (1 << 64) - 1
    agreed = agree(Capabilities(most, most, most, most, True, True, most, most))
    assert (agreed.max_msg_fds, agreed.max_data_xfer_size) == (16, 1 << 20)
    assert (agreed.max_dma_maps, agreed.extension) == (65535, 1)
    assert agree(Capabilities(max_data_xfer_size=8)).max_data_xfer_size == 8
    for few in (0, 7):
        with pytest.raises(WireError, match="too few") as caught:
            agree(Capabilities(max_data_xfer_size=few))
        assert caught.value.errno == errno.EINVAL


QEMU = {
    "pgsizes": 4096,
    "max_msg_fds": 16,
    "max_dma_maps": 65535,
    "max_data_xfer_size": 1048576,
    "migration": {"max_bitmap_size": 268435456, "pgsize": 4096},
    "write_multiple": True,
}


def test_qemus_version_is_answered_with_no_more_than_it_takes() -> None:
    """QEMU (10.2) fails where the reply's text has more than 194 bytes."""
    agreed = agree(parse(said(QEMU)))
    assert (agreed.extension, agreed.twin_socket, agreed.write_multiple) == (0, False, True)
    assert len(pack(agreed).text) <= 194
    # Also with all that there can be.
    assert len(pack(replace(OURS, fd_index=0)).text) <= 194
