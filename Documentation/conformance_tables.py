"""``.. conformance-requirements::`` and ``.. conformance-checks::``: what ``precopy conform`` knows."""

from collections.abc import Iterator

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList
from sphinx.application import Sphinx

from precopy.conformance.check import Check
from precopy.conformance.requirements import REQUIREMENTS, Requirement
from precopy.conformance.runner import load


def text(plain: str) -> str:
    """Plain text, as reStructuredText that shows it as it is."""
    return "".join(f"\\{each}" if each in "\\*`|_<>" else each for each in plain)


def cell(first: str, *more: str) -> list[str]:
    return [first, *(line for each in more for line in ("", each))]


def rows(table: list[list[list[str]]], widths: str) -> Iterator[str]:
    yield from (".. list-table::", f"   :widths: {widths}", "   :header-rows: 1", "")
    for row in table:
        for at, cell in enumerate(row):
            for number, line in enumerate(cell):
                lead = ("   * - " if at == 0 else "     - ") if number == 0 else "       "
                yield (lead + line).rstrip()
    yield ""


def _requirement(said: Requirement, checks: dict[str, Check]) -> list[list[str]]:
    about = [f"``{name}``" for name, each in checks.items() if said.number in each.requirements]
    if said.unchecked:
        about.append(text(f"Not seen: {said.unchecked}"))
    return [
        cell(said.name),
        cell(text(said.text), f"*{text(said.source)}*"),
        cell(said.severity.value),
        cell(*(about or ["none"])),
    ]


def requirements() -> list[str]:
    """A table for each topic, as lines of reStructuredText."""
    checks, lines = load(), []
    for topic in dict.fromkeys(each.topic for each in REQUIREMENTS.values()):
        mine = [each for each in REQUIREMENTS.values() if each.topic == topic]
        head = [[each] for each in ("", "What holds, and where it is said", "Severity", "Checks")]
        table = [head, *(_requirement(each, checks) for each in mine)]
        lines += [f".. rubric:: {topic}", "", *rows(table, "7 50 13 30")]
    return lines


def checks() -> list[str]:
    """All checks in a table."""
    table = [[["Check"], ["What it does"], ["Requirements"]]]
    for name, each in sorted(load().items()):
        numbers = ", ".join(f"R{number}" for number in each.requirements)
        danger = " Dangerous." if each.dangerous else ""
        table.append([[f"``{name}``"], [text(each.text) + danger], [numbers]])
    return list(rows(table, "35 50 15"))


class Generated(Directive):
    lines = staticmethod(requirements)

    def run(self) -> list[nodes.Node]:
        found = nodes.container()
        self.state.nested_parse(StringList(self.lines(), "conformance"), 0, found)
        return list(found.children)


class Requirements(Generated):
    """What a device owes its user."""


class Checks(Generated):
    """What is checked."""

    lines = staticmethod(checks)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("conformance-requirements", Requirements)
    app.add_directive("conformance-checks", Checks)
    return {"parallel_read_safe": True}
