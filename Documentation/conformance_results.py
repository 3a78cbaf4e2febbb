"""``.. conformance-results::`` and its kin: what ``precopy lab conform --write`` has left in a file."""

from collections.abc import Iterable
from pathlib import Path

from conformance_tables import Generated, rows, text
from docutils import nodes
from sphinx.application import Sphinx

from precopy.conformance.matrix.ledger import Entry, Row, load

FILE = Path(__file__).parent / "conformance/results.json"

#: Columns of the first table, and what is counted in each.
_COUNTED = (
    ("pass", ("pass",)),
    ("known", ("known",)),
    ("fail", ("fail",)),
    ("hang, kernel down", ("hang", "kernel down")),
    ("not run", ("not run",)),
    ("not applicable", ("not applicable",)),
)

#: More checks than these are counted, not named.
_MANY = 12

#: What is told by its reason, not check by check.
_SKIPPED = "not applicable"


def _where(row: Row) -> str:
    return row.release or "no kernel"


def summary() -> list[str]:
    """A line for each target on each kernel."""
    head = [["Target"], ["Kernel"], *([name] for name, _ in _COUNTED)]
    lines = [
        [
            [f"``{row.target}``"],
            [_where(row)],
            *([str(sum(map(row.count, told)))] for _, told in _COUNTED),
        ]
        for row in load(FILE)
    ]
    return list(rows([head, *lines], "26 14 8 9 7 13 9 14"))


def _of(found: Iterable[Row], everywhere: list[Row]) -> str:
    """Which rows these are, in words: by kernel, and by target where it is not all of them."""
    there = list(found)
    by_targets: dict[str, list[str]] = {}
    for where in dict.fromkeys(_where(row) for row in there):
        names = [row.target for row in there if _where(row) == where]
        # Where all is not applicable, nothing could have come.
        others = [
            row.target
            for row in everywhere
            if _where(row) == where
            and row.target not in names
            and row.count(_SKIPPED) < sum(row.counts.values())
        ]
        but = len(others) < len(names)
        which = ", ".join(f"``{name}``" for name in (others if but else names))
        told = (f": all but {which}" if but else f": {which}") if others else ""
        by_targets.setdefault(told, []).append(where)
    return "; ".join(f"{', '.join(kernels)}{told}" for told, kernels in by_targets.items())


def failures() -> list[str]:
    """For each driver what does not pass somewhere: why, which checks say so, and where."""
    found = load(FILE)
    lines: list[str] = []
    for driver in dict.fromkeys(row.driver for row in found):
        mine = [row for row in found if row.driver == driver]
        by_check: dict[tuple[str, str], list[Row]] = {}
        for row in mine:
            for each in row.entries:
                if each.told != _SKIPPED:
                    by_check.setdefault((_told(each), each.check), []).append(row)
        # One line for all checks that stop at the same thing, at the same places.
        by_reason: dict[tuple[str, str], list[str]] = {}
        for (told, check), there in sorted(by_check.items()):
            by_reason.setdefault((told, _of(there, mine)), []).append(check)
        if not by_reason:
            continue
        table = [[["What comes of it"], ["Checks"], ["Where"]]]
        for (told, where), checks in by_reason.items():
            table.append([[told], [", ".join(f"``{check}``" for check in checks)], [where]])
        lines += [f".. rubric:: {driver}", "", *rows(table, "45 35 20")]
    return lines


def _told(entry: Entry) -> str:
    """The verdict and why; what is known with its place in the source, and in our list of defects."""
    down = entry.told == "known" and entry.verdict != "fail"
    told = f"{entry.told}, {entry.verdict}" if down else entry.told
    where, _, defect = entry.reference.partition("; defects: ")
    why = f"*{told}*: {text(entry.why)}"
    if where:
        why += f" ({text(where)})"
    if defect:
        why += f": :ref:`defect-{defect.replace('_', '-')}`"
    return why


def skipped() -> list[str]:
    """Why checks say nothing: each reason, the checks that give it, and where."""
    found = load(FILE)
    by_reason: dict[str, dict[str, dict[str, None]]] = {}
    for row in found:
        for each in row.entries:
            if each.told == _SKIPPED:
                checks = by_reason.setdefault(each.why, {})
                checks.setdefault(each.check, {})[row.driver] = None
    table = [[["Reason"], ["Checks"], ["Where"]]]
    for reason, checks in sorted(by_reason.items()):
        drivers = dict.fromkeys(driver for where in checks.values() for driver in where)
        names = ", ".join(f"``{name}``" for name in checks)
        many = len(checks) > _MANY
        table.append(
            [[text(reason)], [f"{len(checks)} of them" if many else names], [", ".join(drivers)]]
        )
    return list(rows(table, "40 40 20"))


class _OfFile(Generated):
    """The page is made anew when the file is."""

    def run(self) -> list[nodes.Node]:
        self.state.document.settings.env.note_dependency(str(FILE))
        return super().run()


class Summary(_OfFile):
    lines = staticmethod(summary)


class Failures(_OfFile):
    lines = staticmethod(failures)


class Skipped(_OfFile):
    lines = staticmethod(skipped)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("conformance-results", Summary)
    app.add_directive("conformance-failures", Failures)
    app.add_directive("conformance-skipped", Skipped)
    return {"parallel_read_safe": True}
