"""SIGINT, SIGTERM and SIGHUP, and an event that they may set."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn


def interrupt() -> NoReturn:
    """What Python does on SIGINT."""
    raise KeyboardInterrupt


class SignalEvent(threading.Event):
    """An event that a signal's handler may set while the same thread waits for it.

    ``Event.set`` takes a lock that ``Event.wait`` holds at times: a signal that comes just then would
    find its own thread before it, for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        self._set = False
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        os.eventfd_write(self._eventfd, 1)

    def clear(self) -> None:
        self._set = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)

    def wait(self, timeout: float | None = None) -> bool:
        poller = select.poll()
        poller.register(self._eventfd, select.POLLIN)
        if not self._set:
            poller.poll(None if timeout is None else timeout * 1000)
        return self._set

    def __del__(self) -> None:
        os.close(self._eventfd)


class Signals(contextlib.AbstractContextManager["Signals"]):
    """SIGINT, SIGTERM and SIGHUP, all taken alike while this is entered: :attr:`action` is called.

    At first it is :func:`interrupt`. What it sets is a :class:`SignalEvent`. A signal that whoever
    started this process had ignored (nohup) stays ignored. Outside the main thread, where signals do
    not arrive, nothing is done.
    """

    def __init__(self) -> None:
        self.action: Callable[[], object] = interrupt
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, _signal: int, _frame: FrameType | None) -> None:
        self.action()

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self._before[each] = signal.signal(each, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for each, before in self._before.items():
            signal.signal(each, before)
