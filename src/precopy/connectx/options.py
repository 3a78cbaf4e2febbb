"""Kinds of card by name: the options of ``sim:mlx5?...`` and of ``--adapter mlx5?...``."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl

from precopy.connectx.config import AdapterConfig, FaultPlan

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class OptionError(ValueError):
    """Which option is wrong, and what there is."""


def number(text: str) -> int:
    return int(text, 0)


def size(text: str) -> int:
    """Bytes, rounded up to pages."""
    found = re.fullmatch(r"(\d+)([KMG]?)(i?B)?", text)
    if not found:
        raise ValueError("a size is a number with K, M or G behind it")
    count = int(found.group(1)) * _UNITS[found.group(2)]
    return -(-count // 4096) * 4096


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


def version(text: str) -> str:
    if not re.fullmatch(r"\d{1,4}\.\d{1,4}\.\d{1,4}", text):
        raise ValueError("a firmware version is three numbers, as 28.43.1014")
    return text


@dataclass(frozen=True, slots=True)
class Option:
    """``parse`` raises ValueError; ``default`` is a text as a user would write it."""

    parse: Callable[[str], object]
    default: str
    help: str


#: Options of any card.
CARD: dict[str, Option] = {
    "state": Option(size, "0", "bulk state of a VF besides its contexts, such as 300M"),
    "chunks": Option(switch, "1", "chunk mode (migration_in_chunks)"),
    "migration_state": Option(switch, "1", "the capability behind REINIT"),
    "migratable": Option(switch, "1", "whether the VF may be migrated"),
    "multi_load": Option(switch, "1", "0: firmware too old for PRE_COPY"),
    "page_track": Option(switch, "1", "whether DMA can be logged (adv_virtualization)"),
    "image_version": Option(number, "1", "version of the firmware's images"),
    "log_max_qp": Option(within(4, 20), "18", "QPs of a function, as a power of two"),
    "fault": Option(
        FaultPlan.parse, "", "OPCODE:NTH:STATUS,...: commands that fail (STATUS never: no answer)"
    ),
    "fw": Option(version, "28.43.1014", "firmware version"),
    "serial": Option(str, "MT2243X00001", "serial number"),
    "seed": Option(number, "1", "of messages and bulk state"),
    "reinit_pages": Option(number, "256", "pages never sent before that make new initial state"),
    "first_session": Option(number, "0", "number of the first saving session (0: at random)"),
}


def parse(query: str, options: Mapping[str, Option]) -> dict[str, object]:
    """The value of each of ``options``, given in ``query`` or not. OptionError."""
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError as error:
        raise OptionError(str(error)) from error
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


def config(values: Mapping[str, object], **more: int | bool) -> AdapterConfig:
    """The card that ``values`` (of :data:`CARD`) and ``more`` fields describe."""

    def whole(key: str) -> int:
        value = values[key]
        assert isinstance(value, int)
        return value

    return AdapterConfig(
        log_max_qp=whole("log_max_qp"),
        log_max_cq=whole("log_max_qp"),
        state_bytes=whole("state"),
        seed=whole("seed"),
        firmware=str(values["fw"]),
        serial=str(values["serial"]),
        migratable=bool(values["migratable"]),
        multi_load=bool(values["multi_load"]),
        chunk_mode=bool(values["chunks"]),
        migration_state=bool(values["migration_state"]),
        image_version=whole("image_version"),
        page_track=bool(values["page_track"]),
        reinit_pages=whole("reinit_pages"),
        first_session=whole("first_session"),
        **more,  # type: ignore[arg-type]
    )


def faults(values: Mapping[str, object]) -> FaultPlan:
    """The faults that ``values`` describe."""
    plan = values["fault"]
    assert isinstance(plan, FaultPlan)
    return plan
