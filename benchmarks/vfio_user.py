"""vfio-user between two processes: the data of a device's state, and a register's read.

Compared in the same run with a copy of the same bytes in memory, with a bare unix socket that carries
them, and with a bare echo.
"""

import contextlib
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext

import numpy as np

from benchmarks.figure import Figure
from benchmarks.stand_in import StandInDevice
from precopy.backends import open_device
from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.frontends.vfio_user import Server
from precopy.vfio.face import RegionIndex
from precopy.vfio.states import DeviceState
from precopy.vfio_user.conversation import enlarge

SIZE = 1 << 30
_BLOCK = 1 << 20
#: The user's buffer: messages have 1 MiB, as was agreed on.
_BUFFER = 4 << 20
_RUNS = 5
_ECHOES = 20_000


# --- The other process ------------------------------------------------------------------------


def _serve_state(path: str, told: Connection) -> None:
    """A device with 1 GiB of state; until told to end."""
    server = Server(StandInDevice(SIZE), None, path)
    server.start()
    told.send(None)
    told.recv()
    server.stop()


def _serve_vf(path: str, told: Connection) -> None:
    opened = open_device("sim:mlx5", served=True)
    server = Server(opened.device, opened.face, path)
    server.start()
    told.send(None)
    told.recv()
    server.stop()
    opened.close()


def _stream(connected: socket.socket, told: Connection) -> None:
    """1 GiB one way, then the other."""
    block = memoryview(bytearray(_BLOCK))
    told.send(None)
    for _ in range(SIZE // _BLOCK):
        connected.sendall(block)
    left = SIZE
    while left:
        left -= connected.recv_into(block)
    connected.sendall(b"x")


def _echo(connected: socket.socket, told: Connection) -> None:
    told.send(None)
    while data := connected.recv(64):
        connected.sendall(data)


class _Peer:
    """A process that runs ``work`` with a path or a socket, ready when this is made."""

    def __init__(self, context: SpawnContext, work: Callable[..., None], what: object) -> None:
        self._told, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(what, theirs), daemon=True)
        self._process.start()
        theirs.close()
        self._told.recv()

    def end(self) -> None:
        if self._process.is_alive():
            with contextlib.suppress(OSError):
                self._told.send(None)
        self._process.join()


# --- What is timed ----------------------------------------------------------------------------


def _time_copy() -> float:
    """1 GiB from one place in memory to another."""
    source, target = (np.full(SIZE, value, dtype=np.uint8) for value in (1, 2))
    began = time.perf_counter()
    np.copyto(target, source)
    return time.perf_counter() - began


def _time_socket(context: SpawnContext) -> tuple[float, float]:
    """Seconds to receive and to send 1 GiB over a bare unix socket in 1 MiB pieces.

    With as much room to send as vfio-user's own sockets.
    """
    ours, theirs = socket.socketpair()
    for each in (ours, theirs):
        enlarge(each)
    peer = _Peer(context, _stream, theirs)
    theirs.close()
    block = memoryview(bytearray(_BLOCK))
    began = time.perf_counter()
    left = SIZE
    while left:
        left -= ours.recv_into(block[: min(left, _BLOCK)])
    between = time.perf_counter()
    for _ in range(SIZE // _BLOCK):
        ours.sendall(block)
    ours.recv(1)
    end = time.perf_counter()
    peer.end()
    ours.close()
    return between - began, end - between


def _time_state(context: SpawnContext, path: str, *, area: bool) -> tuple[float, float]:
    """Seconds to read 1 GiB and to write it; ``area``: through memory that both have."""
    peer = _Peer(context, _serve_state, path)
    device = VfioUserDevice(Client(path), "vfio-user", area=area)
    block = memoryview(bytearray(_BUFFER))
    saving = device.set_state(DeviceState.STOP_COPY)
    assert saving is not None
    began, left = time.perf_counter(), SIZE
    while count := saving.readinto(block):
        left -= count
    reading = time.perf_counter() - began
    assert not left, f"{left} bytes did not come"
    resuming = device.set_state(DeviceState.RESUMING)
    assert resuming is not None
    began, left = time.perf_counter(), SIZE
    while left:
        left -= resuming.write(block[: min(left, _BUFFER)])
    writing = time.perf_counter() - began
    device.close()
    peer.end()
    return reading, writing


def _time_echo(context: SpawnContext) -> float:
    ours, theirs = socket.socketpair()
    peer = _Peer(context, _echo, theirs)
    theirs.close()
    message = bytes(36)
    began = time.perf_counter()
    for _ in range(_ECHOES):
        ours.sendall(message)
        ours.recv(64)
    took = (time.perf_counter() - began) / _ECHOES
    ours.close()
    peer.end()
    return took


def _time_region_read(context: SpawnContext, path: str) -> float:
    peer = _Peer(context, _serve_vf, path)
    client = Client(path)
    began = time.perf_counter()
    for _ in range(_ECHOES):
        client.region_read(RegionIndex.BAR0, 0x1010, 4)
    took = (time.perf_counter() - began) / _ECHOES
    client.close()
    peer.end()
    return took


# --- Figures ----------------------------------------------------------------------------------


def measure() -> list[Figure]:
    """Runs of all in turn, the median of each: what disturbs one disturbs the others."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "device.sock")
        states = [
            (
                _time_copy(),
                *_time_socket(context),
                *_time_state(context, path, area=False),
                *_time_state(context, path, area=True),
            )
            for _ in range(_RUNS)
        ]
        echoes = [(_time_echo(context), _time_region_read(context, path)) for _ in range(_RUNS)]
    copy, socket_in, socket_out, *took = map(statistics.median, zip(*states, strict=True))
    figures = []
    names = ("read, in messages", "write, in messages", "read, data area", "write, data area")
    for name, plain, seconds in zip(names, (socket_in, socket_out) * 2, took, strict=True):
        speed = f"{SIZE / seconds / 1e9:.2f} GB/s"
        for what, other, least in (("memcpy", copy, 0.6), ("bare socket", plain, 0.8)):
            ratio = other / seconds
            told = f"{ratio:.2f} ({speed} against {SIZE / other / 1e9:.2f} GB/s)"
            # What is asked for is reached on the way that data takes between two of our own.
            bound = least if name.endswith("data area") else 0.0
            text = f">= {bound}" if bound else ""
            figures.append(Figure(f"{name} / {what}, 1 GiB", told, text, ratio >= bound))
    echo, region = map(statistics.median, zip(*echoes, strict=True))
    ratio = region / echo
    told = f"{ratio:.2f} ({region * 1e6:.1f} us against {echo * 1e6:.1f} us)"
    figures.append(Figure("REGION_READ / bare echo, 4 bytes", told, "<= 2.5", ratio <= 2.5))
    return figures
