"""``precopy inspect``."""

import contextlib
import os
import sys
from pathlib import Path

import click

from precopy.cli.common import fail, warn
from precopy.cli.streams import check_format, opened, warn_of_broken
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.stream.dissect import dissect
from precopy.stream.extract import MAX_STREAMS, Extract
from precopy.stream.item import Several, Silent, Sink, Wrong
from precopy.stream.place import Place
from precopy.stream.registry import formats
from precopy.stream.show import Brief, Lines, Tree

#: The exit status where something in the stream is wrong, or nobody knows its format.
WRONG = 1


def _offset(value: str) -> int:
    """The type of an option that is an offset: a number, hexadecimal behind 0x."""
    try:
        found = int(value, 0)
    except ValueError:
        found = -1
    if found < 0:
        raise click.BadParameter(f"{value} is no offset; write 4096 or 0x1000")
    return found


_offset.__name__ = "offset"


def _list_formats(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        warn_of_broken()
        for each in sorted(formats().values(), key=lambda each: each.name):
            print(f"{each.name:12} {each.title}")
        context.exit()


class _Verdict(Silent):
    """How much is wrong, in all streams."""

    wrongs = 0

    def wrong(self, wrong: Wrong) -> None:
        self.wrongs += 1


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("channels", nargs=-1, type=click.Path(path_type=Path), metavar="[CHANNEL]...")
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@click.option("--brief", is_flag=True, help="Only what it comes to, and what is wrong.")
@click.option("--at", type=_offset, metavar="OFFSET", help="What lies at this byte of the file.")
@click.option("--format", "name", help="Of the stream, where its first bytes don't tell.")
@click.option(
    "--extract",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write the streams that are carried in it (devices' states) there.",
)
@click.option(
    "--formats",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_list_formats,
    help="List them.",
)
@click.pass_context
def inspect(
    context: click.Context,
    file: Path,
    channels: tuple[Path, ...],
    as_json: bool,
    brief: bool,
    at: int | None,
    name: str | None,
    extract: Path | None,
) -> None:
    """Dissect FILE (- is standard input): a device's stream, or one that carries it.

    CHANNELs are captures of multifd's channels where FILE is one of QEMU's main stream: the devices'
    states that went over them are put together. By itself, each can be dissected as FILE.

    Exit status: 0, or 1 where something in it is wrong or its format is not known.
    """
    check_format(name)
    show = Lines if as_json else Brief if brief else Tree
    teller, verdict = show(sys.stdout.write), _Verdict()
    place = Place(at) if at is not None else None
    sinks: list[Sink] = [verdict, place if place is not None else teller]
    with contextlib.ExitStack() as stack:
        try:
            extraction = Extract(extract) if extract is not None else None
            if extraction is not None:
                sinks.append(extraction)
                stack.callback(extraction.close)
            source = stack.enter_context(opened(file))
            beside = [stack.enter_context(opened(each)) for each in channels]
            dissect(source, Several(*sinks), name or "", beside=beside)
            if place is not None:
                _tell_place(place)
            else:
                teller.close()
            sys.stdout.flush()
        except BrokenPipeError:
            # Whoever read it has seen enough.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return
        except OSError as error:
            fail(f"{error.filename or file}: {reason_of(error)}", ExitStatus.FAILED)
    if extraction is not None:
        _tell_extracted(extraction)
    if verdict.wrongs:
        context.exit(WRONG)


def _tell_place(place: Place) -> None:
    items = place.items()
    if not items:
        print(f"{place.offset:#x} is not in the file, or in nothing that is known")
    for depth, item in enumerate(items):
        inner = f" (byte {place.offset_in(item.stream):#x} of {item.stream})" if item.stream else ""
        told = f"{item.name}  {item.text}".rstrip()
        where = f"{item.file_offset:#x}, {item.size} bytes"
        print(f"{'  ' * depth}{told}  at {where}{inner}")
    field = place.field()
    if field is not None:
        print(f"{'  ' * len(items)}field {field.name} = {field.text}, {field.size} bytes")
    for wrong in place.wrongs():
        print(f"WRONG: {wrong}")


def _tell_extracted(extraction: Extract) -> None:
    for stream, path in extraction.written.items():
        warn(f"{stream} written to {path}")
    if extraction.left_out:
        warn(f"{extraction.left_out} more streams left out: more than {MAX_STREAMS}")
