"""Saving sessions, and what becomes of their streams at the other VF."""

import errno
import itertools
import select
from collections.abc import Iterator
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.backends.vfio_guest import VfioBus
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.bringup import run
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.commands import AllocPdOut, Inbox, Opcode
from precopy.mlx5_abi.status import Status
from precopy.vfio.device import MigrationFile
from tests.lab.inside import enter, outcome, state
from tests.lab.mlx5.vf import (
    LONG,
    ODD,
    Marks,
    S,
    counts,
    info,
    load,
    move_guest,
    new_qps,
    power_on,
    read_all,
    read_some,
    records,
    saved,
)


def about(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    who = source.identity
    return {
        "ids": [who.vendor_id, who.device_id],
        "stream": who.stream,
        "driver": who.driver,
        "flags": int(source.migration_flags),
        "features": {each.name: int(has) for each, has in source.features().items()},
        "state": state(source),
    }


def data_size(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    return outcome(source.data_size)


def _descent(file: MigrationFile) -> Iterator[tuple[bytes, list[int]]]:
    """Read to the temporary end in odd pieces; each piece with what the driver says after it."""
    for size in itertools.cycle(ODD):
        try:
            piece = read_some(file, size)
        except OSError as error:
            assert error.errno == errno.ENOMSG
            return
        yield piece, info(file)


def images(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """PRE_COPY with a guest at work: initial, middle and final images, into the other VF."""
    told: dict[str, Any] = {"data size": source.data_size()}
    guest = power_on(source)
    guest.step(40)
    marks("images: enter PRE_COPY")
    file = enter(source, S.PRE_COPY)
    told["poll at first"] = file.poll(timeout=LONG)
    marks("images: read it")
    told["at first"] = info(file)
    pieces, told["falls"] = [], []
    for piece, now in _descent(file):
        pieces.append(piece)
        told["falls"].append([len(piece), *now])
    told["at the end"] = info(file)
    told["poll at the end"] = file.poll(timeout=0)
    stream = b"".join(pieces)
    told["middle"] = []
    for _ in range(3):
        guest.step(8)
        marks(f"images: middle {len(told['middle'])}")
        dirty = info(file)
        ready = file.poll(timeout=LONG)
        data, end = read_all(file, ODD)
        stream += data
        told["middle"].append([*dirty, ready, len(data), end])
    guest.step(8)
    marks("images: enter PRE_COPY_P2P")
    source.set_state(S.PRE_COPY_P2P)
    told["in PRE_COPY_P2P"] = info(file)
    # Nothing goes out now: it is under way, and goes on at the target.
    guest.step(2)
    marks("images: enter STOP_COPY")
    source.set_state(S.STOP_COPY)
    told["info in STOP_COPY"] = outcome(lambda: info(file))
    data, told["end"] = read_all(file, ODD)
    told["reads at the end"] = [len(read_some(file, 9)) for _ in range(3)]
    told["poll at the permanent end"] = file.poll(timeout=0)
    told["final"] = len(data)
    stream += data
    told["records"] = records(stream)
    marks("images: leave STOP_COPY")
    source.set_state(S.STOP)
    told["read when it is over"] = outcome(lambda: read_some(file, 9))
    told["info when it is over"] = outcome(lambda: info(file))
    told["poll when it is over"] = file.poll(select.POLLIN, timeout=0)
    file.close()
    marks("images: load")
    load(target, stream, ODD)
    marks("images: run")
    guest = move_guest(guest, target)
    target.set_state(S.RUNNING)
    guest.step(40)
    told["guest"] = counts(guest)
    return told


def unread(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """PRE_COPY to STOP_COPY at once, nothing read before."""
    guest = power_on(source)
    guest.step(8)
    file = enter(source, S.PRE_COPY)
    guest.step(8)
    marks("unread: enter STOP_COPY")
    source.set_state(S.STOP_COPY)
    data, end = read_all(file)
    file.close()
    marks("unread: load")
    load(target, data)
    marks("unread: loaded")
    guest = move_guest(guest, target)
    target.set_state(S.RUNNING)
    guest.step(8)
    return {"end": end, "records": records(data), "guest": counts(guest)}


def plain(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """STOP_COPY without PRE_COPY."""
    guest = power_on(source)
    guest.step(8)
    source.set_state(S.STOP)
    marks("plain: data size")
    size = source.data_size()
    marks("plain: enter STOP_COPY")
    file = enter(source, S.STOP_COPY)
    data, end = read_all(file, ODD)
    file.close()
    marks("plain: leave STOP_COPY")
    source.set_state(S.STOP)
    marks("plain: load")
    load(target, data)
    marks("plain: loaded")
    # A device that has been loaded can be saved: the same state.
    again = saved(target)
    marks("plain: run")
    guest = move_guest(guest, target)
    target.set_state(S.RUNNING)
    guest.step(8)
    return {
        "data size": size,
        "end": end,
        "records": records(data),
        "again": records(again),
        "guest": counts(guest),
    }


def cancel(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Back from PRE_COPY and PRE_COPY_P2P, with nothing, something and all of it read."""
    guest = power_on(source)
    told: dict[str, Any] = {}
    for origin in (S.PRE_COPY, S.PRE_COPY_P2P):
        for much in ("nothing", "something", "all"):
            guest.step(8)
            file = enter(source, S.PRE_COPY)
            source.set_state(origin)
            first = info(file)
            if much == "something":
                read_some(file, 100)
            elif much == "all":
                read_all(file)
            marks(f"cancel: {origin.name}, {much}")
            source.set_state(S.RUNNING)
            told[f"{origin.name}, {much}"] = [
                first[0] > 24,
                state(source),
                outcome(lambda: read_some(file, 9)),  # noqa: B023
                file.poll(timeout=0),
            ]
            file.close()
    marks("cancel: after all")
    guest.step(8)
    told["guest"] = counts(guest)
    return told


def no_image(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """A save in PRE_COPY that the firmware says can't be made now: the first, and a later one."""
    told: dict[str, Any] = {}
    guest = power_on(source)
    for name in ("first", "later"):
        guest.step(4)
        if name == "first":
            marks.remote.plan(Opcode.SAVE_VHCA_STATE, 1, Status.BAD_RES_STATE)
        file = enter(source, S.PRE_COPY)
        size, end = len(read_all(file)[0]), ""
        if name == "later":
            guest.step(4)
            marks.remote.plan(Opcode.SAVE_VHCA_STATE, 1, Status.BAD_RES_STATE)
            info(file)
            end = read_all(file)[1]
        marks(f"no image: {name}")
        told[name] = [size > 24, end, info(file), file.poll(timeout=0)]
        told[name] += [outcome(lambda: source.set_state(S.RUNNING)), state(source)]
        if state(source) == "PRE_COPY":
            source.set_state(S.STOP_COPY)
            told["in the end"] = records(read_all(file)[0])
            source.set_state(S.RUNNING)
        file.close()
    guest.step(4)
    told["guest"] = counts(guest)
    return told


def reinit(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """New initial state in PRE_COPY, with and without MIG_PRECOPY_INFO_V2."""
    told: dict[str, Any] = {}
    port = PciPort(VfioBus(source))
    guest = WorkloadGuest.power_on(port, WorkloadConfig(pairs=4, active=4, rate=0))
    pd_out = run(port, Opcode.ALLOC_PD, Inbox())
    assert isinstance(pd_out, AllocPdOut)
    file = enter(source, S.PRE_COPY)

    def drain() -> list[Any]:
        assert file.poll(timeout=LONG)
        data, end = read_all(file)
        return [len(data), end]

    drain()
    new_qps(port, pd_out.pd, 512)
    marks("reinit: without INFOv2")
    told["without INFOv2"] = [info(file), drain(), info(file)]
    source.enable_precopy_info_v2()
    new_qps(port, pd_out.pd, 500)
    marks("reinit: too little")
    told["too little"] = [info(file), drain(), info(file)]
    new_qps(port, pd_out.pd, 512)
    marks("reinit: drained")
    told["drained"] = [info(file)]
    assert file.poll(timeout=LONG)
    told["then"] = [[len(read_some(file, 1000)), *info(file)] for _ in range(2)]
    new_qps(port, pd_out.pd, 512)
    marks("reinit: not drained")
    told["not drained"] = [info(file), drain(), info(file)]
    guest.step(8)
    told["changes"] = [info(file), drain()]
    new_qps(port, pd_out.pd, 512)
    source.set_state(S.PRE_COPY_P2P)
    told["in PRE_COPY_P2P"] = info(file)
    source.set_state(S.PRE_COPY)
    told["back in PRE_COPY"] = [info(file), drain()]
    source.set_state(S.RUNNING)
    file.close()
    source.reset()
    with enter(source, S.PRE_COPY) as file:
        told["after a reset"] = info(file)[2]
    guest.close()
    return told
