"""A QEMU with the VF, a Debian kernel in it, and a shell in the guest that runs what it is told.

The kernel's console goes to a file; the shell listens on the second serial port. Whatever does not
answer in time raises PeerError with what the console and the server said last.
"""

import json
import re
import select
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from precopy.lab.guest_kernel import GuestKernel
from precopy.lab.qemu import command
from tests.interop.errors import PeerError
from tests.interop.qmp import Qmp
from tests.interop.vfio_user.served import Served

#: Seconds that a guest may take to boot on an emulated processor, and for one command.
BOOT, ANSWER = 90.0, 60.0

#: Of the guest's console: what is shown where something went wrong.
_LINES = 40

MEMORY = "512M"

#: Seconds between two looks at the console.
_LOOK = 0.05

#: Says that it is there, then runs a line at a time and tells each one's status.
INIT = r"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin
stty -F /dev/ttyS1 raw -echo
exec </dev/ttyS1 >/dev/ttyS1 2>&1
echo "[ready]"
while IFS= read -r line; do
    eval "$line"
    echo "[status $?]"
done
"""

_READY = re.compile(r"\[ready\]\r?\n")
_STATUS = re.compile(r"\[status (\d+)\]\r?\n")


class Machine:
    """A running guest with the VF of ``served``.

    ``share``: the guest's memory is a file that the server maps; without it the device's DMA goes over
    the socket. ``initramfs``: a file of :meth:`GuestKernel.initramfs` with :data:`INIT`. ``boot``: wait
    for its shell, else only for QEMU, which has attached the VF by then. ``port``: there is a port for the VF
    alone, which takes and gives it while the guest runs; ``plugged``: it has it from the start.
    """

    def __init__(
        self,
        tree: Path,
        kernel: GuestKernel,
        initramfs: Path,
        served: Served,
        directory: Path,
        *,
        share: bool = True,
        boot: bool = True,
        port: bool = False,
        plugged: bool = True,
    ) -> None:
        self._served = served
        self._console, self._errors = directory / "console", directory / "qemu.err"
        memory = {True: "memory-backend-memfd,share=on", False: "memory-backend-ram"}[share]
        #: The VF: what QEMU is told of it, and where the guest's kernel finds it.
        self.device: dict[str, Any] = {
            "driver": "vfio-user-pci",
            "socket": {"type": "unix", "path": str(served.socket)},
            "id": "vf",
            **({"bus": "outer"} if port else {}),
        }
        self.address = "0000:01:00.0" if port else "0000:00:01.0"
        ours, shell = socket.socketpair()
        control, qmp = socket.socketpair()
        options = [
            *("-nodefaults", "-accel", "tcg", "-display", "none", "-vga", "none"),
            *("-machine", "q35,memory-backend=ram", "-m", MEMORY),
            *("-object", f"{memory},id=ram,size={MEMORY}"),
            *("-kernel", str(kernel.image), "-initrd", str(initramfs)),
            *("-append", "console=ttyS0 ignore_loglevel panic=-1"),
            *("-chardev", f"file,id=console,path={self._console}", "-serial", "chardev:console"),
            *("-chardev", f"socket,id=shell,fd={shell.fileno()}", "-serial", "chardev:shell"),
            *("-chardev", f"socket,id=qmp,fd={qmp.fileno()}", "-mon", "qmp,mode=control"),
            *(("-device", "pcie-root-port,id=outer") if port else ()),
            *(("-device", json.dumps(self.device)) if plugged else ()),
        ]
        with open(self._errors, "wb") as errors, shell, qmp:
            self._process = subprocess.Popen(
                [*command(tree), *options],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                pass_fds=(shell.fileno(), qmp.fileno()),
            )
        self._shell, self._heard = ours, ""
        try:
            self.qmp = Qmp(control)
            if boot:
                self.booted()
        except PeerError as error:
            self.kill()
            raise PeerError(f"{error}\n{self.last_words()}") from error

    # --- What it says -------------------------------------------------------------------------

    def console(self) -> str:
        """All that the guest's kernel has printed."""
        if not self._console.exists():
            return ""
        return self._console.read_text(errors="replace").replace("\r", "")

    def errors(self) -> str:
        """All that QEMU itself has printed."""
        return self._errors.read_text(errors="replace")

    def last_words(self) -> str:
        console = "\n".join(self.console().splitlines()[-_LINES:])
        return (
            f"the guest's console:\n{console}\nQEMU:\n{self.errors()}\n"
            f"the server:\n{self._served.last_words()}"
        )

    # --- The shell ----------------------------------------------------------------------------

    def booted(self) -> None:
        """Wait until the guest's shell is there (again). PeerError."""
        self._until(_READY, BOOT, "boot")

    def says(self, text: str, *, timeout: float = ANSWER) -> None:
        """Wait until the guest's kernel has printed ``text``. PeerError."""
        ends = time.monotonic() + timeout
        while text not in self.console():
            if time.monotonic() > ends or self._process.poll() is not None:
                raise PeerError(f"the guest did not say {text!r}\n{self.last_words()}")
            time.sleep(_LOOK)

    def word(self, offset: int) -> int:
        """A word of the VF's BAR 0, read as the guest's processor would."""
        (bus,) = self.qmp.execute("query-pci")
        (vf,) = (each for each in bus["devices"] if each["qdev_id"] == "vf")
        base = vf["regions"][0]["address"]
        said = self.qmp.human(f"xp /1wx {base + offset:#x}")
        return int.from_bytes(int(said.rpartition("0x")[2], 16).to_bytes(4, "little"), "big")

    def run(self, line: str, *, timeout: float = ANSWER) -> str:
        """What ``line`` prints in the guest. PeerError where it fails, or ends too late."""
        found, status = self.status(line, timeout=timeout)
        if status:
            raise PeerError(f"{line!r}: status {status}: {found}\n{self.last_words()}")
        return found

    def status(self, line: str, *, timeout: float = ANSWER) -> tuple[str, int]:
        """What ``line`` prints, and its status. PeerError where it ends too late."""
        self.send(line)
        before, found = self._until(_STATUS, timeout, f"answer {line!r}")
        return before.replace("\r", "").strip(), int(found.group(1))

    def send(self, line: str) -> None:
        """Have ``line`` run and wait for nothing."""
        try:
            self._shell.sendall(line.encode() + b"\n")
        except OSError as error:
            raise PeerError(f"QEMU has ended\n{self.last_words()}") from error

    def _until(
        self, pattern: re.Pattern[str], timeout: float, what: str
    ) -> tuple[str, re.Match[str]]:
        ends = time.monotonic() + timeout
        while True:
            found = pattern.search(self._heard)
            if found is not None:
                before, self._heard = self._heard[: found.start()], self._heard[found.end() :]
                return before, found
            readable, _, _ = select.select([self._shell], [], [], max(ends - time.monotonic(), 0))
            if not readable:
                raise PeerError(
                    f"the guest did not {what} within {timeout:g} s; it said {self._heard!r}\n"
                    f"{self.last_words()}"
                )
            try:
                data = self._shell.recv(65536)
            except ConnectionResetError:
                data = b""
            if not data:
                raise PeerError(f"QEMU ended before the guest did {what}\n{self.last_words()}")
            self._heard += data.decode(errors="replace")

    # --- The end ------------------------------------------------------------------------------

    def kill(self) -> None:
        """End QEMU at once (SIGKILL)."""
        self._process.kill()
        self._process.wait()
        self._shell.close()
        if hasattr(self, "qmp"):
            self.qmp.close()

    def __enter__(self) -> "Machine":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.kill()
