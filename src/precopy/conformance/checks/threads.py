"""Calls from several threads."""

import errno
import select
import threading
import time
from collections.abc import Callable

from precopy.conformance.check import Context, Severity, check
from precopy.conformance.checks.common import (
    PATIENCE,
    PC,
    RES,
    RP,
    R,
    S,
    need_precopy,
    read_until_temporary_end,
    saving_states,
)

_THREADS, _ROUNDS = 4, 8
#: Seconds that a thread gets to begin to wait; where it is later than that less is seen.
_PAUSE = 0.05


def _together(context: Context, works: list[Callable[[], None]]) -> None:
    """Run them in threads that start at once. Failed where one raises or does not end."""
    barrier = threading.Barrier(len(works))
    raised: list[BaseException] = []

    def run(work: Callable[[], None]) -> None:
        try:
            barrier.wait(PATIENCE)
            work()
        except Exception as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    ends = time.monotonic() + PATIENCE
    for thread in threads:
        thread.join(max(0.0, ends - time.monotonic()))
        context.expect(f"a thread still waits after {PATIENCE:g} s", thread.is_alive(), False)
    if raised:
        raise raised[0]


@check(28, severity=Severity.CONTRACT)
def sets_from_several_threads(context: Context) -> None:
    """SETs from several threads are carried out one after another: each of them succeeds."""
    states = [each for each in (S, R, RP) if each in context.states()]
    device = context.device
    context.step(f"SET of {', '.join(each.name for each in states)} from {_THREADS} threads")

    def work(first: int) -> Callable[[], None]:
        def sets() -> None:
            for count in range(_ROUNDS):
                device.set_state(states[(first + count) % len(states)])
                found = device.state
                context.expect_that("GET", found in states, "a state that was set", found)

        return sets

    _together(context, [work(first) for first in range(_THREADS)])
    context.expect_that(
        "GET at last", context.state() in states, "a state that was set", context.state()
    )
    context.set_state(R)
    context.expect("GET", context.state(), R)


@check(28, 25, severity=Severity.CONTRACT)
def resets_from_several_threads(context: Context) -> None:
    """RESET while other threads SET states leaves a device that is RUNNING after the last RESET."""
    device = context.device
    context.step("RESET and SET from two threads")

    def sets() -> None:
        for _ in range(_ROUNDS):
            for state in (S, RES, R):
                try:
                    file = device.set_state(state)
                except OSError as error:
                    # RESUMING can't be left with nothing written.
                    found = error.errno
                    context.expect("errno", errno.errorcode.get(found or 0), "EINVAL")
                else:
                    if file is not None:
                        file.close()

    def resets() -> None:
        for _ in range(_ROUNDS):
            device.reset()

    _together(context, [sets, resets])
    context.reset()
    context.expect("GET after RESET", context.state(), R)


@check(38, 39, severity=Severity.CONTRACT)
def who_waits_is_woken(context: Context) -> None:
    """A thread that waits in poll for more is woken when its session ends."""
    file = need_precopy(context)
    read_until_temporary_end(context, file)
    found: list[int] = []
    context.step("poll in one thread, RUNNING by another")
    works = [
        lambda: found.append(file.poll(select.POLLIN | select.POLLRDHUP, PATIENCE / 2)),
        lambda: _end(context, _PAUSE),
    ]
    _together(context, works)
    context.expect_that("poll", bool(found) and bool(found[0]), "events", found)


def _end(context: Context, pause: float = 0.0) -> None:
    time.sleep(pause)
    context.set_state(R)


@check(39, 38, severity=Severity.CONTRACT)
def who_reads_is_woken(context: Context) -> None:
    """A thread that reads while its session is ended comes back; reads after it fail with ENODEV."""
    for state in saving_states(context):
        context.reset()
        file = context.enter(state)

        def reads() -> None:
            room = bytearray(4096)
            for _ in range(1000):
                try:
                    if not file.readinto(room):  # noqa: B023
                        return
                except OSError as error:
                    # Whatever a read says that the end overtakes: it has come back.
                    if error.errno != errno.ENOMSG:
                        return

        _together(context, [reads, lambda: _end(context)])
        context.expect_errno("read after it", errno.ENODEV, lambda: file.readinto(bytearray(8)))  # noqa: B023
        context.expect("GET", context.state(), R)
    if PC in context.states():
        context.enter(PC)
