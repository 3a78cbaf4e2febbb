"""``precopy lab``."""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TextIO

import click
from rich.console import Console
from rich.table import Table

from precopy.cli.common import fail
from precopy.cli.lab_conform import conform
from precopy.connectx.config import FaultPlan
from precopy.connectx.controls import Remote
from precopy.engine.outcome import ExitStatus
from precopy.lab import Job, console, meet
from precopy.lab import coverage as driver_coverage
from precopy.lab import run as run_job
from precopy.lab.build import NEWEST, ORDINARY, VARIANTS, VERSIONS
from precopy.lab.build import build as build_kernel
from precopy.lab.card import PARAMETERS as CARD_OPTIONS
from precopy.lab.card import Card
from precopy.lab.errors import LabError
from precopy.lab.machine import ready
from precopy.mlx5_abi.commands import Opcode


@click.group()
def lab() -> None:
    """A real Linux kernel with real VFIO drivers, as a process."""


lab.add_command(conform)


def say(text: str) -> None:
    print(f"precopy: lab: {text}", file=sys.stderr, flush=True)


@lab.command()
@click.option(
    "--source", type=click.Path(path_type=Path), help="A kernel's source tree or tarball."
)
@click.option(
    "--kernel",
    "version",
    type=click.Choice(tuple(VERSIONS)),
    default=NEWEST,
    show_default=True,
    help="Which of Debian's linux-source packages; with --source, what that kernel is called.",
)
@click.option("--config", type=click.Path(exists=True, path_type=Path), help="Options, on top.")
@click.option("--jobs", type=click.IntRange(1), help="Compilers at a time.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(tuple(VARIANTS)),
    default=(ORDINARY,),
    help="debug: with lockdep, KASAN and other checkers. May be given twice.",
)
def build(
    source: Path | None,
    version: str,
    config: Path | None,
    jobs: int | None,
    variants: tuple[str, ...],
) -> None:
    """Build the lab's kernel, from Debian's newest linux-source unless told otherwise."""
    try:
        options = config.read_text() if config else None
        kernels = build_kernel(
            say, variants=variants, version=version, source=source, options=options, jobs=jobs
        )
        print(*kernels, sep="\n")
    except LabError as error:
        fail(f"lab: {error}", ExitStatus.FAILED)


@lab.command(context_settings={"ignore_unknown_options": True})
@click.option("--mtty", default=0, show_default=True, help="mtty devices (mdevs) to make.")
@click.option(
    "--adapter", default="", help="A software ConnectX in it: mlx5?vfs=2 (see lab adapters)."
)
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
@click.option(
    "--variant",
    type=click.Choice(tuple(VARIANTS)),
    help="The kernel; else that of $PRECOPY_LAB_VARIANT, else the ordinary one.",
)
@click.option(
    "--kernel",
    "version",
    type=click.Choice(tuple(VERSIONS)),
    help="Its version; else that of $PRECOPY_LAB_KERNEL, else the newest.",
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
    variant: str | None,
    version: str | None,
    command: tuple[str, ...],
) -> None:
    """Boot the kernel and run COMMAND in it, over this machine's files, which it can't change."""
    job = Job(
        command,
        mtty=mtty,
        adapter=adapter,
        memory=memory,
        timeout=timeout,
        writable=write,
        variant=variant or "",
        version=version or "",
    )
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
        # What the kernel has to say comes first, the one line for people last.
        print(console.report(result.kernel_log), file=sys.stderr)
        say(result.trouble)
    sys.exit(result.status or (ExitStatus.FAILED if result.trouble else 0))


@lab.command()
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where lab runs left their counters; else $PRECOPY_LAB_COVERAGE, else in the cache.",
)
@click.option("--least", type=float, metavar="PERCENT", help="Fail where less has been run.")
@click.option("--clear", is_flag=True, help="Forget what has been counted, and report nothing.")
def coverage(directory: Path | None, least: float | None, clear: bool) -> None:
    """Which lines of the kernel's mlx5 VFIO driver lab runs have reached, and why not the others.

    Lab runs count where $PRECOPY_LAB_COVERAGE names a directory.
    """
    where = directory or driver_coverage.default_directory()
    if clear:
        driver_coverage.clear(where)
        return
    try:
        found = driver_coverage.measure(where)
    except LabError as error:
        fail(f"lab: {error}", ExitStatus.FAILED)
    print("\n".join(driver_coverage.report(found)))
    if least is not None and found.percent() < least:
        fail(
            f"lab: {found.percent():.1f} % of the driver's lines have been run, less than {least:g}",
            ExitStatus.FAILED,
        )


@lab.command()
def adapters() -> None:
    """The options of --adapter mlx5?name=value&..."""
    table = Table(title="Options of mlx5?name=value&...", title_justify="left")
    for column in ("name", "default", "meaning"):
        table.add_column(column)
    for name, option in CARD_OPTIONS.items():
        table.add_row(name, option.default, option.help)
    Console().print(table)


@lab.command()
@click.argument("faults", nargs=-1)
@click.option("--clear", is_flag=True, help="Take all faults away.")
def fault(faults: tuple[str, ...], clear: bool) -> None:
    """Inside a lab kernel: let a command of its adapter fail.

    FAULTS are OPCODE:NTH:STATUS, counted from now, as SAVE_VHCA_STATE:1:0x9; STATUS may be never.
    """
    try:
        plan = FaultPlan.parse(",".join(faults))
        remote = Remote()
        if clear:
            remote.clear()
        for (opcode, nth), status in plan.faults.items():
            remote.plan(Opcode(opcode), nth, status)
    except ValueError as error:
        fail(f"lab: {error}", ExitStatus.USAGE)
    except OSError as error:
        fail(f"lab: no adapter in this kernel: {error.strerror}", ExitStatus.FAILED)


def _traced(card: Card) -> None:
    card.trace(lambda line: print(line, file=sys.stderr, flush=True))


def _to(stream: TextIO) -> Callable[[str], object]:
    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write
