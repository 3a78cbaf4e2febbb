"""Every allocation that a call makes in the kernel fails, one after another."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from precopy.backends.kernel import KernelVfioDevice
from precopy.vfio.device import DmaRange
from tests.lab.inside import enter, outcome, state
from tests.lab.mlx5.vf import Marks, S, info, power_on, read_all, saved, write_all

#: Of this thread: its n-th allocation from now on fails. What has not come yet is there to be read.
_NTH = Path("/proc/thread-self/fail-nth")
_SLAB = Path("/sys/kernel/debug/failslab")
_PAGES = Path("/sys/kernel/debug/fail_page_alloc")
_COPIES = Path("/sys/kernel/debug/fail_usercopy")

#: Addresses at which no code is.
_NOWHERE = (1, 2)

#: More allocations than any call makes.
_MOST = 2000

_MEMORY = [DmaRange(0, 1 << 21)]


def _code(prefix: str) -> tuple[int, int]:
    """From where to where the functions stand whose names begin with ``prefix``; nowhere: 1 and 2."""
    lines = (line.split() for line in Path("/proc/kallsyms").read_text().splitlines())
    symbols = sorted((int(where, 16), name) for where, kind, name, *_ in lines if kind in "tT")
    own = [
        index
        for index, (_, name) in enumerate(symbols)
        if name.startswith(prefix) and not name.endswith(("_init", "_exit"))
    ]
    return (symbols[own[0]][0], symbols[own[-1] + 1][0]) if own else _NOWHERE


def _prepare() -> None:
    """Only what the driver itself asks for fails, also where it may wait for memory."""
    for where, required in ((_SLAB, _code("mlx5vf_")), (_PAGES, _NOWHERE), (_COPIES, _NOWHERE)):
        # What checks the driver's DMA gives up for good where it has no memory.
        for name, code in (("require", required), ("reject", _code("debug_dma_"))):
            for end, address in zip(("start", "end"), code, strict=True):
                (where / f"{name}-{end}").write_text(str(address))
        # Not a word about each.
        (where / "verbose").write_text("0")
    (_SLAB / "ignore-gfp-wait").write_text("N")


@contextmanager
def _failing(nth: int) -> Iterator[list[bool]]:
    """Whether the failure came is told in the end."""
    came = [False]
    _NTH.write_text(str(nth))
    try:
        yield came
    finally:
        came[0] = not int(_NTH.read_text())
        _NTH.write_text("0")


def _each(
    device: KernelVfioDevice,
    prepare: Callable[[], Callable[[], object]],
    after: Callable[[], object],
) -> dict[str, Any]:
    """The call that ``prepare`` makes ready, with each of its allocations failing.

    What it said, with the state then and what ``after`` said, by how often; and what it says when
    all goes well.
    """
    results: Counter[str] = Counter()
    for nth in range(1, _MOST):
        call = prepare()
        with _failing(nth) as came:
            result = _failure(call)
        stands = state(device)
        told = ", ".join((result, stands, _failure(after)))
        if not came[0]:
            return {"failing": dict(results), "well": told}
        results[told] += 1
    raise AssertionError("no end of allocations")


def _failure(call: Callable[[], object]) -> str:
    return str(outcome(lambda: call() and None) or "well")


def _enter(device: KernelVfioDevice, new: S) -> Callable[[], object]:
    """Going to ``new``; a data_fd is let go of."""

    def call() -> None:
        file = device.set_state(new)
        if file is not None:
            file.close()

    return call


def allocations(marks: Marks, source: KernelVfioDevice, target: KernelVfioDevice) -> Any:
    """Calls that make allocations, from a state that is the same each time."""
    _prepare()
    told: dict[str, Any] = {}
    back = partial(source.set_state, S.RUNNING)

    def each(
        name: str, prepare: Callable[[], Callable[[], object]], after: Callable[[], object] = back
    ) -> None:
        told[name] = _each(source, prepare, after)
        source.log_stop()
        source.reset()
        marks(name)

    def arc(*states: S) -> Callable[[], Callable[[], object]]:
        """The last of ``states``, from the one before it, with a VF that is as after a reset."""

        def prepare() -> Callable[[], object]:
            source.reset()
            for new in states[:-1]:
                _enter(source, new)()
            return _enter(source, states[-1])

        return prepare

    def middle() -> Callable[[], object]:
        source.reset()
        guest = power_on(source, pairs=1)
        file = enter(source, S.PRE_COPY)
        read_all(file)
        guest.step(2)
        held.callback(guest.close)
        held.callback(file.close)
        return partial(info, file)

    def image() -> Callable[[], object]:
        source.reset()
        into = enter(source, S.RESUMING)
        held.callback(into.close)
        return partial(write_all, into, content)

    target.set_state(S.STOP)
    content = saved(target)
    with ExitStack() as held:
        each("STOP to STOP_COPY", arc(S.STOP, S.STOP_COPY))
        each("STOP to RESUMING", arc(S.STOP, S.RESUMING))
        each("RUNNING to PRE_COPY", arc(S.PRE_COPY))
        each("PRE_COPY to RUNNING", arc(S.PRE_COPY, S.RUNNING))
        each("PRE_COPY to STOP_COPY", arc(S.PRE_COPY, S.PRE_COPY_P2P, S.STOP_COPY))
        each("a middle image", middle)
        each("an image is loaded", image)
        each("log", lambda: partial(source.log_start, _MEMORY, 4096), source.log_stop)
    return told
