"""``precopy``: the command line."""

import sys

import click

from precopy.cli.devices import devices
from precopy.cli.lab import lab
from precopy.cli.migrate import migrate
from precopy.cli.receive import receive


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="precopy")
def main() -> None:
    """Live migration of VFIO devices: simulated ones, and the kernel's."""
    # A thread that waits for its turn makes downtime: the default of 5 ms is long here.
    sys.setswitchinterval(0.0005)


for command in (migrate, receive, devices, lab):
    main.add_command(command)
