"""A QEMU in the lab with an mtty device and the guest that works with it."""

import re
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from precopy.lab.qemu import command
from tests.interop import guest
from tests.interop.errors import PeerError
from tests.interop.guest import Registers
from tests.interop.qmp import PATIENCE, Qmp
from tests.interop.trace import PATTERNS, Event, parse

#: Seconds between two looks at the guest.
_LOOK = 0.05

#: Of the guest: enough for a BIOS and a boot sector.
MEMORY = "32"

#: Columns of ``xp``: an address, then words.
_WORD = re.compile(r"\b0x([0-9a-f]{8})\b")


class Peer:
    """A running QEMU. ``name`` tells its files in ``directory`` from those of others.

    ``others`` are devices beside the guest's own, ``device`` more properties of all. With ``disk`` the guest boots from it, without it QEMU waits for a migration. PeerError says why
    one does not start.
    """

    def __init__(
        self,
        tree: Path,
        directory: Path,
        name: str,
        uuid: str,
        *,
        disk: Path,
        incoming: bool,
        others: Sequence[str] = (),
        device: str = "",
    ) -> None:
        self._trace = directory / f"{name}.trace"
        self._errors = directory / f"{name}.err"
        ours, theirs = socket.socketpair()
        options = [
            *("-nodefaults", "-machine", "pc", "-accel", "tcg", "-m", MEMORY),
            *("-display", "none", "-vga", "none"),
            *("-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "qmp,mode=control"),
            *("-object", "iommufd,id=iommu"),
            *("-drive", f"if=floppy,format=raw,readonly=on,file={disk}", "-boot", "a"),
            *("-msg", "timestamp=on", "-D", str(self._trace)),
        ]
        for slot, each in enumerate([uuid, *others], guest.SLOT):
            options += [
                "-device",
                f"vfio-pci,sysfsdev=/sys/bus/mdev/devices/{each},iommufd=iommu,enable-migration=on,"
                f"addr={slot}{device}",
            ]
        for pattern in PATTERNS:
            options += ["-trace", pattern]
        if incoming:
            options += ["-incoming", "defer"]
        with open(self._errors, "wb") as errors, theirs:
            self._process = subprocess.Popen(
                [*command(tree), *options],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(theirs.fileno(),),
            )
        try:
            self.qmp = Qmp(ours)
        except PeerError as error:
            self._process.kill()
            self._process.wait()
            raise PeerError(f"{error}: {self._last_words()}") from error

    def _last_words(self) -> str:
        lines = self._errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    # --- The guest ----------------------------------------------------------------------------

    def report(self) -> tuple[int, int, int, int]:
        """What the guest knows: ticks, disagreements, the port of BAR 0, its mark."""
        said = self.qmp.human(f"xp /4wx {guest.REPORT:#x}")
        words = [int(word, 16) for word in _WORD.findall(said.split(":", 1)[1])]
        ticks, disagreements, port, mark = words
        return ticks, disagreements, port, mark

    def ticked(self, more_than: int) -> tuple[int, int, int, int]:
        """The guest's report as soon as it has seen more ticks than that."""
        return self._until(lambda report: report[3] == guest.MARK and report[0] > more_than)

    def _until(
        self, fits: Callable[[tuple[int, int, int, int]], bool]
    ) -> tuple[int, int, int, int]:
        ends = time.monotonic() + PATIENCE
        while not fits(report := self.report()):
            if time.monotonic() > ends:
                raise PeerError(f"the guest does not get on: ticks and the rest are {report}")
            time.sleep(_LOOK)
        return report

    def registers(self) -> Registers:
        """The port's registers, read as the guest's processor would; this empties the FIFO."""
        base = self.report()[2]
        return Registers(
            self._port(base + guest.LINE_CONTROL),
            self._port(base + guest.MODEM_CONTROL),
            bytes(self._port(base + guest.FIFO) for _ in range(4)).decode("latin-1"),
        )

    def _port(self, number: int) -> int:
        said = self.qmp.human(f"i /b {number:#x}")
        return int(said.rpartition("=")[2], 16)

    # --- Migration ----------------------------------------------------------------------------

    def allow(self, capabilities: Sequence[str], **parameters: object) -> None:
        """Turn migration capabilities on, events among them, and set parameters."""
        chosen = [{"capability": each, "state": True} for each in ("events", *capabilities)]
        self.qmp.execute("migrate-set-capabilities", capabilities=chosen)
        if parameters:
            self.qmp.execute("migrate-set-parameters", **parameters)

    def finished(self) -> None:
        """Wait for the migration's end. PeerError where it failed."""
        ended = self.qmp.wait(
            "MIGRATION", lambda data: data["status"] in ("completed", "failed", "cancelled")
        )
        if ended["status"] != "completed":
            try:
                why = self.qmp.execute("query-migrate").get("error-desc", "no reason given")
            except PeerError:
                # A target that fails ends.
                why = self._last_words()
            raise PeerError(f"QEMU's migration ended as {ended['status']}: {why}")

    def figures(self) -> dict[str, Any]:
        """``query-migrate``."""
        found = self.qmp.execute("query-migrate")
        assert isinstance(found, dict)
        return found

    def sent_changes(self) -> None:
        """Wait until a page has gone as what changed in it (XBZRLE), or the migration is over."""
        ends = time.monotonic() + PATIENCE
        while (figures := self.figures())["status"] in ("setup", "active"):
            if figures.get("xbzrle-cache", {}).get("pages"):
                return
            if time.monotonic() > ends:
                raise PeerError("QEMU sends no page by XBZRLE")
            time.sleep(_LOOK)

    def trace(self) -> list[Event]:
        """What it has traced, by its clock."""
        return parse(self._trace.read_text(errors="replace"))

    # --- The end ------------------------------------------------------------------------------

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.kill()
        self._process.wait()
        self.qmp.close()
