"""The readers of QEMU's stream and of its trace, on what QEMU may hand them."""

import struct

import pytest

from tests.interop.errors import PeerError
from tests.interop.stream.records import device_images, with_images
from tests.interop.trace import Event, parse, stages

_DATA = struct.pack(">Q", 0xFFFF_FFFF_EF10_0004)
_END = struct.pack(">Q", 0xFFFF_FFFF_EF10_0001)


def _stream(*images: bytes) -> bytes:
    pieces = (_DATA + struct.pack(">Q", len(image)) + image + _END for image in images)
    return b"QEVM" + bytes(100) + b"memory".join(pieces) + bytes(7)


def test_images_are_found_and_replaced() -> None:
    stream = _stream(b"initial", b"", b"final!")
    assert [image for _, image in device_images(stream)] == [b"initial", b"final!"]
    changed = with_images(stream, [b"INITIAL", b"FINAL!"])
    assert changed == _stream(b"INITIAL", b"", b"FINAL!")


def test_images_of_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="other sizes"):
        with_images(_stream(b"initial", b"final"), [b"initial", b"longer"])


def test_a_stream_that_is_cut() -> None:
    with pytest.raises(ValueError, match="a piece of 7 bytes"):
        device_images(_DATA + struct.pack(">Q", 7) + b"init")


def test_a_log_of_either_form_with_other_lines_in_it() -> None:
    log = (
        "2026-01-01T00:00:00.250000Z vfio_save_complete_precopy  (uuid) ret 0\n"
        "2026-01-01T00:00:00.300000Z qemu-system-x86_64: vfio: Cannot reset device\n"
        "nonsense\n"
        "24@1767225600.500000:vfio_load_state  (uuid) data 0x1\n"
        "24@1767225600.750000:vfio_migration_realize\n"
    )
    assert parse(log) == [
        Event(1767225600.25, "vfio_save_complete_precopy", "(uuid) ret 0"),
        Event(1767225600.5, "vfio_load_state", "(uuid) data 0x1"),
        Event(1767225600.75, "vfio_migration_realize", ""),
    ]


def test_an_event_that_is_missing_is_named() -> None:
    started = Event(1.0, "vmstate_downtime_checkpoint", "src-downtime-start")
    with pytest.raises(PeerError, match="no vfio_migration_set_device_state state PRE_COPY_P2P"):
        stages([started], [])
