"""Guest memory on its way: the engine against bare sockets, what tracking costs, and convergence."""

import json
import multiprocessing
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

import numpy as np

from benchmarks.figure import Figure
from benchmarks.stand_in import StandInDevice
from precopy.backends import open_device
from precopy.engine import messages, pages
from precopy.engine.channel import CONTROL, MEMORY, Channel
from precopy.engine.memory import MemorySource
from precopy.guest import WorkloadGuest
from precopy.memory.tracker import tracker_for
from precopy.pci.memory import GuestMemory, RegionSpec

SIZE = 1 << 30
_BLOCK = 1 << 20
_RUNS = 5
_SPEC = RegionSpec(0, SIZE)

#: Seconds of work that are compared with and without tracking, and a round's length meanwhile.
_WORK, _ROUND = 3.0, 0.1


# --- Pages against sockets --------------------------------------------------------------------


def _plain(port: int, ready: Connection) -> None:
    """Receive 1 GiB into memory that has been touched."""
    memory = memoryview(bytearray(b"\1") * SIZE)
    with socket.create_connection(("127.0.0.1", port)) as connected:
        ready.send(None)
        at = 0
        while at < SIZE:
            at += connected.recv_into(memory[at : at + _BLOCK])
        connected.sendall(b"x")


def _pages(port: int, ready: Connection) -> None:
    """The same, by the engine's target: pages into guest memory."""
    memory = GuestMemory([_SPEC])
    memory.regions[0].view[:] = b"\1" * SIZE
    target = pages.PageTarget(memory)
    with socket.create_connection(("127.0.0.1", port)) as connected:
        channel = Channel(connected)
        ready.send(None)
        while True:
            frame, payload = channel.receive(target.place)
            if frame == MEMORY:
                target.take(payload)
                continue
            assert frame == CONTROL
            kind, fields = messages.decode(payload)
            if kind == "final":
                break
            channel.count_received(MEMORY, payload)
            target.announce(fields)
        connected.sendall(b"x")


class _Peer:
    def __init__(self, context: SpawnContext, work: Callable[..., None]) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            ours, theirs = context.Pipe()
            port = server.getsockname()[1]
            self.process = context.Process(target=work, args=(port, theirs), daemon=True)
            self.process.start()
            self.connected, _ = server.accept()
            ours.recv()


def _time_plain(context: SpawnContext, memory: GuestMemory) -> float:
    peer = _Peer(context, _plain)
    view = memory.regions[0].view
    began = time.perf_counter()
    for at in range(0, SIZE, _BLOCK):
        peer.connected.sendall(view[at : at + _BLOCK])
    peer.connected.recv(1)
    took = time.perf_counter() - began
    peer.process.join()
    peer.connected.close()
    return took


class _Still:
    """A guest that does nothing."""

    def __init__(self, memory: GuestMemory) -> None:
        self.memory = memory


def _time_pages(context: SpawnContext, memory: GuestMemory) -> float:
    peer = _Peer(context, _pages)
    channel = Channel(peer.connected)
    guest = _Still(memory)
    source = MemorySource(guest, StandInDevice(0), channel, lambda: None)  # type: ignore[arg-type]
    source.collect(stopped=True)
    began = time.perf_counter()
    source.send()
    messages.send(channel, "final")
    peer.connected.settimeout(None)
    peer.connected.recv(1)
    took = time.perf_counter() - began
    source.end()
    peer.process.join()
    channel.close()
    return took


# --- What tracking costs the guest ------------------------------------------------------------


def _work(kind: str) -> float:
    """Pages a second that the guest writes, as fast as it can, while ``kind`` tells of them ten times a second."""
    opened = open_device("sim:mlx5?qps=2&rate=1&memory=1G&writes=100000000")
    guest = opened.guest
    assert isinstance(guest, WorkloadGuest)
    tracker = tracker_for(guest.memory, kind) if kind else None
    bits = [bytearray(-(-spec.length // 4096 // 64) * 8) for spec in guest.memory.specs]
    stop = threading.Event()

    def rounds() -> None:
        assert tracker is not None
        while not stop.wait(_ROUND):
            for index, each in enumerate(bits):
                tracker.collect(index, np.frombuffer(each, dtype=np.uint8))

    guest.start()
    if tracker is not None:
        tracker.start()
        thread = threading.Thread(target=rounds)
        thread.start()
    before, began = guest.writes, time.perf_counter()
    time.sleep(_WORK)
    rate = (guest.writes - before) / (time.perf_counter() - began)
    stop.set()
    if tracker is not None:
        thread.join()
        tracker.stop()
    opened.close()
    return rate


# --- A migration that converges ---------------------------------------------------------------


def _converge() -> dict[str, object]:
    """4 GiB, of which 1 % is written each second, by the command line with its defaults."""
    written = 4 * (1 << 30) // 4096 // 100
    source = f"sim:mlx5?qps=100&memory=4G&writes={written}"
    command = [sys.executable, "-m", "precopy", "migrate", "--json", "--progress", "none"]
    done = subprocess.run(
        [*command, source, "sim:mlx5"], capture_output=True, text=True, check=True
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def measure() -> list[Figure]:
    """Runs in turn, the median of each: what disturbs one disturbs the others."""
    context = multiprocessing.get_context("spawn")
    memory = GuestMemory([_SPEC])
    memory.regions[0].view[:] = bytes(range(1, 256)) * (SIZE // 255) + b"\1" * (SIZE % 255)
    pairs = [(_time_plain(context, memory), _time_pages(context, memory)) for _ in range(_RUNS)]
    memory.close()
    plain, engine = map(statistics.median, zip(*pairs, strict=True))
    ratio = plain / engine
    told = f"{ratio:.2f} ({SIZE / engine / 1e9:.2f} GB/s against {SIZE / plain / 1e9:.2f} GB/s)"
    figures = [Figure("guest memory / plain sockets, 1 GiB", told, ">= 0.7", ratio >= 0.7)]
    bare = _work("")
    for kind in ("userfaultfd", "checksums"):
        share = _work(kind) / bare
        text = f"{share:.0%} of {bare:,.0f} pages a second"
        figures.append(Figure(f"guest's writes while {kind} tells of them", text, "", True))
    found = _converge()
    downtime, rounds = found["downtime"], found["rounds"]
    assert isinstance(downtime, float)
    guest = found["guest"]
    assert isinstance(guest, dict)
    well = downtime <= 0.3 and not guest["faults"]
    told = f"{downtime * 1e3:.0f} ms, {rounds} rounds, {found['total_seconds']:.1f} s in all"
    figures.append(Figure("downtime, 4 GiB with 1 % written a second", told, "<= 300 ms", well))
    return figures
