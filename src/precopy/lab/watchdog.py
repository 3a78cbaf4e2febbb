"""Where a kernel hangs that did not end in time.

The kernel is asked first, through its management console (mconsole, a unix datagram socket in its
``uml_dir``); what it answers is on its console. Where it answers no more, or the task in question runs,
the stack of its process is read from outside.
"""

import re
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from precopy.lab import console
from precopy.lab.host_stack import Stack, host_stack

#: The kernel's name for itself; its socket is in a directory of this name.
UMID = "lab"

_MAGIC, _VERSION = 0xCAFEBABE, 2
_REQUEST = struct.Struct("=III512s")
_REPLY = struct.Struct("=III")

#: Seconds for an answer. A kernel that is alive needs milliseconds.
PATIENCE = 2.0

#: Raise the level of the console, all tasks with their stacks.
_ASK = ("sysrq 8", "sysrq t")

#: A kernel thread, by the flags of a task.
_KERNEL_THREAD = 0x200000

_TASK = re.compile(
    r"^task:(?P<name>\S.*?) +state:(?P<state>\w).*? pid: *(?P<pid>\d+) .*?ppid: *(?P<parent>\d+)"
    r"(?: +task_flags:0x(?P<flags>[0-9a-f]+))?",
    re.MULTILINE,
)
_FRAME = re.compile(r"^ \[<[0-9a-f]+>\] (?!\? )([\w.]+)\+0x", re.MULTILINE)

#: How every wait ends, and how every system call and task begins: they say nothing.
_DULL = {
    *("__switch_to", "__schedule", "schedule", "schedule_timeout", "schedule_preempt_disabled"),
    *("io_schedule", "handle_syscall", "userspace", "new_thread_handler", "fork_handler"),
    *("ret_from_fork", "interrupt_end"),
}

#: Functions of a stack that are told in one line.
_TOLD = 6

_UNKNOWN = "an unknown place"

#: Where a kernel is that has nothing to do.
_IDLE = "default_idle_call"


@dataclass(frozen=True, slots=True)
class Task:
    """A task of the kernel, and where it is: functions, the innermost first."""

    name: str
    state: str
    pid: int
    parent: int
    is_kernel_thread: bool
    frames: Sequence[str]


class Mconsole:
    """The management console of a kernel, whose ``uml_dir`` is ``directory``.

    ``patience``: seconds that it has for an answer.
    """

    def __init__(self, directory: Path, patience: float = PATIENCE) -> None:
        self._path = directory / UMID / "mconsole"
        self._patience = patience

    def _send(self, connection: socket.socket, command: str) -> None:
        text = command.encode()
        connection.send(_REQUEST.pack(_MAGIC, _VERSION, len(text), text))

    def ask(self, *commands: str) -> bool:
        """Give ``commands``, and wait until they are done. Whether the kernel answers."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.settimeout(self._patience)
            try:
                # An address of its own, to which answers go.
                connection.bind("")
                connection.connect(str(self._path))
                for command in commands:
                    self._send(connection, command)
                    if not self._done(connection):
                        return False
            except OSError:
                # No socket (it has not come so far, or its path is too long), or no answer.
                return False
        return True

    def _done(self, connection: socket.socket) -> bool:
        """Whether the end of the answer to a command came.

        Of a long answer the kernel drops what the socket's queue does not take, its end as well. So
        ``help`` is asked for then, which is answered after it, in one piece.
        """
        asked_again = False
        while True:
            try:
                reply = connection.recv(2048)
            except TimeoutError:
                if asked_again:
                    return False
                asked_again = True
                self._send(connection, "help")
                continue
            _, more, _ = _REPLY.unpack_from(reply)
            if not more:
                return True


def tasks(log: str) -> list[Task]:
    """The tasks in what a kernel's ``sysrq t`` has written."""
    found = list(_TASK.finditer(log))
    ends = [*(each.start() for each in found), len(log)][1:]
    return [
        Task(
            task["name"],
            task["state"],
            int(task["pid"]),
            int(task["parent"]),
            bool(int(task["flags"] or "0", 16) & _KERNEL_THREAD) or task["parent"] == "2",
            tuple(_FRAME.findall(log, task.end(), end)),
        )
        for task, end in zip(found, ends, strict=True)
    ]


def suspect(found: Sequence[Task]) -> Task | None:
    """The task that most likely keeps the others waiting.

    One that can't be interrupted, a program's before a kernel thread's; else the youngest program
    that waits for no child of its own.
    """
    stuck = [task for task in found if task.state == "D"]
    if stuck:
        return min(stuck, key=lambda task: (task.is_kernel_thread, task.pid))
    programs = [task for task in found if not task.is_kernel_thread]
    parents = {task.parent for task in programs}
    leaves = [task for task in programs if task.pid not in parents]
    return max(leaves, key=lambda task: (task.state == "R", task.pid), default=None)


def told(frames: Sequence[str]) -> str:
    """The functions of a stack that say something, in one line; empty where none does."""
    return " < ".join([frame for frame in frames if frame not in _DULL][:_TOLD])


def _say(task: Task, stack: Stack) -> str:
    who = f"{task.name} (pid {task.pid})"
    if task.state == "D":
        return f"{who} is stuck in the kernel, in {told(task.frames) or _UNKNOWN}"
    if task.state != "R":
        return f"{who} waits in {told(task.frames) or _UNKNOWN}"
    if told(stack.frames):
        return f"{who} runs in the kernel, in {told(stack.frames)}"
    # A stack with nothing on top of what called the program.
    return f"{who} runs in user space" if stack.frames else f"{who} runs"


def look(directory: Path, pid: int, symbols: Path, patience: float = PATIENCE) -> tuple[str, str]:
    """One line that says where the kernel hangs; and more, which belongs at the end of its log.

    ``directory`` is its ``uml_dir`` with its ``console``; ``pid`` its process; ``symbols`` its
    System.map, without which a stack seen from outside has no names; ``patience``: seconds that it
    has for an answer.
    """
    output = directory / "console"
    said_before = output.stat().st_size
    answers = Mconsole(directory, patience).ask(*_ASK)
    stack = host_stack(pid, symbols)
    # One that shuts down answers no more, but its first process lets it write this in time.
    log = output.read_bytes()[said_before if answers else 0 :].decode(errors="replace")
    idle = _IDLE in stack.frames
    task = suspect(tasks(log)) if answers or idle else None
    state = "sleeps" if stack.sleeps else "runs"
    details = f"{console.ASKED}\n{log}\n" if answers else ""
    details += f"{console.HANGS}\nthe kernel's process {state}:\n{_lines(stack.frames)}"
    if task is not None:
        details += f"{task.name} (pid {task.pid}), state {task.state}:\n{_lines(task.frames)}"
        return _say(task, stack), details
    if answers:
        return "no program is left in it", details
    doing = "waits for this machine" if stack.sleeps else "runs"
    place = "is idle" if idle else f"{doing} in {told(stack.frames) or _UNKNOWN}"
    return f"the kernel answers no more: it {place}", details


def _lines(frames: Sequence[str]) -> str:
    return "".join(f"  {frame}\n" for frame in frames)
