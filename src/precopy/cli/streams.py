"""What the commands that dissect streams share."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from precopy.cli.common import fail, warn
from precopy.engine.outcome import ExitStatus
from precopy.stream.registry import broken, formats


def warn_of_broken() -> None:
    for name, why in broken().items():
        warn(f"format {name} can't be loaded: {why}; mend or remove the package that brings it")


def check_format(name: str | None) -> None:
    """End the command where there is no format ``name``; warn of those that can't be loaded."""
    warn_of_broken()
    if name and name not in formats():
        fail(f"no format {name!r}; there are {', '.join(sorted(formats()))}", ExitStatus.USAGE)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """``file``, or standard input where it is ``-``. OSError."""
    if str(file) == "-":
        yield sys.stdin.buffer
    else:
        with file.open("rb", buffering=0) as source:
            yield source
