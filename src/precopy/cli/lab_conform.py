"""``precopy lab conform``."""

import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import click

from precopy.cli.common import fail, warn
from precopy.engine.outcome import ExitStatus
from precopy.lab.build import ORDINARY, VARIANTS, VERSIONS, build, built
from precopy.lab.errors import LabError

if TYPE_CHECKING:
    from precopy.conformance.matrix.holding import Held


@click.command()
@click.option(
    "--kernel",
    "versions",
    multiple=True,
    type=click.Choice(tuple(VERSIONS)),
    default=tuple(VERSIONS),
    show_default=True,
    help="Kernels for the drivers. May be given twice.",
)
@click.option(
    "--variant",
    type=click.Choice(tuple(VARIANTS)),
    default=ORDINARY,
    show_default=True,
    help="Of these; dangerous checks run in a debug kernel each, whatever stands here.",
)
@click.option(
    "--target",
    "names",
    multiple=True,
    metavar="NAME",
    help="Only this target, as mtty, or all that begin so, as 'mlx5'. May be given twice.",
)
@click.option(
    "--only", multiple=True, metavar="R33,NAME", help="Checks by name, or those of a requirement."
)
@click.option(
    "--write",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write the results there as JSON; what the file has of other targets is kept.",
)
@click.option("--jobs", type=click.IntRange(1, 16), default=1, show_default=True, help="At once.")
@click.option("--list", "listing", is_flag=True, help="What targets there are, and no more.")
def conform(
    versions: tuple[str, ...],
    variant: str,
    names: tuple[str, ...],
    only: tuple[str, ...],
    write: Path | None,
    jobs: int,
    listing: bool,
) -> None:
    """Hold drivers and devices to the VFIO migration uAPI: all that can be had in the lab.

    The kernel's mtty, and its mlx5_vfio_pci in every mix of the software ConnectX's capabilities, on
    each kernel; our own devices, in process and by vfio-user. Kernels are built where they are not
    there. One that goes down is the verdict of the check that was under way, and the others go on.

    Exit status: that of precopy conform; the worst counts.
    """
    # Imported when wanted: other commands of the lab run in its kernels, where imports are slow.
    from precopy.conformance.matrix import ledger, targets
    from precopy.conformance.matrix.holding import hold
    from precopy.conformance.runner import SelectionError, load, select

    found = [
        each
        for each in targets.targets()
        if not names or any(f"{each.name} ".startswith(f"{name} ") for name in names)
    ]
    if not found:
        fail(f"--target {names[0]}: no such target; --list has them", ExitStatus.USAGE)
    if listing:
        print(*(each.name for each in found), sep="\n")
        return
    try:
        checks = select([name.strip() for each in only for name in each.split(",")], load())
        old = ledger.load(write) if write and write.exists() else []
    except (SelectionError, ledger.LedgerError) as error:
        fail(str(error), ExitStatus.USAGE)
    if only and write:
        fail("--write: a file of results is of all checks, so not with --only", ExitStatus.USAGE)
    cells = list(targets.cells(found, versions, variant))
    rows: list[ledger.Row] = []

    def add(held: "Held") -> None:
        rows.append(ledger.row(held))
        _tell(held)
        if write:
            # As they come: a run of all takes an hour.
            write.write_text(ledger.dump(ledger.merge(old, rows)), encoding="utf-8")

    try:
        versions = tuple(dict.fromkeys(kernel.version for _, kernel in cells if kernel))
        _build(versions, variant, debug=any(each.dangerous for each in checks))
        with ThreadPoolExecutor(jobs) as pool:
            try:
                for held in pool.map(lambda cell: hold(cell[0], cell[1], checks), cells):
                    add(held)
            except BaseException:
                # What has not begun is not waited for.
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except LabError as error:
        fail(f"lab: {error}", ExitStatus.FAILED)
    for where, subject, reason in ledger.gone(rows):
        print(f"{where}: {subject} is stated as known and fails no more: {reason}")
    sys.exit(ledger.worst(rows))


def _build(versions: Sequence[str], variant: str, *, debug: bool) -> None:
    variants = dict.fromkeys((variant, "debug") if debug else (variant,))
    for version in versions:
        # One of the user's own source stays.
        missing = [each for each in variants if built(each, version) is None]
        if missing:
            build(lambda text: warn(f"lab: {text}"), variants=missing, version=version)


def _tell(held: "Held") -> None:
    """A line for the target, and one for each failure that nobody has stated."""
    from precopy.conformance.outcome import Verdict

    where = ""
    if held.kernel:
        where = f" on {held.kernel.name}" + (f" ({held.release})" if held.release else "")
    counts = Counter(each.told for each in held.results)
    sums = ", ".join(f"{count} {told}" for told, count in counts.items())
    print(f"{held.target.name}{where}: {sums}", flush=True)
    not_run = Counter(each.came for each in held.results if each.verdict is Verdict.NOT_RUN)
    for each in held.results:
        if each.is_failure and each.verdict is not Verdict.NOT_RUN:
            came = f"{each.what}: expected {each.expected}, came {each.came}"
            print(f"  {each.told}: {each.check.name}: {came if each.what else each.came}")
    for reason, count in not_run.items():
        print(f"  {count} not run: {reason}")
    if held.surprise:
        print(f"  {held.surprise}")
