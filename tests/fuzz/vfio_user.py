"""Throws messages at a vfio-user server: ``python -m tests.fuzz.vfio_user --messages 1000000 --seed 1``.

Most are nearly right: every command, with values that lie at some limit, and then bits, bytes, sizes
and descriptors that are wrong. What is thrown is decided by the seed alone. The server is a process
of its own, which must not end, keep a descriptor or grow, and which still serves a good client then.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from precopy.backends.sim import open_sim
from precopy.backends.vfio_user.client import Client
from precopy.backends.vfio_user.device import VfioUserDevice
from precopy.frontends.vfio_user import Server
from precopy.vfio.states import DeviceState
from precopy.vfio_user.messages import COMMANDS, HEADER, Command, Form, MessageFlags

DEVICE = "sim:mlx5?log_max_qp=6&first_session=1&page_track=1"

#: Messages of one connection, at most.
_CONNECTION = 2000

_LIMITS = (0, 1, 2, 3, 4, 7, 8, 9, 12, 16, 17, 24, 32, 64, 255, 256, 4095, 4096, 4097, 0x7FFF)
_HUGE = (1 << 15, 1 << 16, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 1 << 31, (1 << 32) - 1)
_WIDE = (1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)
_BITS = {"H": 16, "I": 32, "Q": 64}

_GET, _SET, _PROBE = 1 << 16, 1 << 17, 1 << 18
_FEATURES = (1, 2, 3, 6, 7, 8, 9, 12)
# Out of RESUMING nothing leads but a reset, where what was written is no state.
_STATES = (*(1, 2, 3, 5, 6, 7) * 5, 0, 4, 8)


class Mutations:
    """What is thrown, from one random source."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._number = 0

    def connection(self) -> int:
        """How many messages the next connection has."""
        return self._random.randrange(1, _CONNECTION)

    def version(self) -> bytes:
        """Nearly always one that is agreed on."""
        named = {
            "max_msg_fds": self._random.choice((1, 16)),
            "max_data_xfer_size": self._random.choice((64, 4096, 1 << 20)),
            "write_multiple": True,
            "migration_extension": self._random.choice((0, 1, 1)),
            "twin_socket": {"supported": self._random.random() < 0.1},
        }
        text = json.dumps({"capabilities": named}).encode() + b"\0"
        return self._packed(Command.VERSION, struct.pack("=HH", 0, 0) + text)

    def _packed(self, command: int, payload: bytes, flags: int = 0, error: int = 0) -> bytes:
        self._number = (self._number + 1) & 0xFFFF
        return (
            HEADER.pack(self._number, command, HEADER.size + len(payload), flags, error) + payload
        )

    def _value(self, letter: str) -> int:
        bits = _BITS[letter]
        draw = self._random.random()
        if draw < 0.75:
            value = self._random.choice(_LIMITS)
        elif draw < 0.9:
            value = self._random.choice(_HUGE)
        elif draw < 0.97:
            value = self._random.choice(_WIDE)
        else:
            value = self._random.getrandbits(bits)
        return value & (1 << bits) - 1

    def _fields(self, form: Form) -> list[int]:
        found = [self._value(letter) for letter in form.layout.format if letter in _BITS]
        if found and "argsz" in getattr(form.make, "_fields", ()):
            found[0] = self._random.choice((4096, 4096, 32, 16, 15, 0))
        return found

    def _payload(self, command: Command) -> bytes:
        """Of a request that may well be carried out."""
        draw = self._random
        form = COMMANDS[command].request
        tail = b""
        if form.tail:
            tail = draw.randbytes(draw.choice((0, 0, 1, 4, 8, 24, 100)))
        if command == Command.DEVICE_FEATURE:
            index = draw.choice(_FEATURES)
            flags = index | draw.choice((_GET, _SET, _SET, _PROBE, _PROBE | _GET, 0))
            data = tail
            if index == 2:
                data = struct.pack("=Ii", draw.choice(_STATES), -1)
            elif index == 6:
                data = self._ranges()
            elif index == 8:
                page = draw.choice((4096, 8192, 1, 0))
                data = struct.pack("=QQQ", self._value("Q"), self._value("I"), page)
            return struct.pack("=II", draw.choice((8, 16, 4096, 8 + len(data))), flags) + data
        if command in (Command.REGION_READ, Command.REGION_WRITE):
            region, length = draw.choice((0, 7, 7, 1, 6, 9)), draw.choice((0, 1, 2, 4, 8, 64, 4097))
            head = form.layout.pack(self._value("H"), region, length)
            return head if command == Command.REGION_READ else head + draw.randbytes(length)
        if command == Command.MIG_DATA_READ:
            size = draw.choice((0, 1, 16, 4096, 1 << 16, 1 << 20))
            return form.layout.pack(8 + size, size)
        if command == Command.MIG_DATA_WRITE:
            return form.layout.pack(8 + len(tail), len(tail)) + tail
        if command == Command.MIG_DATA_POLL:
            # Not to wait is what makes a million of them possible.
            return form.layout.pack(12, self._value("I"), 0)
        if command in (Command.DMA_MAP, Command.DMA_UNMAP):
            page = draw.randrange(8) * 4096
            if command == Command.DMA_MAP:
                return form.layout.pack(32, draw.choice((1, 3, 3, 7, 11)), 0, page, 4096)
            return form.layout.pack(24, draw.choice((0, 0, 2)), page, 4096)
        if command == Command.REGION_WRITE_MULTI:
            count = draw.choice((0, 1, 3))
            entry = struct.pack("=QII", self._value("H"), draw.choice((0, 7)), 4) + bytes(8)
            return struct.pack("=Q", count) + entry * count
        if command == Command.DEVICE_SET_IRQS:
            flags = draw.choice((0x21, 0x22, 0x24, 0x24, 0x09, 0x11))
            irq, count = draw.choice((0, 1, 2, 2, 3, 4)), draw.choice((0, 1, 1, 2))
            data = bytes(count) if flags & 2 else b""
            return struct.pack("=IIIII", 20, flags, irq, draw.choice((0, 0, 1)), count) + data
        return form.layout.pack(*self._fields(form)) + tail

    def _ranges(self) -> bytes:
        count = self._random.choice((0, 1, 2))
        ranges = b"".join(struct.pack("=QQ", at << 16, 1 << 15) for at in range(count))
        return struct.pack("=QII", 4096, count, 0) + ranges

    def message(self) -> tuple[bytes, int]:
        """Bytes, and how many descriptors go with them; it is one message to who reads its size."""
        draw = self._random
        kind = draw.random()
        if kind < 0.02:
            command = draw.choice((0, 14, 22, 99, 0xFFFF))
            return self._packed(command, draw.randbytes(draw.randrange(40))), 0
        known = draw.choice(_DRAWN)
        payload = bytearray(self._payload(known))
        fds = COMMANDS[known].request_fds and draw.choice((0, 1, 1, 2))
        if kind < 0.05:
            fds = draw.choice((1, 2, 16))
        if kind < 0.35 and payload:
            self._spoil(payload)
        if known == Command.MIG_DATA_POLL and len(payload) >= 12:
            payload[8:12] = bytes(4)
        flags, error = 0, 0
        if 0.35 <= kind < 0.4:
            flags = draw.choice((0x1, 0x2, 0xF, 0x10, 0x20, 0x21, 0xFFFF_FFFF))
            error = draw.choice((0, 0, errno.EINVAL, 0xFFFF_FFFF))
        return self._packed(known, bytes(payload), flags, error), fds

    def _spoil(self, payload: bytearray) -> None:
        draw = self._random
        for _ in range(draw.choice((1, 1, 2, 5))):
            at = draw.randrange(len(payload))
            how = draw.randrange(5)
            if how == 0:
                payload[at] ^= 1 << draw.randrange(8)
            elif how == 1:
                payload[at] = draw.choice((0, 0xFF, 0x7F, 0x80))
            elif how == 2:
                value = self._value("Q").to_bytes(8, "little")
                payload[at : at + 8] = value[: len(payload) - at]
            elif how == 3:
                del payload[at:]
                if not payload:
                    return
            else:
                payload += draw.randbytes(draw.choice((1, 8, 100)))

    def last(self) -> bytes:
        """How a connection ends: with nothing, or in the middle of something."""
        draw = self._random
        how = draw.randrange(4)
        if how == 0:
            return b""
        if how == 1:
            return draw.randbytes(draw.randrange(1, 64))
        if how == 2:
            return HEADER.pack(1, Command.MIG_DATA_WRITE, 0xFFFF_FFFF, 0, 0) + bytes(1000)
        message, _ = self.message()
        return message[: draw.randrange(len(message))]


