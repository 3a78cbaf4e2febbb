"""What is taken for trouble on a kernel's console, and what of it is shown."""

import pytest

from precopy.lab.console import ASKED, HANGS, KNOWN, report, trouble

WARN = "WARNING: drivers/virtio/virtio_pcidev.c:81 at virtio_pcidev_read+0x10/0x20, CPU#0: sh/30"
DMA = "WARNING: kernel/dma/debug.c:1014 at check_unmap+0x2c/0x9ee, CPU#0: sh/30"
FREES = "DMA-API: mlx5_core 0000:00:00.0: device driver frees DMA memory with different size"

BOOT = """\
Core dump limits :
Checking PROT_EXEC mmap in /dev/shm...OK
epollctl add err fd 1, Operation not permitted
mlx5_core 0000:00:00.0: mlx5_init_clock:1614:(pid 1): invalid device_frequency_khz
DMA-API: preallocated 65536 debug entries
DMA-API: debugging enabled by kernel config
mlx5_vfio_pci 0000:00:01.0: Adding kernel taint for vfio-noiommu cdev
"""


@pytest.mark.parametrize(
    "line",
    [
        WARN,
        "WARNING: possible circular locking dependency detected",
        "WARNING: suspicious RCU usage",
        "BUG: KASAN: slab-use-after-free in mlx5vf_add_migration_pages+0x1/0x2",
        "BUG: sleeping function called from invalid context at mm/slab.h:1",
        "[ BUG: Invalid wait context ]",
        "BUG: failure at kernel/sched/core.c:1/schedule()!",
        "BUG kmalloc-64 (Tainted: G    B   ): Right Redzone overwritten",
        "INFO: task sh:30 blocked for more than 122 seconds.",
        "INFO: trying to register non-static key.",
        "Kernel panic - not syncing: Segfault with no mm",
        "DMA-API: debugging out of memory - disabling",
        "turning off the locking correctness validator.",
        "list_del corruption. prev->next should be 60d33a80, but was 0.",
    ],
)
def test_trouble(line: str) -> None:
    assert trouble(f"{BOOT}{line}\nModules linked in:\n{BOOT}") == line
    assert trouble(f"{BOOT}[    1.234567] {line}\nCPU: 0 UID: 0\n") == line


def test_what_a_warning_says_in_its_second_line() -> None:
    assert trouble(f"{BOOT}{DMA}\n{FREES}\nModules linked in:\n") == f"{DMA}: {FREES}"


@pytest.mark.parametrize("line", ["", "mlx5_core: WARNING: in the middle of a line"])
def test_no_trouble(line: str) -> None:
    assert trouble(f"{BOOT}{line}\n") == ""


@pytest.mark.parametrize(("begins", "cause"), KNOWN)
def test_a_known_defect_of_the_kernel_is_no_trouble_and_hides_none(begins: str, cause: str) -> None:
    known = f"{begins}\nCall Trace:\n [<60046fe1>] {cause}0x10/0x20\n"
    assert trouble(BOOT + known) == ""
    assert trouble(f"{BOOT}{known}{'line' * 50}\n{WARN}\nCPU: 0\n") == WARN
    # The same complaint, of somebody else.
    assert trouble(f"{BOOT}{begins}\nCall Trace:\n [<60046fe1>] other+0x10/0x20\n") == begins


def test_the_first_of_two_counts() -> None:
    assert trouble(f"{BOOT}{WARN}\nModules linked in:\nBUG: KASAN: later\n") == WARN


def test_a_report_begins_where_the_trouble_does_and_is_not_endless() -> None:
    lines = report(f"{BOOT}{WARN}\n" + "line\n" * 1000).splitlines()
    assert lines[0] == WARN
    assert len(lines) == 60


def test_without_trouble_the_end_is_shown() -> None:
    assert report(BOOT) == BOOT.strip()
    assert report("line\n" * 1000 + BOOT).splitlines()[-1] == BOOT.splitlines()[-1]
    assert len(report("line\n" * 1000).splitlines()) == 20


def test_where_it_hangs_is_shown_in_place_of_all_the_tasks() -> None:
    tasks = f"{ASKED}\n{WARN}\n" + "task:init            state:S\n" * 500
    where = f"{HANGS}\nthe kernel's process sleeps\nsleep (pid 20), state S:\n  do_nanosleep\n"
    assert report(BOOT + tasks + where) == where.strip()
    assert report(f"{BOOT}{WARN}\n{where}") == f"{WARN}\n{where.strip()}"
