"""Runs in the lab: QEMU migrates mtty devices, and what it says is dissected.

    python -m tests.interop.stream.inside TREE

Prints a JSON object: a :class:`Told` for each way of migrating. Exit status 1, with one line, where
something can't be done.
"""

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from precopy.lab import MTTY_UUIDS
from precopy.stream.dissect import dissect
from precopy.stream.item import Item, Silent, Summary, Wrong
from tests.interop import mtty
from tests.interop.errors import PeerError
from tests.interop.guest import Registers, disk
from tests.interop.peer import Peer
from tests.interop.stream import records
from tests.interop.stream.recorder import Recorder

#: Ticks that a guest has to see before it is moved.
_TICKS = 3

#: Of the device that no guest touches.
_OTHER, _SCRATCH = Registers(0x17, 0x0A, "two!"), 0x5C


@dataclass(frozen=True, slots=True)
class Way:
    """``devices``: how many; ``to``: ``file`` or ``qemu``; ``device``: properties of each."""

    name: str
    to: str
    devices: int = 1
    capabilities: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    device: str = ""


_CHANNELS = {"multifd-channels": 2}

WAYS = (
    Way("to a file", "file"),
    Way("two devices to a file", "file", 2),
    Way("mapped-ram", "file", 1, ("mapped-ram",)),
    Way("mapped-ram by multifd", "file", 1, ("mapped-ram", "multifd"), _CHANNELS),
    Way("to another", "qemu"),
    # Not over before a page that the guest has written again has gone as what changed in it.
    Way("XBZRLE", "qemu", 1, ("xbzrle",), {"downtime-limit": 0}),
    Way("switchover-ack", "qemu", 1, ("return-path", "switchover-ack")),
    Way("multifd", "qemu", 1, ("multifd",), _CHANNELS),
    Way("two devices by multifd", "qemu", 2, ("multifd",), {"multifd-channels": 3}),
    Way(
        "multifd without devices",
        "qemu",
        1,
        ("multifd",),
        _CHANNELS,
        ",x-migration-multifd-transfer=off",
    ),
    Way("compressed", "qemu", 1, ("multifd",), {**_CHANNELS, "multifd-compression": "zlib"}),
    Way(
        "zero pages as ever",
        "qemu",
        1,
        ("multifd",),
        {**_CHANNELS, "zero-page-detection": "legacy"},
    ),
)


@dataclass(slots=True)
class Device:
    """``wanted`` was set at the source, ``found`` is what a device has that its state was loaded into."""

    state: str
    format: str
    counts: dict[str, int]
    phases: dict[str, int]
    wanted: Registers
    found: Registers


@dataclass(slots=True)
class Told:
    """Of one migration. ``untold``: bytes of the files that no item tells of."""

    files: int = 0
    formats: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    untold: int = 0
    machine: list[dict[str, int]] = field(default_factory=list)
    devices: dict[str, Device] = field(default_factory=dict)
    #: The pieces of device states by their flags alone, where all is in one file.
    pieces: list[str] = field(default_factory=list)


class _Hears(Silent):
    def __init__(self) -> None:
        self.told = 0
        self.opaque: list[str] = []
        self.wrongs: list[str] = []
        self.states: dict[str, bytearray] = {}
        self.summaries: dict[str, Summary] = {}

    def end(self, item: Item) -> None:
        if item.depth == 0 and not item.stream and item.offset == self.told:
            self.told += item.size or 0
        if "not looked at" in item.text or item.name in ("unknown bytes", "rest", "passed over"):
            self.opaque.append(f"{item.name} at {item.file_offset:#x}")

    def wrong(self, wrong: Wrong) -> None:
        self.wrongs.append(str(wrong))

    def piece(self, stream: str, offset: int, file_offset: int, data: memoryview) -> None:
        self.states.setdefault(stream, bytearray()).extend(data)

    def over(self, summary: Summary) -> None:
        self.summaries[summary.stream] = summary


def _heard(files: list[Path]) -> _Hears:
    heard = _Hears()
    with contextlib.ExitStack() as stack:
        first, *beside = (stack.enter_context(path.open("rb", buffering=0)) for path in files)
        dissect(first, heard, beside=beside)
    return heard


