"""``precopy lab``."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import click

from precopy.cli.common import fail
from precopy.connectx.trace import to as trace_to
from precopy.engine.outcome import ExitStatus
from precopy.lab import Job, meet
from precopy.lab import run as run_job
from precopy.lab.build import build as build_kernel
from precopy.lab.card import Card
from precopy.lab.errors import LabError
from precopy.lab.machine import ready


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


@lab.command(context_settings={"ignore_unknown_options": True})
@click.option("--mtty", default=0, show_default=True, help="mtty devices (mdevs) to make.")
@click.option("--adapter", default="", help="A software ConnectX, as mlx5?vfs=2 (--list-adapter).")
@click.option("--trace", is_flag=True, help="Each firmware command of the adapter, on stderr.")
@click.option("--memory", default="512M", show_default=True, help="Of the kernel.")
@click.option("--timeout", default=120.0, show_default=True, help="Seconds for all of it.")
@click.option(
    "--write",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A directory of this machine that the command may write to.",
)
@click.option(
    "--link",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Join it by a network to the kernel of another lab run --link PATH: who comes first waits"
    " and is 10.77.0.1, the other is 10.77.0.2.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    mtty: int,
    adapter: str,
    trace: bool,
    memory: str,
    timeout: float,
    write: tuple[Path, ...],
    link: Path | None,
    command: tuple[str, ...],
) -> None:
    """Boot the kernel and run COMMAND in it, over this machine's files, which it can't change."""
    job = Job(command, mtty=mtty, adapter=adapter, memory=memory, timeout=timeout, writable=write)
    try:
        # Before anybody is kept waiting.
        ready(job)
        with meet(link, timeout, say) if link else nullcontext() as cable:
            result = run_job(
                job,
                _to(sys.stdout),
                _to(sys.stderr),
                link=cable,
                prepare=_traced if trace else None,
            )
    except LabError as error:
        fail(f"lab: {error}", ExitStatus.FAILED)
    if result.trouble:
        print(f"precopy: lab: {result.trouble}", file=sys.stderr)
    sys.exit(result.status)


def _traced(card: Card) -> None:
    card.adapter.firmware.trace = trace_to(lambda line: print(line, file=sys.stderr, flush=True))


def _to(stream: TextIO) -> Callable[[str], object]:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write
