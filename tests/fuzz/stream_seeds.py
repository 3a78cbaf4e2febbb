"""Small good streams of every format, for the fuzzer to spoil."""

import functools
import itertools
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import xxhash

from precopy.engine.channel import CONTROL, DATA, HEADER_BYTES, MAGIC
from precopy.stream.recording import MOVED, TO_TARGET, Recorder
from tests.stream.formats import builders, qemu_parts

mtty = builders.mtty


def image() -> bytes:
    """Of the software adapter, with a page and an empty bulk state."""
    return builders.image(
        {(builders.QP, 1): builders.qp_page(3, 3)}, builders.FULL | builders.FINAL
    )


def channel(carried: bytes) -> bytes:
    """A capture of a source that sends ``carried`` as a device's state."""
    frames: list[bytes] = []

    def frame(kind: int, payload: bytes, checksum: int) -> None:
        frames.append(struct.pack("<HBBIQ", MAGIC, kind, 0, len(payload), checksum) + payload)

    def message(kind: str, **fields: object) -> None:
        payload = json.dumps({"kind": kind, **fields}).encode()
        frame(CONTROL, payload, xxhash.xxh3_64_intdigest(payload))

    message("hello", program="fuzz", versions=[2])
    running = xxhash.xxh3_64()
    for start in range(0, len(carried), 50):
        piece = carried[start : start + 50]
        running.update(piece)
        frame(DATA, piece, running.intdigest())
    message("final")
    message("end", bytes=len(carried), digest=running.intdigest())
    message("switch", digest=xxhash.xxh3_64_intdigest(b""))
    message("run")
    return b"".join(frames)


def recording(frames: bytes) -> bytes:
    """Of a source that sends ``frames``, and a target that says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recording")
        recorder = Recorder(path, itertools.count(0, 1000).__next__)
        at = 0
        while at < len(frames):
            end = at + HEADER_BYTES + int.from_bytes(frames[at + 4 : at + 8], "little")
            recorder.frame(TO_TARGET, b"", frames[at:end])
            at = end
        recorder.close(MOVED)
        return path.read_bytes()


_MAKERS: dict[str, Callable[[], bytes]] = {
    "mtty": mtty,
    "mlx5": lambda: builders.mlx5(image()),
    "connectx": image,
    "virtio": builders.virtio,
    "hisi_acc": builders.hisi_acc,
    "qat": builders.qat,
    "xe": builders.xe,
    "pds": lambda: bytes(range(256)) * 256,
    "channel": lambda: channel(mtty()),
    "recording": lambda: recording(channel(mtty())),
    "qemu": qemu_parts.stream,
    "qemu-multifd": lambda: qemu_parts.channel(
        1, qemu_parts.sync(), qemu_parts.pages([0], [4096]), qemu_parts.piece(0, mtty())
    ),
}


@functools.cache
def seeds() -> list[tuple[str, bytes]]:
    """Format and stream."""
    return [(name, make()) for name, make in _MAKERS.items()]
