"""Runs in a lab kernel: asks its devices for all that they do, and prints it as JSON.

    python -m tests.lab.inside facts UUID UUID
    python -m tests.lab.inside noiommu VF VF
    python -m tests.lab.inside moves UUID...
    python -m tests.lab.inside set UUID HEX
    python -m tests.lab.inside get UUID COUNT

What is right and wrong is decided outside, in test_kernel_backend.py.
"""

import errno
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from precopy.vfio.device import DmaRange, MigrationFile
from precopy.vfio.states import DeviceState, MigrationFlags, path

S = DeviceState
ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
PAGE = 4096

#: Registers of a port: what it has received (and sends), and one that only keeps a byte.
RX, SCRATCH = 0, 7


def outcome(call: Callable[[], object]) -> Any:
    """What a call gave, or the name of its errno."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno or errno.EIO]


def state(device: KernelVfioDevice) -> str:
    return device.state.name


def enter(device: KernelVfioDevice, new: int) -> MigrationFile:
    file = device.set_state(new)
    assert file is not None
    return file


def read(file: MigrationFile, size: int = 4096) -> str:
    buffer = bytearray(size)
    return bytes(buffer[: file.readinto(buffer)]).hex()


def saved(device: KernelVfioDevice) -> bytes:
    device.reset()
    with enter(device, S.STOP_COPY) as file:
        data = bytes.fromhex(read(file))
    device.reset()
    return data


# --- Facts ----------------------------------------------------------------------------------------


class Walker:
    """Takes a device from state to state; a state that is to be left again has all that it needs."""

    def __init__(self, device: KernelVfioDevice) -> None:
        self.device = device
        self.content = saved(device)
        self.files: list[MigrationFile] = []

    def start(self, origin: DeviceState) -> None:
        while self.files:
            self.files.pop().close()
        self.device.reset()
        if self.ask(origin) and origin is S.RESUMING:
            self.files[-1].write(self.content)

    def ask(self, new: int) -> bool:
        """Go to ``new``; whether a file was handed out."""
        file = self.device.set_state(new)
        if file is not None:
            self.files.append(file)
        return file is not None

    def at_once(self, origin: DeviceState, new: int) -> Any:
        self.start(origin)
        return [outcome(lambda: self.ask(new)), state(self.device)]

    def step_by_step(self, origin: DeviceState, new: int) -> Any:
        self.start(origin)
        return outcome(
            lambda: [[self.ask(step), state(self.device)] for step in path(origin, new, ALL)]
        )


def arcs(device: KernelVfioDevice) -> Any:
    """Every ordered pair of states: asked for at once, and walked one arc at a time."""
    walker = Walker(device)
    found = {
        f"{int(origin)} {int(new)}": [
            *walker.at_once(origin, new),
            walker.step_by_step(origin, new),
        ]
        for origin in DeviceState
        if origin is not S.ERROR
        for new in (*DeviceState, 8)
    }
    walker.start(S.RUNNING)
    return found


def stream(device: KernelVfioDevice) -> Any:
    """A saving session from its beginning to after its end."""
    device.reset()
    told: dict[str, Any] = {}

    def note(name: str, call: Callable[[], object]) -> None:
        told[name] = outcome(call)

    def info() -> Any:
        now = file.precopy_info()
        return [now.initial_bytes, now.dirty_bytes, int(now.flags)]

    file = enter(device, S.PRE_COPY)
    note("info at first", info)
    note("poll at first", lambda: file.poll(timeout=0))
    note("write to a saving file", lambda: file.write(b"x"))
    note("10 bytes", lambda: read(file, 10))
    note("info then", info)
    note("the rest", lambda: read(file))
    note("info at the temporary end", info)
    note("read at the temporary end", lambda: read(file))
    device.enable_precopy_info_v2()
    device.reset()
    note("read after a reset", lambda: read(file))
    file.close()
    file = enter(device, S.PRE_COPY)
    note("info with INFOv2, after a reset", info)
    device.set_state(S.PRE_COPY_P2P)
    note("info in PRE_COPY_P2P", info)
    note("header", lambda: read(file))
    device.set_state(S.STOP_COPY)
    note("info in STOP_COPY", info)
    note("content", lambda: read(file))
    note("reads at the permanent end", lambda: [read(file) for _ in range(3)])
    note("poll at the permanent end", lambda: file.poll(timeout=0))
    device.set_state(S.STOP)
    note("read when it is over", lambda: read(file))
    note("info when it is over", info)
    # mtty has no poll of its own, so the kernel says that everything is possible.
    note("poll when it is over", lambda: file.poll(select.POLLIN, timeout=0))
    device.set_state(S.RUNNING)
    with enter(device, S.PRE_COPY):
        note("info of an old file in a new session", info)
    file.close()
    device.reset()
    return told


def resuming(device: KernelVfioDevice) -> Any:
    """What mtty takes, and what it refuses."""
    content = saved(device)

    def load(*pieces: bytes) -> Any:
        with enter(device, S.RESUMING) as file:
            wrote = outcome(lambda: sum(file.write(each) for each in pieces))
            left = outcome(lambda: device.set_state(S.STOP))
            stands = state(device)
        device.reset()
        return [wrote, left, stands, state(device)]

    told = {
        "nothing": load(),
        "all but one byte": load(content[:-1]),
        "another magic": load(b"\0" + content[1:]),
        "too much": load(content + b"\0"),
        "whole": load(content),
        "byte by byte": load(*(content[n : n + 1] for n in range(len(content)))),
    }
    with enter(device, S.RESUMING) as file:
        told["read"] = outcome(lambda: read(file))
        told["info"] = outcome(file.precopy_info)
    device.reset()
    return told


def resets(device: KernelVfioDevice) -> Any:
    """From every state: where it leads, and what is left of the data_fd."""

    def reset(origin: DeviceState) -> Any:
        device.reset()
        file = device.set_state(origin)
        device.reset()
        if file is None:
            return [state(device), None]
        with file:
            resumed = origin is S.RESUMING
            dead = outcome(lambda: file.write(b"x") if resumed else read(file))
        return [state(device), dead]

    return {origin.name: reset(origin) for origin in DeviceState if origin is not S.ERROR}


def logging(device: KernelVfioDevice) -> Any:
    """mtty answers each call with success; what is refused, the VFIO core refuses."""

    def start(*ranges: tuple[int, int], page_size: int = PAGE) -> Any:
        return outcome(lambda: device.log_start([DmaRange(*each) for each in ranges], page_size))

    def report(iova: int, length: int, page_size: int, size: int) -> Any:
        bitmap = bytearray(b"\xa5" * size)
        told = outcome(lambda: device.log_report(iova, length, page_size, memoryview(bitmap)))
        return told or ("kept" if bitmap == b"\xa5" * size else bitmap.hex())

    top = 1 << 64
    many = [(n * PAGE, PAGE) for n in range(257)]
    return {
        "start": start((0, PAGE)),
        "start again": start((PAGE, PAGE)),
        "start with 256 ranges": start(*many[:256]),
        "start with 257 ranges": start(*many),
        "start with none": start(),
        "start askew": start((1, PAGE)),
        "start with an overlap": start((0, 2 * PAGE), (PAGE, PAGE)),
        "start beyond the end": start((top - PAGE, PAGE)),
        "report": report(0, 100 * PAGE, PAGE, 13),
        "report of nothing": report(0, 0, PAGE, 3),
        "report of small pages": report(0, PAGE, 2048, 1),
        "report of odd pages": report(0, 3 * PAGE, 3 * PAGE, 1),
        "report beyond the end": report(PAGE, top - PAGE, PAGE, 8),
        "stop": outcome(device.log_stop),
        "stop again": outcome(device.log_stop),
        "report without a log": report(0, PAGE, PAGE, 1),
    }


def regions(device: KernelVfioDevice) -> Any:
    return {
        "ids": device.region_read(7, 0, 4).hex(),
        "beyond BAR 0": outcome(lambda: device.region_read(0, 8, 1)),
        "no BAR 2": outcome(lambda: device.region_read(2, 0, 1)),
        "no region 9": outcome(lambda: device.region_read(9, 0, 1)),
    }


def about(device: KernelVfioDevice) -> Any:
    who = device.identity
    return {
        "ids": [who.vendor_id, who.device_id],
        "stream": who.stream,
        "needs": sorted(who.needs),
        "flags": int(device.migration_flags),
        "features": {each.name: int(has) for each, has in device.features().items()},
        "state": state(device),
        "data size": device.data_size(),
    }


def _open_files() -> list[str]:
    links = (os.readlink(f"/proc/self/fd/{each.name}") for each in os.scandir("/proc/self/fd"))
    return sorted(each for each in links if "vfio" in each or "iommu" in each)


def try_open(name: str) -> Any:
    """What is open when ``name`` is, and its node; or what was in the way."""
    try:
        with open_kernel_device(name) as device:
            return [_open_files(), device.identity.details["node"], state(device)]
    except OSError as error:
        return [errno.errorcode[error.errno or errno.EIO], error.strerror]


def _ways(uuid: str) -> Any:
    """How a device is reached, by what is open then, and who is kept out."""
    told: dict[str, Any] = {}
    for way in ("", "?attach=cdev", "?attach=group"):
        told[f"free{way}"] = try_open(f"vfio:{uuid}{way}")
        for other in ("cdev", "group"):
            with open_kernel_device(f"{uuid}?attach={other}"):
                told[f"taken by {other}{way}"] = try_open(uuid + way)
    node = told["free"][1]
    told["by its node"] = try_open(node)
    told["after all"] = _open_files()
    os.unlink("/dev/vfio/vfio")
    told["no container"] = try_open(f"{uuid}?attach=group")
    os.unlink(node)
    told["no cdev"] = try_open(uuid)
    told["no cdev, asked for"] = try_open(f"{uuid}?attach=cdev")
    os.unlink("/dev/iommu")
    told["nothing"] = try_open(uuid)
    return told


FACTS: dict[str, Callable[[KernelVfioDevice], Any]] = {
    "about": about,
    "arcs": arcs,
    "stream": stream,
    "resuming": resuming,
    "resets": resets,
    "logging": logging,
    "regions": regions,
}


def facts(first: str, second: str) -> Any:
    with open_kernel_device(first) as device:
        told = {name: fact(device) for name, fact in FACTS.items()}
    told["ways"] = _ways(second)
    # Both are there; neither can be opened any more.
    told["devices"] = json.loads(_precopy("devices", "--json").stdout)["devices"]
    told["table"] = _precopy("devices").stdout.splitlines()
    return told


def noiommu(first: str, second: str) -> Any:
    """VFs that no IOMMU stands before, by both ways and both kinds of container."""
    one, other = f"vfio:{first}?attach=group", f"vfio:{second}?attach=group"
    told = {
        "free": try_open(f"vfio:{first}"),
        "by group": try_open(one),
        "moved": _move(one, other),
    }
    os.unlink("/dev/vfio/vfio")
    told["no container"] = try_open(one)
    told["moved without a container"] = _move(other, one, "--no-precopy")
    return told


# --- Content --------------------------------------------------------------------------------------


def fill(device: KernelVfioDevice, content: bytes) -> None:
    """Two scratch registers, then what a port has received."""
    for port in (0, 1):
        device.region_write(port, SCRATCH, content[port : port + 1])
    for byte in content[2:]:
        device.region_write(0, RX, bytes([byte]))


def drain(device: KernelVfioDevice, count: int) -> bytes:
    content = b"".join(device.region_read(port, SCRATCH, 1) for port in (0, 1))
    return content + b"".join(device.region_read(0, RX, 1) for _ in range(count))


def _precopy(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "precopy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _move(source: str, target: str, *options: str) -> Any:
    """The report of ``precopy migrate``, or its complaint."""
    done = _precopy("migrate", "--json", "--progress", "none", *options, source, target)
    return done.stderr if done.returncode else json.loads(done.stdout)


#: How a device is moved: the options of the command, and behind both names.
MOVES = {
    "PRE_COPY": ((), ""),
    "no PRE_COPY": (("--no-precopy",), ""),
    "PRE_COPY by group": ((), "?attach=group"),
    "no PRE_COPY by group": (("--no-precopy",), "?attach=group"),
}


def moves(*uuids: str) -> Any:
    told = {}
    for number, (name, (options, attach)) in enumerate(MOVES.items()):
        source, target = (f"{each}{attach}" for each in uuids[2 * number : 2 * number + 2])
        content = f"{number}~moves".encode()
        with open_kernel_device(source) as device:
            fill(device, content)
        report = _move(source, target, *options)
        with open_kernel_device(target) as device:
            arrived = drain(device, len(content) - 2)
            told[name] = [report, arrived.decode(errors="replace"), state(device)]
    return told


def set_content(uuid: str, content: str) -> None:
    with open_kernel_device(uuid) as device:
        fill(device, bytes.fromhex(content))


def get_content(uuid: str, count: str) -> str:
    with open_kernel_device(uuid) as device:
        return drain(device, int(count) - 2).hex()


COMMANDS: dict[str, Callable[..., Any]] = {
    "facts": facts,
    "noiommu": noiommu,
    "moves": moves,
    "set": set_content,
    "get": get_content,
}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
