"""``precopy experiment``."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click

from precopy.cli.common import fail, size, warn
from precopy.cli.signals import Signals
from precopy.engine.outcome import ExitStatus
from precopy.experiments import ExperimentError, Result, convergence, machine, plot
from precopy.experiments import downtime as downtimes
from precopy.experiments import queues as many_queues
from precopy.experiments.moves import Mover, Tell, move

Settings = TypeVar("Settings", convergence.Settings, downtimes.Settings, many_queues.Settings)

Item = TypeVar("Item")

#: Where the output is no terminal, a row is one line, however long.
_ENDLESS = 1000


def listed(convert: Callable[[str], Item], what: str) -> Callable[[str], tuple[Item, ...]]:
    """The type of an option that takes several values with commas between."""

    def parse(value: str) -> tuple[Item, ...]:
        try:
            return tuple(convert(each.strip()) for each in value.split(","))
        except ValueError:
            raise click.BadParameter(f"{value}: write {what} with commas between") from None

    parse.__name__ = "list"
    return parse


def _percent(text: str) -> float:
    found = float(text)
    if not 0 < found <= 1000:
        raise ValueError(text)
    return found


def _pairs(text: str) -> int:
    found = int(text)
    if not 1 <= found <= 1 << 17:
        raise ValueError(text)
    return found


def _some_bytes(value: str) -> int:
    """Whole MiB, at least one: what a device's name says."""
    found = size(value)
    if not found or found % (1 << 20):
        raise click.BadParameter(f"{value}: write whole MiB, such as 64M or 1G")
    return found


def _picture(
    _context: click.Context, _parameter: click.Parameter, path: Path | None
) -> Path | None:
    if path is not None and path.suffix not in plot.SUFFIXES:
        raise click.BadParameter(f"{path}: a plot ends in {' or '.join(plot.SUFFIXES)}")
    return path


def _common(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--json", "as_json", is_flag=True, help="The result, with every run, as JSON."
        ),
        click.option(
            "--plot",
            "picture",
            type=click.Path(path_type=Path, dir_okay=False),
            callback=_picture,
            help="Draw it into FILE.svg or FILE.png (needs matplotlib).",
            metavar="FILE",
        ),
        click.option("--quick", is_flag=True, help="A small one, in under 40 seconds."),
        click.option(
            "--runs",
            type=click.IntRange(1, 1000),
            default=5,
            show_default=True,
            help="How often each point is measured.",
        ),
    ):
        command = option(command)
    return command


@click.group()
def experiment() -> None:
    """Measure here what is published about live migration.

    Each run moves a simulated device between two processes, as precopy migrate does.
    """


@experiment.command()
@_common
@click.option(
    "--sizes", type=listed(_some_bytes, "sizes"), help="Bytes of state.  [default: 16M,64M,256M,1G]"
)
def downtime(sizes: tuple[int, ...] | None, runs: int, quick: bool, **output: Any) -> None:
    """Downtime with and without PRE_COPY against the size of the state."""
    settings = downtimes.Settings(runs=runs)
    settings = settings.quick() if quick else settings
    _carry_out(downtimes.run, replace(settings, sizes=sizes) if sizes else settings, **output)


@experiment.command(name="convergence")
@_common
@click.option(
    "--loads",
    type=listed(_percent, "percentages"),
    help="Percent of the bandwidth that is written.",
)
@click.option("--max-bandwidth", type=_some_bytes, help="Bytes a second.  [default: 64M]")
@click.option("--memory", type=_some_bytes, help="Bytes of guest memory.  [default: 48M]")
def converge(
    loads: tuple[float, ...] | None,
    max_bandwidth: int | None,
    memory: int | None,
    runs: int,
    quick: bool,
    **output: Any,
) -> None:
    """Rounds, time and downtime against how fast the guest writes."""
    settings = convergence.Settings(runs=runs)
    settings = settings.quick() if quick else settings
    if loads:
        settings = replace(settings, loads=loads, others=())
    settings = replace(
        settings,
        bandwidth=max_bandwidth or settings.bandwidth,
        memory=memory or settings.memory,
    )
    _carry_out(convergence.run, settings, **output)


@experiment.command()
@_common
@click.option(
    "--pairs",
    type=listed(_pairs, "numbers from 1 to 131072"),
    help="QP pairs.  [default: 100,1000,10000,100000]",
)
def queues(pairs: tuple[int, ...] | None, runs: int, quick: bool, **output: Any) -> None:
    """Downtime against the number of QPs, with and without room made ahead."""
    settings = many_queues.Settings(runs=runs)
    settings = settings.quick() if quick else settings
    _carry_out(many_queues.run, replace(settings, pairs=pairs) if pairs else settings, **output)


def _carry_out(
    run: Callable[[Settings, Mover, Tell], Result],
    settings: Settings,
    picture: Path | None,
    as_json: bool,
) -> None:
    # The machine as it was before this loaded it.
    told = machine.facts(["precopy", *sys.argv[1:]])
    with Signals():
        try:
            if picture is not None:
                plot.require()
            result = run(settings, move, lambda text: warn(f"experiment: {text}"))
            if picture is not None:
                plot.draw(result, picture)
        except ExperimentError as error:
            fail(str(error), error.status)
        except OSError as error:
            fail(f"{picture}: {error.strerror}", ExitStatus.FAILED)
        except KeyboardInterrupt:
            fail("experiment: interrupted", ExitStatus.CANCELLED)
    if as_json:
        print(json.dumps({"machine": told, **result.to_dict()}, indent=2))
    else:
        show(result, told)


def show(result: Result, told: dict[str, Any]) -> None:
    """The result for people."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console.width = _ENDLESS
    console.print(result.question, highlight=False)
    for each in result.tables:
        table = Table(title=each.title, title_justify="left")
        for number, column in enumerate(each.columns):
            table.add_column(column.heading, justify="right" if number else "left")
        for row in each.texts():
            table.add_row(*row)
        console.print(table)
    for note in (*result.notes, machine.line(told)):
        console.print(note, highlight=False, markup=False)
