"""DMA logging: which pages a VF writes, as the driver tells it."""

import os
import time
from collections.abc import Callable
from typing import Any

from precopy.backends.kernel import KernelVfioDevice, open_kernel_device
from precopy.backends.vfio_guest import VfioBus
from precopy.guest import WorkloadConfig, WorkloadGuest
from precopy.guest.pci_port import PciPort
from precopy.mlx5_abi.commands import Opcode
from precopy.mlx5_abi.status import Status
from precopy.vfio.device import DmaRange
from tests.lab.inside import outcome, state
from tests.lab.mlx5.actions import MUCH, PLACES, Action
from tests.lab.mlx5.vf import VFS, Marks, S

PAGE = 4096
#: Messages of two pages, so that a page can be told from its neighbours.
CONFIG = WorkloadConfig(pairs=4, active=4, rate=0, size=8192)
BEGIN, LENGTH = CONFIG.region
WHOLE = (BEGIN, LENGTH)
FIRST_GIBS = (0, MUCH)

#: Parts of the guest's memory with gaps between them.
PARTS = [(BEGIN + 0x10000, 0x8000), (BEGIN + 0x40000, 0x10000), (BEGIN + 0x60000, 0x1000)]
#: Four more of them than the card tracks: it is asked to track the four smallest gaps, too.
_BEHIND = ((16, 9), (35, 8), (46, 4), (61, 7), (71, 4), (86, 7), (96, 4), (111, 3))
_BETWEEN = ((26, 6), (51, 6), (76, 6), (101, 6))
MANY = [(BEGIN + first * PAGE, count * PAGE) for first, count in sorted(_BEHIND + _BETWEEN)]
SMALL_GAPS = [(BEGIN + page * PAGE, PAGE) for page in (25, 50, 75, 100)]


def power_on(device: KernelVfioDevice) -> WorkloadGuest:
    return WorkloadGuest.power_on(PciPort(VfioBus(device)), CONFIG)


def start(
    device: KernelVfioDevice, *ranges: tuple[int, int], page_size: int = PAGE
) -> int | str | Any:
    return outcome(lambda: device.log_start([DmaRange(*each) for each in ranges], page_size))


