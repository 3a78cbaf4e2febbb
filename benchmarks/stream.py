"""How fast streams of 1 GiB are dissected, against reading the same file, and in how much memory."""

import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import xxhash

from benchmarks.figure import Figure
from precopy.engine.channel import CONTROL, DATA, MAGIC

_MIB = 1 << 20
SIZE = 1 << 30

#: A fifth of the speed of reading; peak memory above an empty stream's.
LEAST = 0.2
MOST_BYTES = 64 * _MIB

#: Reads the file as the dissector does, or dissects it; tells seconds and peak resident bytes.
_READ = """
import sys, time
buffer = memoryview(bytearray(1 << 20))
began = time.perf_counter()
with open(sys.argv[1], "rb", buffering=0) as source:
    while source.readinto(buffer):
        pass
print([time.perf_counter() - began, 0])
"""
_DISSECT = """
import sys, time
from precopy.stream.dissect import dissect
from precopy.stream.item import Silent
from precopy.stream.registry import formats
from precopy.stream.show import Tree

class Verdict(Silent):
    wrongs = 0
    def wrong(self, wrong):
        Verdict.wrongs += 1

from precopy.stream.item import Several
formats()
tree = Tree(lambda line: None)
began = time.perf_counter()
with open(sys.argv[1], "rb", buffering=0) as source:
    dissect(source, Several(Verdict(), tree))
tree.close()
seconds = time.perf_counter() - began
assert not Verdict.wrongs, Verdict.wrongs
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]
print([seconds, int(peak) * 1024])
"""


def _run(program: str, path: Path) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def _channel() -> Iterator[bytes]:
    """A capture of precopy's channel: data in frames of 1 MiB."""
    message = b'{"kind": "run"}'
    running = xxhash.xxh3_64()
    yield (
        struct.pack("<HBBIQ", MAGIC, CONTROL, 0, len(message), xxhash.xxh3_64_intdigest(message))
        + message
    )
    # A record of mlx5's of which all of it is the image.
    piece = struct.pack("<QII", SIZE - 16, 0, 0) + os.urandom(_MIB - 16)
    for _ in range(SIZE // _MIB):
        running.update(piece)
        yield struct.pack("<HBBIQ", MAGIC, DATA, 0, len(piece), running.intdigest()) + piece
        piece = os.urandom(_MIB)


def _mlx5() -> Iterator[bytes]:
    """mlx5's records with images of an adapter of which nobody knows what is in them."""
    yield struct.pack("<QIIQ", 8, 1, 1, 1 << 20)
    content = os.urandom(4 * _MIB)
    for _ in range(SIZE // len(content)):
        yield struct.pack("<QII", len(content), 0, 0)
        yield content


def _sim() -> Iterator[bytes]:
    """mlx5's records with an image of the software ConnectX, every page of it told of."""
    from precopy.backends import open_device
    from precopy.vfio.states import DeviceState

    opened = open_device("sim:mlx5?guest=0&state=1G")
    try:
        device = opened.device
        file = device.set_state(DeviceState.STOP_COPY)
        assert file is not None
        buffer = memoryview(bytearray(_MIB))
        while count := file.readinto(buffer):
            yield bytes(buffer[:count])
        file.close()
    finally:
        opened.close()


def _qemu() -> Iterator[bytes]:
    """QEMU's: pages of RAM, one after the other, and a VFIO device's state."""
    name = b"pc.ram"
    yield struct.pack(">II", 0x5145564D, 3)
    yield struct.pack(">BIB", 1, 2, 3) + b"ram" + struct.pack(">II", 0, 4)
    yield struct.pack(">Q", SIZE | 4) + bytes([len(name)]) + name + struct.pack(">Q", SIZE)
    yield struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)
    page = os.urandom(4096)
    pages = SIZE // 4096
    for start in range(0, pages, 1024):
        yield struct.pack(">BI", 2, 2)
        first = struct.pack(">Q", start * 4096 | 8) + bytes([len(name)]) + name + page
        rest = [
            struct.pack(">Q", at * 4096 | 8 | 0x20) + page for at in range(start + 1, start + 1024)
        ]
        yield first + b"".join(rest)
        yield struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)
    yield struct.pack(">BI", 3, 2) + struct.pack(">Q", 0x10) + struct.pack(">BI", 0x7E, 2)
    yield b"\0"


STREAMS: dict[str, Callable[[], Iterator[bytes]]] = {
    "mlx5, opaque images": _mlx5,
    "mlx5, our adapter's image": _sim,
    "precopy's channel": _channel,
    "QEMU, pages of RAM": _qemu,
}


def _write(file: BinaryIO, pieces: Iterator[bytes]) -> None:
    for piece in pieces:
        file.write(piece)


def measure() -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "empty")
        empty.touch()
        _, least = _run(_DISSECT, empty)
        for name, make in STREAMS.items():
            path = Path(folder, "stream")
            with path.open("wb") as file:
                _write(file, make())
            # Once to have it in memory, for both.
            _run(_READ, path)
            reading = min(_run(_READ, path)[0] for _ in range(3))
            runs = [_run(_DISSECT, path) for _ in range(3)]
            ratio = reading / min(seconds for seconds, _ in runs)
            peak = max(peak for _, peak in runs) - least
            figures += [
                Figure(
                    f"dissected / read, 1 GiB: {name}",
                    f"{ratio:.2f}",
                    f">= {LEAST}",
                    ratio >= LEAST,
                ),
                Figure(
                    f"memory for it: {name}",
                    f"{peak / _MIB:.1f} MiB",
                    "<= 64 MiB",
                    peak <= MOST_BYTES,
                ),
            ]
    return figures
