"""What a recording costs the migration that is recorded: 1 GiB between two processes, with it and without."""

import contextlib
import multiprocessing
import os
import statistics
import tempfile
import time
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

SIZE = 1 << 30
_RUNS = 5


def _take(port: int) -> None:
    connected = addresses.connect(addresses.parse(f"tcp://127.0.0.1:{port}"))
    receive(Opened(StandInDevice(SIZE)), Channel(connected))


def _time(context: SpawnContext, path: Path | None) -> float:
    """Seconds of the migration, all of it downtime; the closing of the file is not part of it."""
    listening = addresses.Listening(addresses.parse("tcp://127.0.0.1:0"))
    peer = context.Process(target=_take, args=(listening.address.port,))
    peer.start()
    recorder = Recorder(path) if path else None
    with contextlib.closing(Channel(listening.accept())) as channel:
        if recorder is not None:
            record(channel, recorder)
        began = time.perf_counter()
        migrate(Opened(StandInDevice(SIZE)), channel, Options(precopy=False))
        took = time.perf_counter() - began
        peer.join()
    listening.close()
    if recorder is not None:
        recorder.close(MOVED)
        # What is not written yet would disturb the next run.
        os.sync()
    return took


def measure() -> list[Figure]:
    """Runs of both in turn, the median of each: what disturbs one disturbs the other."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="precopy-") as folder:
        path = Path(folder, "recording")
        pairs = [(_time(context, None), _time(context, path)) for _ in range(_RUNS)]
    plain = statistics.median(one for one, _ in pairs)
    recorded = statistics.median(other for _, other in pairs)
    ratio = recorded / plain
    told = f"{ratio:.2f} ({SIZE / recorded / 1e9:.2f} GB/s against {SIZE / plain / 1e9:.2f} GB/s)"
    return [Figure("downtime of 1 GiB, recorded / not recorded", told, "<= 3", ratio <= 3)]
