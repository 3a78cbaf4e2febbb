"""``.. states-diagram::``: the arcs between device states, drawn from the table itself."""

import math

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from precopy.vfio.states import DATA_FD_ARCS, DeviceState, MigrationFlags, direct_arcs

_ALL = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY

#: Where each state stands: the working ones above, the stopped ones below.
_PLACES = {
    DeviceState.PRE_COPY: (130, 60),
    DeviceState.PRE_COPY_P2P: (130, 190),
    DeviceState.RUNNING: (380, 60),
    DeviceState.RUNNING_P2P: (380, 190),
    DeviceState.STOP_COPY: (130, 320),
    DeviceState.STOP: (380, 320),
    DeviceState.RESUMING: (630, 320),
}
_WIDTH, _HEIGHT = 140, 40


def _edge(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Where the line from ``start`` to ``end`` leaves the box around ``start``."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    scale = min(
        (_WIDTH / 2 + 3) / abs(dx) if dx else math.inf,
        (_HEIGHT / 2 + 3) / abs(dy) if dy else math.inf,
    )
    return start[0] + dx * scale, start[1] + dy * scale


def svg() -> str:
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 370" width="100%"'
        ' font-family="sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for before, after in direct_arcs(_ALL):
        (x1, y1), (x2, y2) = (
            _edge(_PLACES[before], _PLACES[after]),
            _edge(_PLACES[after], _PLACES[before]),
        )
        length = math.hypot(x2 - x1, y2 - y1)
        # Arcs of both directions run side by side.
        ox, oy = -(y2 - y1) / length * 7, (x2 - x1) / length * 7
        colour = "#b35900" if (before, after) in DATA_FD_ARCS else "#333"
        parts.append(
            f'<line x1="{x1 + ox:.1f}" y1="{y1 + oy:.1f}" x2="{x2 + ox:.1f}" y2="{y2 + oy:.1f}"'
            f' stroke="{colour}" stroke-width="1.6" marker-end="url(#tip)"/>'
        )
    for state, (x, y) in _PLACES.items():
        parts.append(
            f'<rect x="{x - _WIDTH / 2}" y="{y - _HEIGHT / 2}" width="{_WIDTH}" height="{_HEIGHT}"'
            ' rx="8" fill="#eef3f8" stroke="#456"/>'
            f'<text x="{x}" y="{y + 5}" text-anchor="middle">{state.name}</text>'
        )
    return "".join((*parts, "</svg>"))


class StatesDiagram(Directive):
    """The diagram in HTML; elsewhere the arcs as a list."""

    def run(self) -> list[nodes.Node]:
        listing = nodes.bullet_list()
        for before, after in direct_arcs(_ALL):
            fd = " (hands out a data_fd)" if (before, after) in DATA_FD_ARCS else ""
            item = nodes.list_item()
            item += nodes.paragraph(text=f"{before.name} → {after.name}{fd}")
            listing += item
        return [nodes.raw("", svg(), format="html"), listing]


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("states-diagram", StatesDiagram)
    return {"parallel_read_safe": True}
