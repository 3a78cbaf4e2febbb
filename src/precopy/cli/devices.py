"""``precopy devices``."""

import errno
import json
from collections.abc import Callable

import click
from rich.console import Console
from rich.table import Table

from precopy.backends import list_devices, open_device
from precopy.backends.sim import PARAMETERS
from precopy.vfio.guest import Opened
from precopy.vfio.uapi import Feature

#: What is told of a device; ``error``: why it can't be opened, or not be migrated.
COLUMNS = ("name", "driver", "id", "migration", "features", "notes", "error")

#: Where the output is no terminal, a device is one line, however long.
_ENDLESS = 1000

#: Features that not every device has, in short.
_SHORT = {
    Feature.DMA_LOGGING_START: "DMA logging",
    Feature.MIG_DATA_SIZE: "DATA_SIZE",
    Feature.MIG_PRECOPY_INFO_V2: "INFOv2",
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def devices(as_json: bool) -> None:
    """What devices are here, and what they support."""
    found = [describe(name, _open) for name in ["sim:mlx5", *list_devices()]]
    if as_json:
        print(json.dumps({"devices": found}, indent=2))
        return
    console = Console()
    table = Table(title="Devices", title_justify="left")
    table.add_column("name", no_wrap=True)
    table.add_column("device")
    table.add_column("supports")
    table.add_column("notes")
    for row in found:
        supports = f"{row['migration']} {row['features']}".strip()
        table.add_row(
            row["name"],
            f"{row['driver']} {row['id']}".strip(),
            supports,
            row["error"] or row["notes"],
        )
    if not console.is_terminal:
        console.width = _ENDLESS
    console.print(table)
    options = Table(title="Parameters of sim:mlx5?name=value&...", title_justify="left")
    for column in ("name", "default", "meaning"):
        options.add_column(column)
    for name, parameter in PARAMETERS.items():
        options.add_row(name, parameter.default, parameter.help)
    console.print(options)


def _open(name: str) -> Opened:
    return open_device(name, target=True)


def describe(name: str, opener: Callable[[str], Opened]) -> dict[str, str]:
    """The row of the device ``name``, which ``opener`` opens."""
    row = dict.fromkeys(COLUMNS, "")
    row["name"] = name
    try:
        opened = opener(name)
    except (OSError, ValueError) as error:
        row["error"] = _reason(error)
        return row
    try:
        _ask(opened, row)
    except OSError as error:
        unable = "its driver can't migrate it"
        row["error"] = unable if error.errno == errno.ENOTTY else _reason(error)
    finally:
        opened.close()
    return row


def _ask(opened: Opened, row: dict[str, str]) -> None:
    device = opened.device
    who = device.identity
    row["driver"], row["id"] = who.driver, f"{who.vendor_id:04x}:{who.device_id:04x}"
    row["notes"] = ", ".join(f"{key} {value}" for key, value in who.details.items())
    has = device.features()
    row["features"] = ", ".join(short for feature, short in _SHORT.items() if feature in has)
    row["migration"] = " ".join(flag.name or "" for flag in device.migration_flags)


def _reason(error: OSError | ValueError) -> str:
    """The one line of ``error``, without the name, which stands in the row already."""
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
