"""Options behind a name, as in ``sim:mlx5?qps=1000&state=300M``: what each may be, and their parsing."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class OptionError(ValueError):
    """Which option is wrong, and what there is."""


def number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError(f"{text!r} is no number") from None


def size(most: int) -> Callable[[str], int]:
    """Bytes, rounded up to pages, up to ``most``."""

    def parse(text: str) -> int:
        found = re.fullmatch(r"(\d{1,15})([KMG]?)(i?B)?", text)
        if not found:
            raise ValueError("a size is a number with K, M or G behind it")
        count = int(found.group(1)) * _UNITS[found.group(2)]
        if count > most:
            raise ValueError(f"{text} is more than {most >> 30}G")
        return -(-count // 4096) * 4096

    return parse


def switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("a switch is 0 or 1")
    return text == "1"


def within(low: int, high: int) -> Callable[[str], int]:
    """A number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        found = number(text)
        if not low <= found <= high:
            raise ValueError(f"{low} to {high}")
        return found

    return parse


@dataclass(frozen=True, slots=True)
class Option:
    """``parse`` raises ValueError; ``default`` is a text as a user would write it."""

    parse: Callable[[str], object]
    default: str
    help: str


def parse(query: str, options: Mapping[str, Option]) -> dict[str, object]:
    """The value of each of ``options``, given in ``query`` or not. OptionError."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise OptionError(str(error)) from error
    given = dict(pairs)
    if len(given) < len(pairs):
        twice = next(key for index, (key, _) in enumerate(pairs) if key in dict(pairs[:index]))
        raise OptionError(f"parameter {twice!r} is given twice")
    unknown = given.keys() - options.keys()
    if unknown:
        raise OptionError(
            f"unknown parameter {min(unknown)!r}; there are {', '.join(sorted(options))}"
        )
    found: dict[str, object] = {}
    for key, option in options.items():
        try:
            found[key] = option.parse(given.get(key, option.default))
        except ValueError as error:
            raise OptionError(f"{key}: {error}") from error
    return found


def whole(values: Mapping[str, object], key: str) -> int:
    """A value that is a number."""
    value = values[key]
    assert isinstance(value, int)
    return value
