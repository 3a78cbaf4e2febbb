"""``precopy conform``."""

import platform
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from precopy.backends import DeviceNameError, open_device
from precopy.cli.common import fail, open_or_fail
from precopy.conformance import known as known_differences
from precopy.conformance import report as reports
from precopy.conformance.check import Check
from precopy.conformance.outcome import ConformStatus, Known, status_of
from precopy.conformance.requirements import REQUIREMENTS
from precopy.conformance.runner import Runner, SelectionError, about, load, select
from precopy.engine.outcome import ExitStatus
from precopy.vfio.guest import Opened

#: Where the output is no terminal, a row is one line, however long.
_ENDLESS = 1000

FORMATS = ("table", "ktap", *reports.WHOLE)


def _listed(
    _context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]
) -> list[str]:
    return [each.strip() for value in values for each in value.split(",") if each.strip()]


@click.command()
@click.argument("device", required=False)
@click.option("--peer", metavar="DEVICE", help="Another device, to load saved states into.")
@click.option(
    "--only",
    multiple=True,
    metavar="R33,NAME",
    callback=_listed,
    help="Checks by name, or those of a requirement.",
)
@click.option("--dangerous", is_flag=True, help="Also checks that can bring a kernel down.")
@click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)
@click.option(
    "--known",
    "known_files",
    multiple=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Failures that are expected (TOML, or mtty or mlx5). Those pass; those that are gone fail.",
)
@click.option("--list", "listing", is_flag=True, help="What checks there are, and no more.")
def conform(
    device: str | None,
    peer: str | None,
    only: list[str],
    dangerous: bool,
    form: str,
    known_files: tuple[Path, ...],
    listing: bool,
) -> None:
    """Hold DEVICE to the VFIO migration uAPI.

    It must be nobody's: it is reset and loaded again and again. Each check ends as pass, fail, known,
    not applicable, hang, or not run (where the device hangs).

    \b
    Exit status:
       0  all is well
       2  the command line, a device's name or a file of known differences is wrong
       4  a device can't be opened
      10  a requirement of the uAPI's text does not hold
      11  none of those, but one of the kernel's contract
      12  none of those, but one of quality
      13  a check hung, or the device could not be made ready for one
      14  all else is well, but a known difference is gone
    """
    checks = load()
    try:
        selected = select(only, checks)
        stated = [each for path in known_files for each in known_differences.load(path)]
        stated = known_differences.of_kernel(stated, platform.release())
    except (SelectionError, known_differences.KnownError) as error:
        fail(str(error), ExitStatus.USAGE)
    if listing:
        _list(selected)
        return
    if not device:
        raise click.UsageError("Missing argument 'DEVICE'.")
    if peer == device and not device.startswith("sim:"):
        fail(f"{peer}: the peer has to be another device", ExitStatus.USAGE)
    sys.exit(_run(device, peer, selected, dangerous, form, stated))


def _run(
    device: str,
    peer: str | None,
    selected: list[Check],
    dangerous: bool,
    form: str,
    stated: list[Known],
) -> ConformStatus:
    def opener(name: str, *, target: bool) -> Opened:
        try:
            return open_device(name, target=target)
        except DeviceNameError as error:
            raise OSError(str(error)) from error

    command = ["precopy", "conform", device, *(["--peer", peer] if peer else [])]
    report = reports.Report(device, _about(device, peer), command, stated=bool(stated))

    def announce(check: Check) -> None:
        if form == "ktap":
            # Should the kernel go down, the last line says what was under way.
            _say([f"# {check.name}: {reports.numbers(check)}"])

    runner = Runner(
        lambda: opener(device, target=False),
        (lambda: opener(peer, target=True)) if peer else None,
        dangerous=dangerous,
        announce=announce,
    )
    if form == "ktap":
        _say(reports.ktap_head(report, len(selected)))
    for result in runner.run(selected):
        # What is gone can only be told at the end.
        known_differences.apply([result], stated)
        report.results.append(result)
        if form == "ktap":
            _say(reports.ktap_result(report, len(report.results), result))
    report.gone = known_differences.apply(report.results, stated)
    if form == "ktap":
        _say(reports.ktap_tail(report))
    elif form == "table":
        console = Console()
        if not console.is_terminal:
            console.width = _ENDLESS
        reports.table(report, console)
    else:
        _say([reports.WHOLE[form](report)])
    return status_of(report.results, report.gone)


def _about(device: str, peer: str | None) -> str:
    """Who the device is. Ends the command where it, or its peer, can't be opened or not migrated."""
    found = []
    for name in filter(None, (device, peer)):
        opened = open_or_fail(name, target=True)
        try:
            found.append(about(opened.device))
        except OSError as error:
            fail(f"{name}: its driver can't migrate it: {error.strerror}", ExitStatus.FAILED)
        finally:
            opened.close()
    return found[0]


def _list(selected: list[Check]) -> None:
    console = Console()
    if not console.is_terminal:
        console.width = _ENDLESS
    rows = Table(title="Checks", title_justify="left")
    rows.add_column("name", no_wrap=True)
    for column in ("requirements", "severity", "what", "said in"):
        rows.add_column(column)
    for check in selected:
        said = dict.fromkeys(REQUIREMENTS[number].source for number in check.requirements)
        rows.add_row(
            check.name,
            reports.numbers(check),
            check.severity.value + (", dangerous" if check.dangerous else ""),
            check.text,
            "; ".join(said),
        )
    console.print(rows)


def _say(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)