# A reset costs as much as hundreds of the others, and a device that is always reset never gets far.
_DRAWN: list[Command] = [
    command for command in Command for _ in range(8) if command != Command.VERSION
]
_DRAWN += [Command.DEVICE_FEATURE] * 24 + [Command.MIG_DATA_READ, Command.MIG_DATA_WRITE] * 8
for _ in range(7):
    _DRAWN.remove(Command.DEVICE_RESET)


@dataclass(frozen=True)
class Standing:
    """What the server's process holds."""

    rss: int
    fds: int

    @classmethod
    def of(cls, pid: int) -> Self:
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return cls(int(rss.split()[1]) << 10, len(os.listdir(f"/proc/{pid}/fd")))


class Target:
    """A server in a process of its own, with nothing but what it opens itself."""

    def __init__(self, folder: str) -> None:
        self.path = f"{folder}/fuzzed"
        command = [sys.executable, "-m", "tests.fuzz.vfio_user", "--serve", self.path]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n", "the server did not come up"

    def idle(self, most_fds: int = 0) -> Standing:
        """What it holds once its last client is gone: at most ``most_fds``, or as many as it is then."""
        deadline = time.monotonic() + (5.0 if most_fds else 0.5)
        while True:
            found = Standing.of(self.pid)
            if found.fds <= most_fds or time.monotonic() > deadline:
                return found
            select.select([], [], [], 0.01)

    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        with self._process:
            self._process.kill()


