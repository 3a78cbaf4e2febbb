"""Runs in the lab: moves an mtty device by QEMU and by precopy, again and again, and tells figures.

    python -m tests.interop.inside TREE ROUNDS

Prints a :class:`Comparison` as JSON on stdout, a line about each run on stderr; exit status 1, with
one line, where something can't be done.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from precopy.lab import MTTY_UUIDS
from tests.interop import mtty
from tests.interop.errors import PeerError
from tests.interop.figures import PRECOPY, QEMU, QEMU_ACK, Comparison, Exchange, Run
from tests.interop.guest import Registers, disk
from tests.interop.peer import Peer
from tests.interop.stream import records
from tests.interop.trace import device_part, images, stages

SOURCE, TARGET = MTTY_UUIDS[:2]

#: What each of QEMU's engines has turned on.
_CAPABILITIES: dict[str, list[str]] = {QEMU: [], QEMU_ACK: ["return-path", "switchover-ack"]}

#: Ticks that a guest has to see before it is moved, and after.
_TICKS = 3


def _say(text: str) -> None:
    print(f"qemu-test: {text}", file=sys.stderr, flush=True)


def _registers(number: int) -> Registers:
    """Values that no other run has; bit 7 of the line control would hide the FIFO."""
    return Registers(0x40 + number, 0x80 + number, f"R{number:03}")


class _Lab:
    def __init__(self, tree: Path, directory: Path) -> None:
        self._tree, self._directory = tree, directory
        self._number = 0
        self.qemu = ""

    def _next(self, what: str) -> Registers:
        """The values of the next run; both devices are empty."""
        self._number += 1
        _say(f"run {self._number}: {what}")
        for uuid in (SOURCE, TARGET):
            mtty.wipe(uuid)
        return _registers(self._number)

    def _disk(self, registers: Registers) -> Path:
        path = self._directory / f"{self._number}.disk"
        path.write_bytes(disk(registers))
        return path

    def _peer(self, uuid: str, disk: Path, *, incoming: bool = False) -> Peer:
        name = f"{self._number}-{'target' if incoming else 'source'}"
        return Peer(self._tree, self._directory, name, uuid, disk=disk, incoming=incoming)

    def by_qemu(self, engine: str) -> Run:
        """From one QEMU to another over a unix socket, while the guest works."""
        wanted = self._next(engine)
        disk = self._disk(wanted)
        uri = f"unix:{self._directory}/{self._number}.socket"
        with self._peer(SOURCE, disk) as source, self._peer(TARGET, disk, incoming=True) as target:
            self.qemu = source.qmp.version
            before = source.ticked(_TICKS)[0]
            for peer in (source, target):
                peer.allow(_CAPABILITIES[engine])
            target.qmp.execute("migrate-incoming", uri=uri)
            source.qmp.execute("migrate", uri=uri)
            source.finished()
            target.finished()
            figures = source.figures()
            after = target.ticked(source.report()[0] + _TICKS)
            logs = source.trace(), target.trace()
            parts = stages(*logs)
            return Run(
                engine=engine,
                images=images(logs[0]),
                stages=parts,
                device=device_part(*logs),
                downtime=sum(parts.values()),
                reported=figures["downtime"] / 1e3,
                total=figures["total-time"] / 1e3,
                wanted=wanted,
                found=target.registers(),
                ticks=(before, after[0]),
                disagreements=after[1],
                sent=figures["ram"]["transferred"],
            )

    def by_precopy(self) -> Run:
        """From one process to another over TCP on loopback; the device has no guest."""
        wanted = self._next(PRECOPY)
        scratch = self._number
        with mtty.opened(SOURCE) as device:
            mtty.set_registers(device, wanted, scratch)
        command = [sys.executable, "-m", "precopy", "migrate", "--json", "--progress", "none"]
        done = subprocess.run(
            [*command, SOURCE, TARGET], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise PeerError(f"precopy migrate: {done.stderr.strip()}")
        report = json.loads(done.stdout)
        with mtty.opened(TARGET) as device:
            found, ended = mtty.registers_of(device)
        return Run(
            engine=PRECOPY,
            images=[image["bytes"] for image in report["images"]],
            stages=report["stages"],
            device=report["stages"],
            downtime=report["downtime"],
            reported=report["downtime"],
            total=report["total_seconds"],
            wanted=wanted,
            found=found,
            ticks=(scratch, ended),
        )

    def exchange(self) -> Exchange:
        """State that QEMU has saved into a file, loaded by precopy; and the other way."""
        of_qemu = self._next("QEMU's state into precopy")
        disk, file = self._disk(of_qemu), self._directory / "stream"
        with self._peer(SOURCE, disk) as source:
            source.ticked(_TICKS)
            source.allow([])
            source.qmp.execute("migrate", uri=f"file:{file}")
            source.finished()
            ticks = source.report()[0]
        written = file.read_bytes()
        pieces = [piece for _, piece in records.device_images(written)]
        with mtty.opened(TARGET) as device:
            mtty.load(device, pieces)
            saved_again = mtty.save(device)
            found_of_qemu, scratch = mtty.registers_of(device)
        if scratch != ticks & 0xFF:
            raise PeerError(f"the guest had seen {ticks} ticks, the device says {scratch}")

        of_precopy = self._next("precopy's state into QEMU")
        with mtty.opened(SOURCE) as device:
            mtty.set_registers(device, of_precopy, ticks & 0xFF)
            ours = mtty.save(device)
        file.write_bytes(records.with_images(written, ours))
        with self._peer(TARGET, disk, incoming=True) as target:
            target.allow([])
            target.qmp.execute("migrate-incoming", uri=f"file:{file}")
            target.finished()
            disagreements = target.ticked(ticks + _TICKS)[1]
            found_of_precopy = target.registers()
        return Exchange(
            by_qemu=[piece.hex() for piece in pieces],
            saved_again=[piece.hex() for piece in saved_again],
            wanted_of_qemu=of_qemu,
            found_of_qemu=found_of_qemu,
            wanted_of_precopy=of_precopy,
            found_of_precopy=found_of_precopy,
            disagreements=disagreements,
        )


def main(tree: Path, rounds: int) -> int:
    with tempfile.TemporaryDirectory() as directory:
        lab = _Lab(tree, Path(directory))
        try:
            exchange = lab.exchange()
            runs = []
            for _ in range(rounds):
                runs += [lab.by_qemu(engine) for engine in _CAPABILITIES]
                runs.append(lab.by_precopy())
        except (PeerError, OSError, ValueError) as error:
            _say(" ".join(str(error).split()))
            return 1
        print(Comparison(lab.qemu, os.uname().release, runs, exchange).dump())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
