"""The formats there are. A format is one module that registers itself (Documentation/stream).

The modules of ``precopy.stream.formats`` are found by themselves, those of other packages by an entry
point in the group ``precopy.formats``.
"""

import functools
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from precopy.stream.cursor import Steps, Stream

#: Bytes of a stream's beginning that a format is recognised by.
HEAD_BYTES = 4096

Dissect = Callable[[Stream], Steps[None]]
#: How sure a format is that a stream which begins so is its own: 0 (it is not) to 100.
Recognise = Callable[[bytes], int]


@dataclass(frozen=True, slots=True)
class Format:
    """``resync`` goes on behind a wrong place, where that can be found; it dissects from there.

    ``beside``: parts of what a stream carries may lie in other files. ``carries``: it is there for the
    streams that it carries.
    """

    name: str
    title: str
    recognise: Recognise
    dissect: Dissect
    resync: Dissect | None = None
    beside: bool = False
    carries: bool = False


_FORMATS: dict[str, Format] = {}
_BROKEN: dict[str, str] = {}


def register(
    name: str,
    title: str,
    recognise: Recognise,
    resync: Dissect | None = None,
    beside: bool = False,
    carries: bool = False,
) -> Callable[[Dissect], Dissect]:
    """Registers the decorated dissector as the format ``name``."""

    def add(dissect: Dissect) -> Dissect:
        _FORMATS[name] = Format(name, title, recognise, dissect, resync, beside, carries)
        return dissect

    return add


def begins_with(magic: bytes, sure: int = 90) -> Recognise:
    """Recognises a format by its first bytes; of fewer bytes, by as many as there are, less surely."""

    def recognise(head: bytes) -> int:
        if head.startswith(magic):
            return sure
        # Cut in its magic: still what it most probably was.
        return sure // 3 if head and magic.startswith(head) and len(head) >= 4 else 0

    return recognise


@functools.cache
def _load() -> None:
    from precopy.stream import formats

    for module in pkgutil.iter_modules(formats.__path__):
        importlib.import_module(f"{formats.__name__}.{module.name}")
    for point in importlib.metadata.entry_points(group="precopy.formats"):
        try:
            point.load()
        except Exception as error:  # whatever someone else's package does
            _BROKEN[point.name] = f"{type(error).__name__}: {error}".splitlines()[0]


def formats() -> dict[str, Format]:
    """All formats by name."""
    _load()
    return _FORMATS


def broken() -> dict[str, str]:
    """Entry points that could not be loaded, and why, in one line."""
    _load()
    return _BROKEN


def recognise(head: bytes) -> Format | None:
    """The format of a stream that begins so, or None."""
    best, found = 0, None
    for format in formats().values():
        sure = format.recognise(head)
        if sure > best:
            best, found = sure, format
    return found