def serve(path: str) -> None:
    """What the process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    opened = open_sim(DEVICE, served=True)
    server = Server(opened.device, opened.face, path, negotiation=60.0)
    print("ready", flush=True)
    server.serve()


class Fuzzer:
    """Sends ``messages`` and reads what is answered."""

    def __init__(self, target: Target, seed: int) -> None:
        self._target, self._mutations = target, Mutations(seed)
        self._kinds: list[Callable[[], int]] = [
            lambda: os.memfd_create("fuzz", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING),
            lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        ]
        self.sent = self.answered = self.errors = self.connections = 0

    def run(self, messages: int) -> None:
        files = [kind() for kind in self._kinds for _ in range(8)]
        for fd in files[:8]:
            os.ftruncate(fd, 4096)
        try:
            while self.sent < messages:
                self._connect(min(messages - self.sent, self._mutations.connection()), files)
        finally:
            for fd in files:
                os.close(fd)

    def _connect(self, messages: int, files: list[int]) -> None:
        self.connections += 1
        with socket.socket(socket.AF_UNIX) as wire:
            wire.connect(self._target.path)
            wire.settimeout(30.0)
            # While another is still let go of, the device is taken.
            while True:
                wire.sendall(self._mutations.version())
                if not self._answers(wire, 1):
                    break
            waiting = 0
            for _ in range(messages):
                data, fds = self._mutations.message()
                if fds:
                    some = [files[(self.sent + at) % len(files)] for at in range(fds)]
                    sent = socket.send_fds(wire, [data], some)
                    wire.sendall(data[sent:])
                else:
                    wire.sendall(data)
                self.sent += 1
                header = HEADER.unpack_from(data)
                silent = header[3] & MessageFlags.NO_REPLY or (
                    header[3] & 0xF == MessageFlags.REPLY and header[4]
                )
                waiting += not silent
                if waiting >= 8:
                    self._answers(wire, waiting)
                    waiting = 0
            self._answers(wire, waiting)
            with contextlib.suppress(OSError):
                wire.sendall(self._mutations.last())

    def _answers(self, wire: socket.socket, count: int) -> int:
        """Take ``count`` answers, and give those that are asked for; how many of them were errors."""
        errors = 0
        while count:
            header = HEADER.unpack(self._exactly(wire, HEADER.size))
            payload = self._exactly(wire, header[2] - HEADER.size)
            if not header[3] & MessageFlags.REPLY:
                # DMA over the socket: sometimes yes, sometimes no.
                if header[1] == Command.DMA_READ and header[0] & 1:
                    address, length = struct.unpack("=QQ", payload)
                    answer = struct.pack("=QQ", address, length) + bytes(length)
                    size = HEADER.size + len(answer)
                    wire.sendall(HEADER.pack(header[0], header[1], size, 1, 0) + answer)
                else:
                    wire.sendall(HEADER.pack(header[0], header[1], HEADER.size, 0x21, 5))
                continue
            count -= 1
            self.answered += 1
            errors += header[4] != 0
        self.errors += errors
        return errors

    def _exactly(self, wire: socket.socket, size: int) -> bytes:
        found = bytearray()
        while len(found) < size:
            piece, fds, _, _ = socket.recv_fds(wire, size - len(found), 16)
            for fd in fds:
                os.close(fd)
            if not piece:
                raise EOFError(
                    f"the server ended the connection after {self.sent} messages"
                    f" ({'alive' if self._target.alive() else 'dead'})"
                )
            found += piece
        return bytes(found)


def serves_a_good_client(path: str) -> int:
    """Bytes of a whole stream that goes out and in again, through a client that does as it should."""
    for _ in range(1000):
        try:
            client = Client(path)
            break
        except OSError as error:
            # The last of the others is still being let go of.
            if error.errno != errno.EBUSY:
                raise
            select.select([], [], [], 0.01)
    with VfioUserDevice(client, path) as device:
        device.reset()
        stream = bytearray()
        room = bytearray(1 << 16)
        file = device.set_state(DeviceState.STOP_COPY)
        assert file is not None
        while count := file.readinto(room):
            stream += room[:count]
        file = device.set_state(DeviceState.RESUMING)
        assert file is not None
        at = 0
        while at < len(stream):
            at += file.write(stream[at:])
        device.set_state(DeviceState.RUNNING)
        assert device.state is DeviceState.RUNNING
    return len(stream)


@dataclass(frozen=True)
class Result:
    fuzzer: Fuzzer
    seconds: float
    #: After the first connections, and at the end.
    before: Standing
    after: Standing
    #: Bytes of state that a good client moved at the end.
    moved: int


#: Messages before the first look: what grows once grows here.
WARM_UP = 5000


def fuzz(messages: int, seed: int) -> Result:
    """Throw ``messages`` of ``seed``, after a warm-up of others."""
    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        target = Target(folder)
        try:
            Fuzzer(target, ~seed).run(WARM_UP)
            serves_a_good_client(target.path)
            before = target.idle()
            fuzzer = Fuzzer(target, seed)
            began = time.monotonic()
            fuzzer.run(messages)
            seconds = time.monotonic() - began
            moved = serves_a_good_client(target.path)
            assert target.alive()
            return Result(fuzzer, seconds, before, target.idle(before.fds), moved)
        finally:
            target.end()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--serve", metavar="PATH", help="be the server")
    asked = parser.parse_args()
    if asked.serve:
        serve(asked.serve)
        return 0
    result = fuzz(asked.messages, asked.seed)
    fuzzer = result.fuzzer
    print(
        f"{fuzzer.sent} messages on {fuzzer.connections} connections in {result.seconds:.0f} s"
        f" ({fuzzer.sent / result.seconds:.0f}/s): {fuzzer.answered} answers,"
        f" {fuzzer.errors} of them errors\n"
        f"RSS {result.before.rss / 1e6:.1f} MB -> {result.after.rss / 1e6:.1f} MB,"
        f" descriptors {result.before.fds} -> {result.after.fds};"
        f" a good client then moved {result.moved} bytes"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
