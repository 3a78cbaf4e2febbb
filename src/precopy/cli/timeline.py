"""``precopy timeline``, and the option ``--timeline`` of the commands that move a device."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import click

from precopy.cli.common import fail, warn
from precopy.engine.outcome import ExitStatus, MigrationError, reason_of
from precopy.engine.timeline import Timeline
from precopy.engine.timeline.perfetto import TraceError, read
from precopy.engine.timeline.perfetto import write as write_trace


def _write_page(timeline: Timeline, out: IO[str]) -> None:
    # Imported when wanted: most timelines are wanted as a trace or not at all.
    from precopy.engine.timeline.page import page

    out.write(page(timeline))


#: By the end of a file's name: how a timeline is written to it.
WRITERS: dict[str, Callable[[Timeline, IO[str]], None]] = {
    ".json": write_trace,
    ".html": _write_page,
}


def option(command: Callable[..., None]) -> Callable[..., None]:
    """The option ``--timeline``, given to its command as ``timelines``."""
    return click.option(
        "--timeline",
        "timelines",
        multiple=True,
        type=click.Path(path_type=Path, dir_okay=False),
        callback=_checked,
        metavar="FILE",
        help="Write what happened when to FILE: .json for Perfetto and chrome://tracing, .html for a"
        " page; can be given twice.",
    )(command)


def _checked(
    context: click.Context, parameter: click.Parameter, files: Sequence[Path]
) -> Sequence[Path]:
    """What could not be written at the end is said at the beginning."""
    for file in files:
        if file.suffix not in WRITERS:
            raise click.BadParameter(f"{file} ends neither in .json nor in .html")
        if not os.access(file.parent, os.W_OK | os.X_OK):
            raise click.BadParameter(f"{file}: its directory is not there or can't be written to")
    return files


@contextlib.contextmanager
def written(timeline: Timeline | None, files: Sequence[Path]) -> Iterator[None]:
    """At the end, however the migration in it ends, ``timeline`` is written to each of ``files``.

    One that can't be written is told of, and changes nothing.
    """
    if timeline is None:
        yield
        return
    try:
        yield
    except MigrationError as error:
        if not timeline.outcome:
            timeline.end(str(error))
        raise
    finally:
        for file in files:
            try:
                _write(timeline, file)
            except OSError as error:
                warn(f"the timeline can't be written: {file}: {reason_of(error)}")


def _write(timeline: Timeline, file: Path) -> None:
    """All of it or nothing. OSError."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=file.parent, prefix=f".{file.name}.", delete=False
    ) as out:
        try:
            WRITERS[file.suffix](timeline, out)
            out.flush()
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(out.fileno(), 0o666 & ~mask)
            os.replace(out.name, file)
        except BaseException:
            os.unlink(out.name)
            raise


@click.command()
@click.argument("trace", type=click.Path(path_type=Path))
@click.argument("page", type=click.Path(path_type=Path, dir_okay=False))
def timeline(trace: Path, page: Path) -> None:
    """Make PAGE (.html) of TRACE, which --timeline has written as .json."""
    if page.suffix != ".html":
        fail(f"{page} does not end in .html", ExitStatus.USAGE)
    try:
        found = read(trace)
    except TraceError as error:
        fail(f"{trace}: {error}", ExitStatus.FAILED)
    except OSError as error:
        fail(f"{trace}: {reason_of(error)}", ExitStatus.FAILED)
    try:
        _write(found, page)
    except OSError as error:
        fail(f"{page}: {reason_of(error)}", ExitStatus.FAILED)