def report(
    device: KernelVfioDevice, where: tuple[int, int], page_size: int = PAGE, fill: int = 0
) -> Any:
    """The bitmap as it is in memory, or the name of an errno."""
    pages = -(-where[1] // page_size)
    bitmap = bytearray([fill]) * (-(-pages // 64) * 8)
    failed = outcome(lambda: device.log_report(*where, page_size, memoryview(bitmap)))
    return failed or bitmap.hex()


def bits(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """All of a guest's memory, page by page; two VFs at once."""
    guests = [power_on(source), power_on(target)]
    told: dict[str, Any] = {"started": [start(source, WHOLE), start(target, WHOLE)]}
    marks("bits: first")
    guests[0].step(20)
    guests[1].step(5)
    told["first"] = [report(source, WHOLE), report(target, WHOLE)]
    told["again"] = [report(source, WHOLE), report(target, WHOLE)]
    marks("bits: second")
    guests[0].step(3)
    # What is set stays set, and what is behind the last page is not touched.
    told["second, on ones"] = report(source, (BEGIN, 100 * PAGE), fill=0xFF)
    guests[1].step(1)
    marks("bits: third")
    guests[0].step(3)
    told["third"] = [report(source, WHOLE), report(target, WHOLE)]
    told["stopped"] = [outcome(source.log_stop), outcome(source.log_stop)]
    told["after it"] = report(source, WHOLE)
    told["the other"] = report(target, WHOLE)
    for guest in guests:
        guest.close()
    return told


def windows(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Ranges, windows of a report, sizes of pages in the log and in the report."""
    guest = power_on(source)
    told: dict[str, Any] = {}

    def log(name: str, *ranges: tuple[int, int], page_size: int = PAGE) -> None:
        marks(f"windows: {name}")
        told[name] = [start(source, *ranges, page_size=page_size)]
        guest.step(12)

    log("parts", *PARTS)
    told["parts"] += [report(source, WHOLE), report(source, WHOLE)]
    source.log_stop()
    log("many", *MANY)
    told["many"] += [report(source, WHOLE)]
    source.log_stop()
    log("halves", WHOLE)
    half = LENGTH // 2 // PAGE // 2 * PAGE
    told["halves"] += [
        report(source, (BEGIN, half)),
        report(source, (BEGIN, half)),
        report(source, (BEGIN + half, LENGTH - half)),
        report(source, WHOLE),
    ]
    source.log_stop()
    for size in (1 << 10, 1 << 16, 1 << 21):
        name = f"pages of {size}"
        log(name, WHOLE, page_size=size)
        told[name] += [report(source, WHOLE, 1 << 16)]
        source.log_stop()
    log("large pages of small ones", WHOLE)
    told["large pages of small ones"] += [report(source, WHOLE, 1 << 16)]
    source.log_stop()
    guest.close()
    return told


def refusals(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """What can't be logged, by the driver or already by the core."""
    top = 1 << 64
    told = {
        # The first log makes an EQ for its completions, which then stays.
        "no EQ": _failing(marks, source, Opcode.CREATE_EQ),
        "no log": report(source, WHOLE),
        "stop without one": outcome(source.log_stop),
        "no ranges": start(source),
        "not whole pages": start(source, (1, PAGE)),
        "no page size": start(source, WHOLE, page_size=0),
        "an overlap": start(source, (0, 2 * PAGE), (PAGE, PAGE)),
        "beyond the end": start(source, (top - PAGE, PAGE)),
        "257 ranges": start(source, *((n * PAGE, PAGE) for n in range(257))),
        # 2 to the power of 64, rounded up, is more than the card can track.
        "more than half of all": start(source, (0, (top >> 1) + PAGE)),
        "half of all": start(source, (0, top >> 1)),
        "a second log": start(source, WHOLE),
        "small pages": report(source, WHOLE, 2048),
        "odd pages": report(source, (BEGIN, 3 * PAGE), 3 * PAGE),
        "report beyond the end": report(source, (top - PAGE, PAGE)),
        "256 ranges": [
            outcome(source.log_stop),
            start(source, *((n * 2 * PAGE, PAGE) for n in range(256))),
        ],
    }
    source.log_stop()
    return told


def _failing(marks: Marks, device: KernelVfioDevice, opcode: Opcode) -> list[Any]:
    marks.remote.plan(opcode, 1, Status.INT_ERR)
    told = [start(device, WHOLE), start(device, WHOLE)]
    device.log_stop()
    marks.remote.clear()
    return told


def lasting(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """A log goes on whatever state its device is in, and ends with it."""
    guest = power_on(source)
    told: dict[str, Any] = {"started": start(source, WHOLE)}
    marks("lasting: states")
    for new in (S.RUNNING_P2P, S.STOP, S.RUNNING, S.PRE_COPY, S.RUNNING):
        file = source.set_state(new)
        if file is not None:
            file.close()
        guest.step(1)
    told["states"] = report(source, WHOLE)
    guest.close()
    source.reset()
    told["reset"] = report(source, WHOLE)
    guest = power_on(source)
    marks("lasting: after a reset")
    guest.step(4)
    told["after a reset"] = report(source, WHOLE)
    guest.close()
    with open_kernel_device(VFS[2]) as device:
        told["on another VF"] = start(device, WHOLE)
    with open_kernel_device(VFS[2]) as device:
        told["closed"] = report(device, WHOLE)
    return told


def much(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Reports of many messages, more than there are receive entries for."""
    told: dict[str, Any] = {"started": start(source, FIRST_GIBS)}
    marks.act(Action.WRITE_MUCH)
    marks("much: all")
    found = report(source, FIRST_GIBS)
    told["all"] = found.strip("f") == "" and len(found) * 4 * PAGE
    marks("much: done")
    told["again"] = report(source, FIRST_GIBS).strip("0")
    marks.act(Action.WRITE_HERE_AND_THERE)
    end = max(address + length for address, length in PLACES)
    told["here and there"] = report(source, (0, -(-end // PAGE) * PAGE))
    source.log_stop()
    return told


#: What happens to the log of a tracker that is in good order.
TROUBLES = (
    Action.BREAK_RECEIVER,
    Action.CQ_ERROR,
    Action.WQ_CATAS_ERROR,
    Action.WQ_ACCESS_ERROR,
    Action.WQ_INVAL_REQ_ERROR,
    Action.OTHERS,
)


def _troubled(marks: Marks, device: KernelVfioDevice, action: Action) -> list[Any]:
    """A report after the trouble, another, and whether a new log is as good as ever."""
    device.log_start([DmaRange(*FIRST_GIBS)], PAGE)
    marks.act(Action.WRITE_HERE_AND_THERE)
    marks.act(action)
    told = [_short(report(device, FIRST_GIBS)) for _ in range(2)]
    device.log_stop()
    device.log_start([DmaRange(*FIRST_GIBS)], PAGE)
    marks.act(Action.WRITE_HERE_AND_THERE)
    told.append(_short(report(device, FIRST_GIBS)))
    device.log_stop()
    return told


def _short(bitmap: str) -> str:
    """An errno, or what a bitmap holds: something or nothing."""
    return bitmap if bitmap.startswith("E") else "pages" if bitmap.strip("0") else "none"


def troubles(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Queues of the log that fail."""
    return {each.name: _troubled(marks, source, each) for each in TROUBLES}


def heard(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """A report that breaks off, on a card whose driver hears of objects that change."""
    told = {"asked": _troubled(marks, source, Action.BREAK_SENDER)}
    marks.remote.plan(Opcode.QUERY_GENERAL_OBJECT, 1, Status.BAD_RES)
    told["not told"] = _troubled(marks, source, Action.BREAK_SENDER)
    return told


def unheard(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """The same where it does not: what of it is still waiting after an hour."""
    source.log_start([DmaRange(*FIRST_GIBS)], PAGE)
    marks.act(Action.WRITE_HERE_AND_THERE)
    marks.act(Action.BREAK_SENDER)
    calls: tuple[Callable[[], object], ...] = (
        lambda: report(source, FIRST_GIBS),
        # Another caller, of whatever it may be.
        lambda: state(source),
    )
    waiting = [_apart(each) for each in calls]
    time.sleep(3600)
    return [os.waitpid(each, os.WNOHANG) == (0, 0) for each in waiting]


def _apart(call: Callable[[], object]) -> int:
    """A process of its own for a call that nothing can end; who waits for it need not wait for ever."""
    process = os.fork()
    if not process:
        call()
        os._exit(0)
    return process
