"""Bitmaps of 1 TiB in pages of 4 KiB: found clean, and with 1 % of the pages dirty, scattered."""

import time
from collections.abc import Callable

import numpy as np

from benchmarks.figure import Figure
from precopy.vfio.dirty_bits import clear_runs, count_bits, dirty_runs, set_runs

PAGES = 1 << 28
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
