"""Where a kernel hangs: what is asked, and which of its tasks is named.

The kernel is a thread that answers at the socket of a management console; tests/lab has real ones.
"""

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from precopy.lab.console import ASKED, HANGS
from precopy.lab.host_stack import Symbols, host_stack
from precopy.lab.watchdog import Mconsole, Task, look, suspect, tasks, told

WAITING = """\
task:{name:<15} state:{state} stack:0     pid:{pid:<5} tgid:{pid:<5} ppid:{parent:<6} task_flags:{flags} flags:0x00000000
Stack:
 60d33a80 60c5c318 606aa548 606b7600
Call Trace:
 [<6003072b>] __switch_to+0x38/0x55
 [<600306f3>] ? __switch_to+0x0/0x55
 [<6049680d>] schedule+0x3d/0x5f
"""
FRAME = " [<60499dd7>] {}+0x47/0x103\n"
SYSCALL = FRAME.format("handle_syscall") + FRAME.format("userspace")


def written(
    name: str, pid: int, parent: int, state: str = "S", *frames: str, flags: str = "0x400000"
) -> str:
    """A task as the kernel writes it."""
    head = WAITING.format(name=name, state=state, pid=pid, parent=parent, flags=flags)
    return head + "".join(map(FRAME.format, frames)) + SYSCALL


INIT = written("init", 1, 0, "S", "do_wait", flags="0x400100")
KTHREADD = written("kthreadd", 2, 0, "S", "kthreadd", flags="0x208040")
WORKER = written("kworker/0:1", 12, 2, "I", "worker_thread", flags="0x4208060")
STUCK_WORKER = written("kworker/0:1", 12, 2, "D", "wait_for_completion", flags="0x4208060")
SHELL = written("sh", 23, 1, "S", "do_wait")
SLEEP = written("sleep", 24, 23, "S", "do_nanosleep", "hrtimer_nanosleep")
STUCK = written("my program", 25, 23, "D", "wait_for_completion_timeout", "cmd_exec")
RUNS = written("python", 26, 23, "R  running task    ", "show_stack")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", None),
        (KTHREADD + WORKER, None),
        (INIT + KTHREADD + WORKER, ("init", 1)),
        (INIT + SHELL + SLEEP, ("sleep", 24)),
        (INIT + SHELL + SLEEP + STUCK, ("my program", 25)),
        (INIT + SHELL + STUCK + RUNS, ("my program", 25)),
        (INIT + SHELL + RUNS + written("sleep", 27, 23), ("python", 26)),
        (INIT + STUCK_WORKER + SHELL + SLEEP, ("kworker/0:1", 12)),
        (INIT + STUCK_WORKER + SHELL + STUCK, ("my program", 25)),
    ],
)
def test_which_task_is_named(log: str, expected: tuple[str, int] | None) -> None:
    task = suspect(tasks(f"sysrq: Show State\n{log}Sched Debug Version: v0.11\n"))
    assert (task and (task.name, task.pid)) == expected


def test_a_task_and_where_it_is() -> None:
    *_, task = tasks(INIT + STUCK)
    frames = ("__switch_to", "schedule", "wait_for_completion_timeout", "cmd_exec")
    assert task == Task("my program", "D", 25, 23, False, (*frames, "handle_syscall", "userspace"))
    assert told(task.frames) == "wait_for_completion_timeout < cmd_exec"


def test_a_task_as_older_kernels_write_it() -> None:
    line = "task:sleep           state:S stack:    0 pid:   24 ppid:    23 flags:0x00000000\n"
    worker = "task:kworker/0:1     state:I stack:    0 pid:   12 ppid:     2 flags:0x00000000\n"
    assert [(each.name, each.pid, each.parent, each.is_kernel_thread) for each in tasks(line + worker)] == [
        ("sleep", 24, 23, False),
        ("kworker/0:1", 12, 2, True),
    ]  # fmt: skip


def test_a_deep_stack_is_told_in_one_line() -> None:
    assert told([f"f{n}" for n in range(99)]) == "f0 < f1 < f2 < f3 < f4 < f5"
    assert told(["schedule"]) == ""


# --- A kernel that answers ------------------------------------------------------------------------


