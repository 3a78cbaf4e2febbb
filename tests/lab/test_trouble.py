"""What a kernel complains of fails the run, and a kernel that hangs is ended and says where.

Complaints are provoked by the kernel's own crash test (lkdtm), in its debugfs.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from precopy.lab import Job, Result, run

PRECOPY = (sys.executable, "-m", "precopy")

#: The command is done; the reset that follows it is not, nor is anything after it.
NEVER = "mlx5?vfs=2&fault=SUSPEND_VHCA:1:never"

MOVE = [
    *(*PRECOPY, "migrate", "--progress", "none"),
    *("vfio:0000:00:01.0", "vfio:0000:00:02.0"),
]


def provoke(what: str) -> list[str]:
    return ["sh", "-c", f"echo {what} > /sys/kernel/debug/provoke-crash/DIRECT"]


def lab_run(*arguments: str, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    whole = [*PRECOPY, "lab", "run", *arguments, "--", *command]
    return subprocess.run(whole, capture_output=True, text=True, check=False)


# --- Complaints -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "variant", "expected"),
    [
        ("WARNING", "ordinary", "WARNING: drivers/misc/lkdtm/bugs.c:"),
        ("WARNING_MESSAGE", "ordinary", "Warning message trigger count: 1"),
        ("CORRUPT_LIST_ADD", "debug", "list_add corruption"),
        ("READ_AFTER_FREE", "debug", "BUG: KASAN: slab-use-after-free in lkdtm_READ_AFTER_FREE"),
        ("SPINLOCKUP", "debug", "BUG: sleeping function called from invalid context"),
    ],
)
def test_a_complaint_is_seen(what: str, variant: str, expected: str) -> None:
    result = run(Job(provoke(what), variant=variant))
    assert expected in result.trouble


def test_lockdep_sees_a_mutex_taken_under_a_spin_lock() -> None:
    """Neither waits for anybody: only the order is wrong."""
    result = run(Job(provoke("SPINLOCKUP"), variant="debug"))
    assert "[ BUG: Invalid wait context ]" in result.kernel_log


def test_a_panic_ends_the_run() -> None:
    result = run(Job(provoke("EXCEPTION")))
    assert result.status == 125
    assert result.trouble.startswith("Kernel panic - not syncing: Kernel mode fault")


def test_the_command_fails_and_shows_it() -> None:
    done = lab_run("--variant", "ordinary", command=provoke("WARNING"))
    assert done.returncode == 4
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("WARNING: drivers/misc/lkdtm/bugs.c:")
    assert last == f"precopy: lab: {first}"
    assert "lkdtm_WARNING" in done.stderr


# --- Hangs ----------------------------------------------------------------------------------------

#: What is never answered keeps its place in the command queue, and the driver's shutdown waits for
#: all places.
LEFT_BEHIND = f"{NEVER}&timeout=1"

#: All at once, since most of them do nothing but wait.
HANGS = {
    "waits": Job(["sleep", "1000"], timeout=10),
    "runs": Job([sys.executable, "-c", "while True: pass"], timeout=10),
    "stuck": Job(MOVE, adapter=NEVER, timeout=30),
    "lost": Job(provoke("HARDLOCKUP"), timeout=10),
    "no shutdown": Job([*MOVE, "--no-precopy"], adapter=LEFT_BEHIND),
    "shutdown spared": Job([*MOVE, "--no-precopy"], adapter=LEFT_BEHIND, shutdown=False),
}

Ended = Mapping[str, "Future[Result]"]


@pytest.fixture(scope="module")
def ended() -> Iterator[Ended]:
    with ThreadPoolExecutor(len(HANGS)) as pool:
        yield {name: pool.submit(run, job) for name, job in HANGS.items()}


def test_a_program_that_waits(ended: Ended) -> None:
    result = ended["waits"].result()
    assert result.status == 124
    assert result.trouble.startswith("not done within 10 s: sleep (pid ")
    assert "waits in do_nanosleep < " in result.trouble


def test_a_program_that_runs(ended: Ended) -> None:
    result = ended["runs"].result()
    assert result.status == 124
    assert result.trouble.endswith(" runs in user space")


def test_a_program_that_is_stuck_in_the_kernel(ended: Ended) -> None:
    result = ended["stuck"].result()
    assert result.status == 124
    assert "is stuck in the kernel, in " in result.trouble
    assert " < mlx5vf_cmd_suspend_vhca" in result.trouble
    assert "\n" not in result.trouble
    assert "task:kworker/" in result.kernel_log


def test_a_kernel_that_answers_no_more(ended: Ended) -> None:
    result = ended["lost"].result()
    assert result.status == 124
    assert "the kernel answers no more: it runs in " in result.trouble
    assert "lkdtm_HARDLOCKUP < " in result.trouble


def test_a_kernel_that_does_not_shut_down(ended: Ended) -> None:
    result = ended["no shutdown"].result()
    assert result.status == 124
    assert "no power-off within 20 s: init (pid 1) is stuck in the kernel, in " in result.trouble


def test_it_need_not_shut_down(ended: Ended) -> None:
    result = ended["shutdown spared"].result()
    assert result.status == 4
    assert result.trouble == ""


def test_the_command_shows_where_it_hangs() -> None:
    done = lab_run("--timeout", "5", command=["sleep", "1000"])
    assert done.returncode == 124
    lines = done.stderr.splitlines()
    assert lines[0] == "--- where it hangs ---"
    assert "  do_nanosleep" in lines
    assert lines[-1].startswith("precopy: lab: not done within 5 s: sleep (pid ")
    assert len(lines) < 40
