"""What a recording costs the migration that is recorded, between two processes over loopback TCP.

Of a final image that finds room in memory the downtime pays a copy; of more than that the disk, too.
"""

import contextlib
import multiprocessing
import os
import statistics
import tempfile
from multiprocessing.context import SpawnContext
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.stand_in import StandInDevice
from precopy.engine import address as addresses
from precopy.engine.channel import Channel
from precopy.engine.save import record
from precopy.engine.source import Options, migrate
from precopy.engine.target import receive
from precopy.stream.recording import MOVED, Recorder
from precopy.vfio.guest import Opened

#: Bytes of state: one that finds room, and one that does not.
SMALL, LARGE = 16 << 20, 1 << 30
_RUNS = 5


def _take(port: int, size: int) -> None:
    connected = addresses.connect(addresses.parse(f"tcp://127.0.0.1:{port}"))
    receive(Opened(StandInDevice(size)), Channel(connected))


def _downtime(context: SpawnContext, size: int, path: Path | None) -> float:
    """Seconds; without PRE_COPY all of the state is in them."""
    listening = addresses.Listening(addresses.parse("tcp://127.0.0.1:0"))
    peer = context.Process(target=_take, args=(listening.address.port, size))
    peer.start()
    recorder = Recorder(path) if path else None
    with contextlib.closing(Channel(listening.accept())) as channel:
        if recorder is not None:
            record(channel, recorder)
        report = migrate(Opened(StandInDevice(size)), channel, Options(precopy=False))
        peer.join()
    listening.close()
    if recorder is not None:
        recorder.close(MOVED)
        # What is not written yet would disturb the next run.
        os.sync()
    return report.downtime


def _compare(context: SpawnContext, folder: Path, size: int) -> tuple[float, str]:
    """Recorded by not recorded; runs of both in turn: what disturbs one disturbs the other."""
    path = folder / "recording"
    pairs = [(_downtime(context, size, None), _downtime(context, size, path)) for _ in range(_RUNS)]
    plain = statistics.median(one for one, _ in pairs)
    recorded = statistics.median(other for _, other in pairs)
    ratio = recorded / plain
    return ratio, f"{ratio:.2f} ({recorded * 1e3:.0f} ms against {plain * 1e3:.0f} ms)"


def measure() -> list[Figure]:
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="precopy-") as name:
        small, told_small = _compare(context, Path(name), SMALL)
        large, told_large = _compare(context, Path(name), LARGE)
    return [
        Figure("downtime of 16 MiB, recorded / not", told_small, "<= 2", small <= 2),
        Figure("downtime of 1 GiB, recorded / not", told_large, "<= 3", large <= 3),
    ]
