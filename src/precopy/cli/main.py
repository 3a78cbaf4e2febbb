"""``precopy``: the command line."""

import importlib
import sys

import click

#: Every command: the module that has it, under the command's own name. A module is imported when its
#: command is wanted: in a lab kernel most of a command's time would go into importing the others.
COMMANDS = {
    "conform": "precopy.cli.conform",
    "devices": "precopy.cli.devices",
    "diff": "precopy.cli.diff",
    "experiment": "precopy.cli.experiment",
    "inspect": "precopy.cli.inspect",
    "lab": "precopy.cli.lab",
    "load": "precopy.cli.load",
    "migrate": "precopy.cli.migrate",
    "receive": "precopy.cli.receive",
    "replay": "precopy.cli.replay",
    "save": "precopy.cli.save",
    "serve": "precopy.cli.serve",
    "timeline": "precopy.cli.timeline",
}


class Commands(click.Group):
    """The commands of :data:`COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        found = getattr(importlib.import_module(module), cmd_name)
        assert isinstance(found, click.Command)
        return found


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="precopy")
def main() -> None:
    """Live migration of VFIO devices: simulated ones, and the kernel's."""
    # A thread that waits for its turn makes downtime: the default of 5 ms is long here.
    sys.setswitchinterval(0.0005)
