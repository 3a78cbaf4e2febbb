"""``python -m benchmarks [NAME...]``: measures, prints a table, exits with 1 where a bound is missed."""

import sys

from rich.console import Console
from rich.table import Table

from benchmarks import (
    dirty,
    downtime,
    guest_memory,
    memory,
    qps,
    recording,
    stream,
    throughput,
    timeline,
    vfio_user,
)
from benchmarks.figure import Figure

ALL = {
    "throughput": throughput.measure,
    "downtime": downtime.measure,
    "qps": qps.measure,
    "memory": memory.measure,
    "vfio_user": vfio_user.measure,
    "guest_memory": guest_memory.measure,
    "dirty": dirty.measure,
    "stream": stream.measure,
    "timeline": timeline.measure,
    "recording": recording.measure,
}


def main(names: list[str]) -> int:
    unknown = set(names) - ALL.keys()
    if unknown:
        print(
            f"benchmarks: no such figure: {min(unknown)}; there are {', '.join(ALL)}",
            file=sys.stderr,
        )
        return 2
    figures: list[Figure] = []
    for name in names or ALL:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        figures += ALL[name]()
    table = Table(title="Figures", title_justify="left")
    for column in ("figure", "measured", "to reach", ""):
        table.add_column(column)
    for figure in figures:
        table.add_row(
            figure.name, figure.measured, figure.bound, "" if figure.reached else "MISSED"
        )
    Console(width=120).print(table)
    return 0 if all(figure.reached for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
