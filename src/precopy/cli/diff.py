"""``precopy diff``."""

import json
from pathlib import Path

import click

from precopy.cli.common import fail, warn
from precopy.cli.streams import check_format, opened
from precopy.engine.outcome import ExitStatus, reason_of
from precopy.stream.compare import Inventory, compare, inventory

#: The exit status where the two are not the same.
DIFFERENT = 1


def _read(file: Path, name: str) -> Inventory:
    try:
        with opened(file) as source:
            found = inventory(source, name)
    except OSError as error:
        fail(f"{file}: {reason_of(error)}", ExitStatus.FAILED)
    for wrong in found.wrongs:
        warn(f"{file}: {wrong}")
    if found.left_out:
        warn(f"{file}: {found.left_out} items behind the first {len(found.items)} not compared")
    return found


@click.command()
@click.argument("one", type=click.Path(path_type=Path))
@click.argument("other", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Where the files carry streams (recordings, QEMU's), also what is around those.",
)
@click.option("--format", "name", default="", help="Of both, where their bytes don't tell.")
@click.pass_context
def diff(
    context: click.Context, one: Path, other: Path, as_json: bool, everything: bool, name: str
) -> None:
    """Compare two streams of a device: what changed (~), what only ONE (-) or only OTHER (+) has.

    Exit status: 0 where they are the same, 1 where not.
    """
    check_format(name)
    first, second = _read(one, name), _read(other, name)
    if not everything:
        first.keep_carried()
        second.keep_carried()
    different = False
    for each in compare(first, second):
        different = True
        if as_json:
            print(
                json.dumps(
                    {
                        "change": each.change.name.lower(),
                        "path": each.path,
                        "file_offset": each.offset,
                        "text": each.text,
                        "inside": each.inside,
                    }
                )
            )
        else:
            print(each)
    if different:
        context.exit(DIFFERENT)
