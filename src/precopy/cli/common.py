"""What several commands share: how errors are told, how progress is shown, how devices are opened."""

import contextlib
import sys
from collections.abc import Iterator
from typing import NoReturn

from rich.console import Console

from precopy.backends import DeviceNameError, open_device
from precopy.engine.outcome import ExitStatus
from precopy.engine.progress import Display, JsonLines, Lines, Progress, silent
from precopy.vfio.guest import Opened


def fail(text: str, status: ExitStatus) -> NoReturn:
    """One line on stderr, and the exit status."""
    print(f"precopy: {' '.join(text.split())}", file=sys.stderr, flush=True)
    sys.exit(status)


def open_or_fail(name: str, *, target: bool = False) -> Opened:
    try:
        return open_device(name, target=target)
    except DeviceNameError as error:
        fail(str(error), ExitStatus.USAGE)
    except OSError as error:
        fail(f"{name}: {error.strerror or error}", ExitStatus.FAILED)


@contextlib.contextmanager
def progress_of(kind: str) -> Iterator[Progress]:
    """``auto``: a display on a terminal, else lines; ``lines``, ``json``, ``none``."""
    console = Console(stderr=True)
    if kind == "auto" and console.is_terminal:
        with Display(console) as display:
            yield display
    elif kind in ("auto", "lines"):
        yield Lines()
    elif kind == "json":
        yield JsonLines()
    else:
        yield silent


PROGRESS_KINDS = ("auto", "lines", "json", "none")
