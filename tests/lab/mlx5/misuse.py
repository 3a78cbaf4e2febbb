"""What is wrong: streams that a target is to refuse, and system calls that make no sense."""

import ctypes
import errno
import fcntl
import mmap
import os
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.mlx5_abi.records import SIZE_RECORD_BYTES, RecordHeader
from precopy.vfio.uapi import (
    PRECOPY_INFO_SIZE,
    VFIO_DEVICE_RESET,
    VFIO_MIG_GET_PRECOPY_INFO,
    PrecopyInfoStruct,
)
from tests.lab.inside import enter, outcome, state
from tests.lab.mlx5.vf import (
    LONG,
    Marks,
    S,
    descriptor,
    info,
    load,
    power_on,
    read_all,
    read_some,
    write_all,
)


def _record(tag: int, data: bytes, flags: int = 0) -> bytes:
    return RecordHeader(len(data), flags, tag).pack() + data


def refused(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Streams that are wrong, and some that only look so: what a write says, and each arc after it."""
    guest = power_on(source)
    file = enter(source, S.PRE_COPY)
    initial = read_all(file)[0]
    guest.step(8)
    source.set_state(S.STOP_COPY)
    whole = initial + read_all(file)[0]
    file.close()
    image = whole[SIZE_RECORD_BYTES:]
    flipped = bytearray(whole)
    flipped[len(initial) - 1] ^= 1
    streams = {
        "whole": whole,
        "without the size record": image,
        "nothing": b"",
        "half a header": whole[: SIZE_RECORD_BYTES + 7],
        "half an image": whole[: len(initial) // 2],
        "the initial image alone": initial,
        "the final image alone": whole[len(initial) :],
        "images in another order": whole[len(initial) :] + initial,
        "the initial image twice": initial + image,
        "a bit flipped": bytes(flipped),
        "something behind it": whole + b"\0" * 15,
        "an optional record": _record(77, b"", 1) + _record(78, b"x" * 5000, 1) + whole,
        "a mandatory record": _record(77, b"x" * 8) + whole,
        "a record too large": RecordHeader(1 << 32, 0, 0).pack(),
        "an image of 0 bytes": _record(0, b"") + whole,
    }
    told = {}
    for name, data in streams.items():
        target.reset()
        marks(f"refused: {name}")
        with enter(target, S.RESUMING) as into:
            wrote = outcome(lambda: write_all(into, data))  # noqa: B023
            again = outcome(lambda: into.write(b"\0"))
            stop = outcome(lambda: target.set_state(S.STOP))
        run_ = outcome(lambda: target.set_state(S.RUNNING))
        told[name] = [wrote, again, stop, run_, state(target)]
    target.reset()
    load(target, whole)
    marks("refused: nothing of it after all")
    target.set_state(S.RUNNING)
    guest.close()
    return told


_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> Any:
    """A system call with these very arguments: its result, or the name of its errno."""
    result = getattr(_libc, name)(*(ctypes.c_long(each) for each in arguments))
    return errno.errorcode[ctypes.get_errno()] if result < 0 else result


def calls(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Pointers into nowhere, positions in a stream, ioctls of others."""
    told: dict[str, Any] = {}
    half = mmap.mmap(-1, 8192)
    read_only = mmap.mmap(-1, 4096)
    start = ctypes.addressof(ctypes.c_char.from_buffer(half))
    assert _libc.mprotect(ctypes.c_void_p(start + 4096), 4096, 0) == 0
    room = 100
    argument = bytearray(PrecopyInfoStruct(PRECOPY_INFO_SIZE, 0, 0, 0).pack())
    read_only[: len(argument)] = bytes(argument)
    there = ctypes.addressof(ctypes.c_char.from_buffer(read_only))
    assert _libc.mprotect(ctypes.c_void_p(there), 4096, mmap.PROT_READ) == 0
    for size, key in ((PRECOPY_INFO_SIZE - 1, "argsz too small"), (99, "argsz larger")):
        short = bytearray(argument)
        short[:4] = size.to_bytes(4, "little")
        with enter(source, S.PRE_COPY) as file:
            fd = descriptor(file)
            told[key] = outcome(lambda: fcntl.ioctl(fd, VFIO_MIG_GET_PRECOPY_INFO, short))  # noqa: B023
        source.set_state(S.RUNNING)
    file = enter(source, S.PRE_COPY)
    fd = descriptor(file)
    file.poll(timeout=LONG)
    first = info(file)[0]
    told["saving"] = {
        "write": outcome(lambda: file.write(b"x")),
        "pread": outcome(lambda: os.pread(fd, 9, 0)),
        "lseek": outcome(lambda: os.lseek(fd, 0, os.SEEK_SET)),
        "another ioctl": outcome(lambda: fcntl.ioctl(fd, VFIO_DEVICE_RESET)),
        "info, a bad pointer": _call("ioctl", fd, VFIO_MIG_GET_PRECOPY_INFO, 0),
        "info, half a pointer": _call("ioctl", fd, VFIO_MIG_GET_PRECOPY_INFO, start + 4096 - 12),
        "info, read-only": _call("ioctl", fd, VFIO_MIG_GET_PRECOPY_INFO, there),
        "read of nothing": outcome(lambda: len(read_some(file, 0))),
        "read, a bad pointer": _call("read", fd, 0, 9),
        "close-on-exec": fcntl.fcntl(fd, fcntl.F_GETFD),
        "flags": fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE,
    }
    before = info(file)[0]
    told["lost by a bad pointer"] = first - before
    # 100 bytes have a place, and the rest has none.
    told["read, half a pointer"] = _call("read", fd, start + 4096 - room, 3000)
    told["lost by half a pointer"] = before - info(file)[0]
    source.set_state(S.RUNNING)
    file.close()
    into = enter(target, S.RESUMING)
    fd = descriptor(into)
    told["resuming"] = {
        "read": outcome(lambda: read_some(into, 9)),
        "pwrite": outcome(lambda: os.pwrite(fd, b"x", 0)),
        "info": outcome(lambda: info(into)),
        "close-on-exec": fcntl.fcntl(fd, fcntl.F_GETFD),
        "flags": fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE,
        "write of nothing": outcome(lambda: into.write(b"")),
        "write, a bad pointer": _call("write", fd, 0, 9),
        "write after it": outcome(lambda: into.write(b"x")),
    }
    target.reset()
    into.close()
    with enter(target, S.RESUMING) as into:
        fd = descriptor(into)
        write_all(into, _record(0, b"x" * 5000)[:20])
        told["image, a bad pointer"] = _call("write", fd, 0, 9)
    target.reset()
    with enter(target, S.RESUMING) as into:
        fd = descriptor(into)
        write_all(into, _record(77, b"x" * 50, 1)[:20])
        told["optional record, a bad pointer"] = _call("write", fd, 0, 9)
    target.reset()
    return told
