"""Bitmaps of 1 TiB, and trackers of 1 GiB: all clean, and with 1 % of the pages dirty, scattered."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.figure import Figure
from precopy.memory import tracker_for
from precopy.pci.memory import PAGE_SIZE, GuestMemory, RegionSpec
from precopy.vfio.dirty_bits import clear_runs, count_bits, dirty_runs, set_runs

PAGES = 1 << 28

_GIB = 1 << 30
#: Kinds of trackers, and the most seconds of a collect: all clean, and 1 % dirty.
_TRACKERS = {"userfaultfd": (0.01, 0.02), "checksums": (1.0, 2.0)}

_TIMES = 5


def _best(work: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
    """Seconds of ``work``, the best of several times, ``before`` each of which is something else."""
    best = float("inf")
    for _ in range(_TIMES):
        before()
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
    return best


def measure() -> list[Figure]:
    figures = _bitmaps()
    for kind, bounds in _TRACKERS.items():
        figures += _tracker(kind, *bounds)
    return figures


def _tracker(kind: str, clean_bound: float, dirty_bound: float) -> list[Figure]:
    memory = GuestMemory([RegionSpec(0, _GIB)])
    try:
        tracker = tracker_for(memory, kind)
    except OSError as error:
        memory.close()
        return [Figure(f"writes by {kind}", str(error.strerror), "-", False)]
    random = np.random.default_rng(1)
    cells = np.frombuffer(memory.regions[0].map, dtype=np.uint64)
    cells[:] = random.integers(1, 1 << 63, PAGE_SIZE)[np.arange(len(cells)) % PAGE_SIZE]
    dirty = np.zeros(_GIB // PAGE_SIZE // 8, dtype=np.uint8)
    pages = random.choice(_GIB // PAGE_SIZE, _GIB // PAGE_SIZE // 100, replace=False)

    def write() -> None:
        cells[pages * (PAGE_SIZE // 8)] += 1

    start = _best(tracker.start)
    clean = _best(lambda: tracker.collect(0, dirty))
    assert not dirty.any()
    some = _best(lambda: tracker.collect(0, dirty), write)
    assert count_bits(dirty) == len(pages)
    tracker.stop()
    memory.close()
    return [
        Figure(f"writes by {kind}, 1 GiB: start", f"{start * 1e3:.1f} ms", "-", True),
        Figure(
            f"writes by {kind}, 1 GiB clean: collect",
            f"{clean * 1e3:.1f} ms",
            f"< {clean_bound * 1e3:.0f} ms",
            clean < clean_bound,
        ),
        Figure(
            f"writes by {kind}, 1 GiB, 1 % dirty: collect",
            f"{some * 1e3:.1f} ms",
            f"< {dirty_bound * 1e3:.0f} ms",
            some < dirty_bound,
        ),
    ]


def _bitmaps() -> list[Figure]:
    bits = np.ones(PAGES // 8, dtype=np.uint8)
    bits[:] = 0
    clean = _best(lambda: dirty_runs(bits))
    pages = np.random.default_rng(1).choice(PAGES, PAGES // 100)
    pages.sort()

    def wipe() -> None:
        bits[:] = 0

    seconds = {
        "set": (_best(lambda: set_runs(bits, pages, pages), wipe), 0.5),
        "runs": (_best(lambda: dirty_runs(bits)), 1.0),
        "count": (_best(lambda: count_bits(bits)), 0.25),
        "clear": (_best(lambda: clear_runs(bits, pages, pages)), 0.5),
    }
    assert not bits.any()
    figures = [
        Figure("bitmap of 1 TiB, clean: scanned", f"{clean * 1e3:.1f} ms", "< 50 ms", clean < 0.05)
    ]
    figures += [
        Figure(
            f"bitmap of 1 TiB, 1 % dirty: {name}",
            f"{took * 1e3:.0f} ms",
            f"< {bound * 1e3:.0f} ms",
            took < bound,
        )
        for name, (took, bound) in seconds.items()
    ]
    return figures
