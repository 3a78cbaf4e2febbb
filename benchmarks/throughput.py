"""The engine against plain sockets: 1 GiB between two processes over loopback TCP."""

import multiprocessing
import socket
import statistics
import time
from multiprocessing.context import SpawnContext

from benchmarks.figure import Figure
from benchmarks.stand_in import StandInDevice
from precopy.engine import address as addresses
from precopy.engine.channel import Channel
from precopy.engine.source import Options, migrate
from precopy.engine.target import receive
from precopy.vfio.guest import Opened

SIZE = 1 << 30
_BLOCK = 1 << 20
_RUNS = 5


def _plain(port: int) -> None:
    """Receive by recv_into with a buffer of 1 MiB."""
    with socket.create_connection(("127.0.0.1", port)) as connected:
        buffer = memoryview(bytearray(_BLOCK))
        left = SIZE
        while left:
            left -= connected.recv_into(buffer[: min(left, _BLOCK)])
        connected.sendall(b"x")


def _engine(port: int) -> None:
    connected = addresses.connect(addresses.parse(f"tcp://127.0.0.1:{port}"))
    receive(Opened(StandInDevice(SIZE)), Channel(connected))


def _time_plain(context: SpawnContext) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer = context.Process(target=_plain, args=(server.getsockname()[1],))
        peer.start()
        connected, _ = server.accept()
        block = memoryview(bytes(_BLOCK))
        began = time.perf_counter()
        for _ in range(SIZE // _BLOCK):
            connected.sendall(block)
        connected.recv(1)
        took = time.perf_counter() - began
        peer.join()
        connected.close()
    return took


def _time_engine(context: SpawnContext) -> float:
    listening = addresses.Listening(addresses.parse("tcp://127.0.0.1:0"))
    peer = context.Process(target=_engine, args=(listening.address.port,))
    peer.start()
    channel = Channel(listening.accept())
    began = time.perf_counter()
    migrate(Opened(StandInDevice(SIZE)), channel, Options(precopy=False))
    took = time.perf_counter() - began
    peer.join()
    channel.close()
    listening.close()
    return took


def measure() -> list[Figure]:
    """Runs of both in turn, the median of each: what disturbs one disturbs the other."""
    context = multiprocessing.get_context("spawn")
    pairs = [(_time_plain(context), _time_engine(context)) for _ in range(_RUNS)]
    plain = statistics.median(one for one, _ in pairs)
    engine = statistics.median(other for _, other in pairs)
    ratio = plain / engine
    told = f"{ratio:.2f} ({SIZE / engine / 1e9:.2f} GB/s against {SIZE / plain / 1e9:.2f} GB/s)"
    return [Figure("engine / plain sockets, 1 GiB", told, ">= 0.7", ratio >= 0.7)]
