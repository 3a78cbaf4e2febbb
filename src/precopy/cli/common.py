"""What several commands share: errors, options, progress, and how devices are opened."""

import contextlib
import math
import re
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import click

from precopy.backends import DeviceNameError, open_device
from precopy.engine.messages import printable
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.engine.progress import JsonLines, Lines, Progress, silent
from precopy.vfio.guest import GuestCounts, Opened


def fail(text: str, status: ExitStatus) -> NoReturn:
    """One line on stderr, and the exit status."""
    warn(text)
    sys.exit(status)


def warn(text: str) -> None:
    """One line on stderr, if there is one still."""
    with contextlib.suppress(OSError):
        print(f"precopy: {printable(text)}", file=sys.stderr, flush=True)


def open_or_fail(name: str, *, target: bool = False) -> Opened:
    try:
        return open_device(name, target=target)
    except DeviceNameError as error:
        fail(str(error), ExitStatus.USAGE)
    except OSError as error:
        fail(f"{name}: {reason_of(error)}", ExitStatus.FAILED)


def memory_of(counts: GuestCounts) -> str:
    """What is told of a guest's memory, behind its messages; nothing where none was checked."""
    if not counts.memory_pages:
        return ""
    return f", {counts.memory_wrong} of {counts.memory_pages} pages of memory wrong"


# --- Options ----------------------------------------------------------------------------------


def number(what: str, *, positive: bool = False) -> Callable[[str], float]:
    """The type of an option that is a finite number of ``what``, 0 or more; ``positive``: above 0."""

    def convert(value: str) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        if not math.isfinite(found) or found < 0 or (positive and not found):
            least = "above 0" if positive else "0 or more"
            raise click.BadParameter(f"{value} is no number of {what}, {least}")
        return found

    convert.__name__ = what
    return convert


def size(value: str) -> int:
    """The type of an option that is a number of bytes, with K, M, G or T behind it."""
    found = re.fullmatch(r"(\d{1,12})([KMGT]?)(?:i?B)?", value, re.IGNORECASE)
    if not found:
        raise click.BadParameter(f"{value} is no size; write 512M or 4G")
    return int(found.group(1)) << 10 * " KMGT".index(found.group(2).upper() or " ")


SECONDS = number("seconds")
SOME_SECONDS = number("seconds", positive=True)
MILLISECONDS = number("milliseconds")


# --- Progress ---------------------------------------------------------------------------------


@contextlib.contextmanager
def progress_of(kind: str) -> Iterator[Progress]:
    """``auto``: a display on a terminal, else lines; ``lines``, ``json``, ``none``."""
    if kind == "auto" and sys.stderr.isatty():
        # Imported when wanted: a good part of a command's time in a lab kernel.
        from precopy.cli.show import display_on_stderr

        with display_on_stderr() as display:
            yield display
    elif kind in ("auto", "lines"):
        yield Lines()
    elif kind == "json":
        yield JsonLines()
    else:
        yield silent


PROGRESS_KINDS = ("auto", "lines", "json", "none")
