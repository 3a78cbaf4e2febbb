"""``python -m tests.interop.vfio_user.figures [ROUNDS]``: what the VF costs a guest, in seconds.

Each round is a QEMU of its own, first with memory that the server maps, then with DMA over the
socket. Medians, with the least and the most in brackets.
"""

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from precopy.lab import LabError, guest_kernel
from precopy.lab.guest_kernel import GuestKernel
from precopy.lab.qemu import require
from tests.interop.errors import PeerError
from tests.interop.vfio_user import guest
from tests.interop.vfio_user.machine import INIT, Machine
from tests.interop.vfio_user.served import Served

ROUNDS = 5

Times = dict[str, list[float]]


def _timed(times: Times, what: str, work: Callable[[], object]) -> None:
    began = time.monotonic()
    work()
    times[what].append(time.monotonic() - began)


def _round(
    times: Times, qemu: Path, kernel: GuestKernel, initramfs: Path, work: Path, share: bool
) -> None:
    with Served(work) as served:
        began = time.monotonic()
        with Machine(qemu, kernel, initramfs, served, work, share=share) as machine:
            times["QEMU until the guest's shell"].append(time.monotonic() - began)
            _timed(times, "an empty command in the shell", lambda: machine.run("true"))
            _timed(times, "mlx5_core loaded and probed", lambda: guest.load(machine))
            _timed(times, "unbind", lambda: guest.unbind(machine))
            _timed(times, "reset", lambda: machine.run(f"echo 1 >{guest.device(machine)}/reset"))
            _timed(times, "bind", lambda: guest.bind(machine))
            guest.works(machine)

            def reboot() -> None:
                machine.send("reboot -f")
                machine.booted()

            _timed(times, "reboot until the shell", reboot)


def main(arguments: list[str]) -> int:
    try:
        rounds = int(arguments[0]) if arguments else ROUNDS
        qemu, kernel = require(), GuestKernel(guest_kernel.require())
        with tempfile.TemporaryDirectory(prefix="precopy-qemu-") as directory:
            work = Path(directory)
            initramfs = work / "initramfs"
            initramfs.write_bytes(kernel.initramfs(INIT, ["mlx5_core"]))
            for share in (True, False):
                times: Times = defaultdict(list)
                for _ in range(rounds):
                    _round(times, qemu, kernel, initramfs, work, share)
                print(f"{qemu.name}, {kernel.release}, DMA {'mapped' if share else 'by socket'}:")
                for what, found in times.items():
                    middle = statistics.median(found)
                    print(f"  {what:42} {middle:6.3f} ({min(found):.3f}-{max(found):.3f})")
    except (LabError, PeerError) as error:
        print(f"precopy: lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
