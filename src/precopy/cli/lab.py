"""``precopy lab``."""

import sys
from pathlib import Path

import click

from precopy.cli.common import fail
from precopy.engine.outcome import ExitStatus
from precopy.lab.build import build as build_kernel
from precopy.lab.errors import LabError


@click.group()
def lab() -> None:
    """A real Linux kernel with real VFIO drivers, as a process."""


def say(text: str) -> None:
    print(f"precopy: lab: {text}", file=sys.stderr, flush=True)


@lab.command()
@click.option(
    "--source", type=click.Path(path_type=Path), help="A kernel's source tree or tarball."
)
@click.option("--config", type=click.Path(exists=True, path_type=Path), help="Options, on top.")
@click.option("--jobs", type=int, help="Compilers at a time.")
def build(source: Path | None, config: Path | None, jobs: int | None) -> None:
    """Build the lab's kernel, from Debian's newest linux-source unless told otherwise."""
    try:
        options = config.read_text() if config else None
        print(build_kernel(say, source=source, options=options, jobs=jobs))
    except LabError as error:
        fail(f"lab: {error}", ExitStatus.FAILED)
