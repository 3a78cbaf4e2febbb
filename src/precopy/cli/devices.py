"""``precopy devices``."""

import json

import click
from rich.console import Console
from rich.table import Table

from precopy.backends import list_devices, open_device
from precopy.backends.sim import PARAMETERS
from precopy.vfio.uapi import Feature


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def devices(as_json: bool) -> None:
    """What devices are here, and what they support."""
    found = [_describe(name) for name in ["sim:mlx5", *list_devices()]]
    if as_json:
        print(json.dumps({"devices": found}, indent=2))
        return
    console = Console()
    table = Table(title="Devices", title_justify="left")
    for column in ("name", "driver", "id", "migration", "features", "notes"):
        table.add_column(column)
    for row in found:
        table.add_row(
            *(str(row[key]) for key in ("name", "driver", "id", "migration", "features", "notes"))
        )
    console.print(table)
    options = Table(title="Parameters of sim:mlx5?name=value&...", title_justify="left")
    for column in ("name", "default", "meaning"):
        options.add_column(column)
    for name, parameter in PARAMETERS.items():
        options.add_row(name, parameter.default, parameter.help)
    console.print(options)


def _describe(name: str) -> dict[str, str]:
    row = dict.fromkeys(("driver", "id", "migration", "features", "notes"), "")
    row["name"] = name
    try:
        opened = open_device(name, target=True)
    except (OSError, ValueError) as error:
        row["notes"] = getattr(error, "strerror", None) or str(error)
        return row
    try:
        who = opened.device.identity
        row["driver"], row["id"] = who.driver, f"{who.vendor_id:04x}:{who.device_id:04x}"
        row["features"] = ", ".join(Feature(each).name for each in sorted(opened.device.features()))
        row["notes"] = ", ".join(f"{key} {value}" for key, value in who.details.items())
        flags = opened.device.migration_flags
        row["migration"] = " ".join(flag.name or "" for flag in flags)
    except OSError as error:
        row["migration"] = "no"
        row["notes"] = error.strerror or str(error)
    finally:
        opened.close()
    return row