class _Lab:
    def __init__(self, tree: Path, directory: Path) -> None:
        self._tree, self._directory = tree, directory

    def go(self, number: int, way: Way) -> Told:
        directory = self._directory / f"{number}"
        directory.mkdir()
        own = Registers(0x40 + number, 0x80 + number, f"S{number:03}")
        sources, targets = MTTY_UUIDS[: way.devices], MTTY_UUIDS[2 : 2 + way.devices]
        for uuid in (*sources, *targets):
            mtty.wipe(uuid)
        if way.devices > 1:
            with mtty.opened(sources[1]) as device:
                mtty.set_registers(device, _OTHER, _SCRATCH)
        image = directory / "disk"
        image.write_bytes(disk(own))
        with self._peers(way, directory, image, sources, targets) as peers:
            files = self._migrate(way, directory, peers)
        if isinstance(files, Recorder):
            files = files.files(b"QEVM")
        return self._dissect(files, [own, _OTHER], targets)

    @contextlib.contextmanager
    def _peers(
        self, way: Way, directory: Path, image: Path, sources: Any, targets: Any
    ) -> Iterator[list[Peer]]:
        with contextlib.ExitStack() as stack:
            peers = []
            for name, uuids in (("source", sources), ("target", targets)):
                if name == "source" or way.to == "qemu":
                    peer = Peer(
                        self._tree,
                        directory,
                        name,
                        uuids[0],
                        disk=image,
                        incoming=name == "target",
                        others=uuids[1:],
                        device=way.device,
                    )
                    peers.append(stack.enter_context(peer))
            yield peers

    def _migrate(self, way: Way, directory: Path, peers: list[Peer]) -> "list[Path] | Recorder":
        source = peers[0]
        source.ticked(_TICKS)
        for peer in peers:
            peer.allow(way.capabilities, **way.parameters)
        if way.to == "file":
            file = directory / "stream"
            source.qmp.execute("migrate", uri=f"file:{file}")
            source.finished()
            return [file]
        there = directory / "there"
        peers[1].qmp.execute("migrate-incoming", uri=f"unix:{there}")
        recorder = Recorder(directory, there)
        source.qmp.execute("migrate", uri=f"unix:{recorder.address}")
        if "xbzrle" in way.capabilities:
            source.sent_changes()
            source.qmp.execute("migrate-set-parameters", **{"downtime-limit": 10_000})
        for peer in peers:
            peer.finished()
        return recorder

    def _dissect(self, files: list[Path], wanted: list[Registers], targets: Any) -> Told:
        heard = _heard(files)
        told = Told(len(files), wrong=heard.wrongs, opaque=heard.opaque)
        for number, path in enumerate(files):
            alone = heard if not number else _heard([path])
            told.untold += path.stat().st_size - alone.told
            told.formats.append(alone.summaries[""].format)
            told.machine.append(alone.summaries[""].counts)
            if number:
                told.wrong += alone.wrongs
                told.opaque += alone.opaque
        if len(files) == 1:
            told.pieces = [piece.hex() for _, piece in records.device_images(files[0].read_bytes())]
        for number, (name, state) in enumerate(sorted(heard.states.items())):
            with mtty.opened(targets[number]) as device:
                mtty.load(device, [bytes(state)])
                found, _ = mtty.registers_of(device)
            summary = heard.summaries[name]
            told.devices[name] = Device(
                state.hex(),
                summary.format,
                summary.counts,
                summary.phases,
                wanted[number],
                found,
            )
        return told


def main(tree: Path) -> int:
    with tempfile.TemporaryDirectory() as directory:
        lab = _Lab(tree, Path(directory))
        found = {}
        try:
            for number, way in enumerate(WAYS):
                print(f"qemu-test: {way.name}", file=sys.stderr, flush=True)
                found[way.name] = dataclasses.asdict(lab.go(number, way))
        except (PeerError, OSError, ValueError) as error:
            print("qemu-test: " + " ".join(str(error).split()), file=sys.stderr)
            return 1
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