@contextmanager
def kernel(directory: Path, log: str, *, forgets_end: bool = False) -> Iterator[list[str]]:
    """Answers at the console of ``directory``; ``log`` is what it writes when asked for its tasks.

    ``forgets_end``: as a kernel does whose long answer did not fit into the socket's queue.
    """
    heard: list[str] = []
    (directory / "lab").mkdir()
    (directory / "console").write_text(STUCK)

    def serve(server: socket.socket) -> None:
        while True:
            request, sender = server.recvfrom(1024)
            magic, version, length = struct.unpack_from("=III", request)
            assert (magic, version) == (0xCAFEBABE, 2)
            command = request[12 : 12 + length].decode()
            if command == "end":
                server.sendto(struct.pack("=III", 0, 0, 1) + b"\0", sender)
                return
            heard.append(command)
            if command == "sysrq t":
                with open(directory / "console", "a") as console:
                    console.write(log)
                server.sendto(struct.pack("=III", 0, 1, 5) + b"task\0", sender)
            if command != "sysrq t" or not forgets_end:
                server.sendto(struct.pack("=III", 0, 0, 1) + b"\0", sender)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(directory / "lab/mconsole"))
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        try:
            yield heard
        finally:
            Mconsole(directory).ask("end")
            thread.join()


@pytest.fixture
def process() -> Iterator[int]:
    """A process that sleeps."""
    command = [sys.executable, "-c", "import sys; print(); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        while Path(f"/proc/{child.pid}/syscall").read_text().startswith("running"):
            pass
        yield child.pid
        child.stdin.close()
        child.wait()


@pytest.mark.parametrize("forgets_end", [False, True])
def test_only_what_it_says_when_asked_counts(
    tmp_path: Path, process: int, forgets_end: bool
) -> None:
    with kernel(tmp_path, INIT + SHELL + SLEEP, forgets_end=forgets_end) as heard:
        line, details = look(tmp_path, process, tmp_path / "no System.map", patience=1)
    assert line == "sleep (pid 24) waits in do_nanosleep < hrtimer_nanosleep"
    assert heard == ["sysrq 8", "sysrq t", *(["help"] if forgets_end else [])]
    asked, _, where = details.partition(HANGS)
    assert asked.startswith(f"{ASKED}\n{INIT}")
    assert "my program" not in details
    assert "sleep (pid 24), state S:\n  __switch_to\n  schedule\n  do_nanosleep\n" in where


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            INIT + STUCK,
            "my program (pid 25) is stuck in the kernel, in wait_for_completion_timeout",
        ),
        (KTHREADD, "no program is left in it"),
    ],
)
def test_one_line_for_people(tmp_path: Path, process: int, log: str, expected: str) -> None:
    with kernel(tmp_path, log):
        line, _ = look(tmp_path, process, tmp_path / "no System.map")
    assert line.startswith(expected)
    assert "\n" not in line


def test_a_kernel_that_does_not_answer_is_looked_at_from_outside(
    tmp_path: Path, process: int
) -> None:
    (tmp_path / "console").touch()
    line, details = look(tmp_path, process, tmp_path / "no System.map")
    assert line == "the kernel answers no more: it waits for this machine in an unknown place"
    assert details == f"{HANGS}\nthe kernel's process sleeps:\n"


# --- From outside ---------------------------------------------------------------------------------


def test_a_process_that_has_ended_has_no_stack(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert host_stack(child.pid, tmp_path / "no System.map").frames == ()


def test_looking_does_not_stop_a_process(tmp_path: Path) -> None:
    program = "import sys; sys.stdin.read(1); sys.exit(7)"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as child:
        host_stack(child.pid, tmp_path / "no System.map")
        assert child.stdin is not None
        child.stdin.write(b"x")
        child.stdin.close()
        assert child.wait() == 7


def test_an_address_is_in_the_function_before_it(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_text("60001000 T first\n60002000 t second\n60003000 D data\n60004000 T _etext\n")
    symbols = Symbols(path)
    found = [symbols.name(address) for address in (0x60000FFF, 0x60001000, 0x60001FFF, 0x60002004)]
    assert found == [None, "first", "first", "second"]
    assert symbols.name(0x7F0000000000) is None
    assert Symbols(tmp_path / "nothing").name(0x60001000) is None
