"""The stack of a User-Mode Linux kernel, read from outside: its process is stopped for a moment."""

import bisect
import contextlib
import ctypes
import errno
import os
import re
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PTRACE_GETREGS, _PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 12, 17, 0x4206, 0x4207

#: struct user_regs_struct of x86-64: 27 registers, of which these are wanted.
_REGISTERS = struct.Struct("=27Q")
_RBP, _RIP, _RSP = 4, 16, 19

_DEEPEST = 64

#: How often it is looked at, since in some functions of the host's C library it has no frame pointer;
#: seconds between two looks.
_LOOKS, _PAUSE = 10, 0.003

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Stack:
    """Functions, the innermost first; empty where it could not be read."""

    frames: Sequence[str] = ()
    #: The process is not on a processor.
    sleeps: bool = False


class Symbols:
    """The functions of a kernel by their addresses, of its System.map."""

    def __init__(self, path: Path) -> None:
        text = path.read_text() if path.exists() else ""
        found = re.finditer(r"^([0-9a-f]+) [tTwW] (\S+)$", text, re.MULTILINE)
        rows = sorted((int(each[1], 16), str(each[2])) for each in found)
        self._addresses = [address for address, _ in rows]
        self._names = [name for _, name in rows]

    def name(self, address: int) -> str | None:
        """The function that ``address`` is in; None for what is not the kernel's."""
        at = bisect.bisect_right(self._addresses, address) - 1
        if at < 0 or at == len(self._names) - 1:
            return None
        return self._names[at]


def host_stack(pid: int, symbols: Path) -> Stack:
    """The stack of the process ``pid``, a child of this one, by the symbols of a System.map.

    Of several looks the one with the fewest functions, so without a timer's interrupt on top.
    """
    names = Symbols(symbols)
    stacks = [Stack()]
    for _ in range(_LOOKS):
        with contextlib.suppress(OSError):
            sleeps = not Path(f"/proc/{pid}/syscall").read_text().startswith("running")
            found = map(names.name, _addresses(pid))
            stacks.append(Stack(tuple(name for name in found if name is not None), sleeps))
        time.sleep(_PAUSE)
    return min(stacks[::-1], key=lambda stack: (not stack.frames, len(stack.frames)))


def _ptrace(request: int, pid: int, data: "ctypes.Array[ctypes.c_char] | None" = None) -> None:
    _libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    _libc.ptrace.restype = ctypes.c_long
    if _libc.ptrace(request, pid, None, data) == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _addresses(pid: int) -> list[int]:
    """Where it is, and where each function of its stack will go on. OSError where it can't be read."""
    _ptrace(_PTRACE_SEIZE, pid)
    try:
        _ptrace(_PTRACE_INTERRUPT, pid)
        _, status = os.waitpid(pid, 0x40000000)  # __WALL
        if not os.WIFSTOPPED(status):
            raise OSError(errno.ESRCH, "it has ended")
        buffer = ctypes.create_string_buffer(_REGISTERS.size)
        _ptrace(_PTRACE_GETREGS, pid, buffer)
        return _walk(pid, _REGISTERS.unpack(buffer.raw))
    finally:
        with contextlib.suppress(OSError):
            _ptrace(_PTRACE_DETACH, pid)


def _walk(pid: int, registers: Sequence[int]) -> list[int]:
    """By frame pointers, with which the kernel is built; the host's C library mostly keeps them."""
    found, frame, lowest = [registers[_RIP]], registers[_RBP], registers[_RSP]
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory, contextlib.suppress(OSError):
        while frame >= lowest and not frame % 8 and len(found) < _DEEPEST:
            memory.seek(frame)
            words = memory.read(16)
            if len(words) < 16:
                break
            lowest = frame + 16
            frame, back = struct.unpack("=QQ", words)
            found.append(back)
    return found
