"""The first process of a lab kernel: mounts, devices, the command, power-off.

Standing alone: it is copied beside its ``job.json`` and started by the kernel, with nothing of the
package. Output goes to files beside it, which are the host's.
"""

import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback

_POWER_OFF = 0x4321FEDC
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8913, 0x8914
_IFF_UP = 1

#: Seconds in which a kernel that is well is off.
_SHUTDOWN = 10

_libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, where: str) -> None:
    if _libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None):
        code = ctypes.get_errno()
        # The kernel mounts some by itself.
        if code != errno.EBUSY:
            raise OSError(code, f"mounting {where}")


def configure(interface: str, address: str) -> None:
    """Give ``interface`` an address (its network has 24 bits) and bring it up."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as handle:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
            packed = struct.pack("16sHH4s8x", name, socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(handle, request, packed)
        answer = fcntl.ioctl(handle, _SIOCGIFFLAGS, struct.pack("16sH14x", name, 0))
        flags = struct.unpack_from("16sH", answer)[1]
        fcntl.ioctl(handle, _SIOCSIFFLAGS, struct.pack("16sH14x", name, flags | _IFF_UP))


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def add_vfs(count: int) -> None:
    """Switch SR-IOV on and give the VFs to mlx5_vfio_pci."""
    pf = "/sys/bus/pci/devices/0000:00:00.0"
    write(f"{pf}/sriov_drivers_autoprobe", "0")
    write(f"{pf}/sriov_numvfs", str(count))
    for index in range(count):
        vf = os.path.basename(os.path.realpath(f"{pf}/virtfn{index}"))
        write(f"/sys/bus/pci/devices/{vf}/driver_override", "mlx5_vfio_pci")
        write("/sys/bus/pci/drivers_probe", vf)


def prepare(job: dict) -> None:  # type: ignore[type-arg]
    mount("proc", "/proc")
    mount("sysfs", "/sys")
    mount("devtmpfs", "/dev")
    os.makedirs("/dev/shm", exist_ok=True)
    mount("tmpfs", "/dev/shm")
    mount("tmpfs", "/run")
    mount("debugfs", "/sys/kernel/debug")
    configure("lo", "127.0.0.1")
    if job["address"]:
        configure("vec0", job["address"])
    write("/sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "1")
    if job["vfs"]:
        add_vfs(job["vfs"])
    for uuid in job["mtty"]:
        write("/sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-2/create", uuid)


def run(job: dict, here: str) -> int:  # type: ignore[type-arg]
    environment = {**job["env"], "TMPDIR": "/dev/shm"}
    with open(f"{here}/out", "ab") as out, open(f"{here}/err", "ab") as err:
        try:
            done = subprocess.run(
                job["command"],
                cwd=job["cwd"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                check=False,
            )
        except OSError as error:
            err.write(f"precopy: lab: {job['command'][0]}: {error.strerror}\n".encode())
            return 127 if isinstance(error, FileNotFoundError) else 126
    # A shell's way to tell of a signal.
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def collect(into: str) -> None:
    """Copy what the kernel has counted of its drivers, before they are shut down."""
    os.mkdir(into)
    for directory, _, names in os.walk("/sys/kernel/debug/gcov"):
        for name in names:
            if name.endswith(".gcda"):
                shutil.copyfile(f"{directory}/{name}", f"{into}/{name}")


def watch_shutdown() -> None:
    """Let the kernel write where it hangs, if it is not off soon: it hears nobody outside any more."""
    if os.fork() == 0:
        time.sleep(_SHUTDOWN)
        # The level of the console; all tasks.
        for key in "8t":
            write("/proc/sysrq-trigger", key)
        os._exit(0)


def main() -> None:
    here = os.path.dirname(os.path.abspath(sys.argv[0]))
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    status = 125
    try:
        with open(f"{here}/job.json") as file:
            job = json.load(file)
        prepare(job)
        status = run(job, here)
        if job["coverage"]:
            collect(f"{here}/coverage")
    except BaseException:
        with open(f"{here}/err", "a") as err:
            err.write(f"precopy: lab: init failed: {traceback.format_exc().splitlines()[-1]}\n")
    finally:
        # Who sees it sees all of it, and all that has been written before.
        with open(f"{here}/status.new", "w") as file:
            file.write(str(status))
        os.sync()
        os.rename(f"{here}/status.new", f"{here}/status")
        watch_shutdown()
        _libc.reboot(_POWER_OFF)


if __name__ == "__main__":
    main()
