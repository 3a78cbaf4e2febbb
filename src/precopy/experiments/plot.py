"""Draws the charts of a result side by side into a file; needs matplotlib, the extra ``plot``."""

import importlib
from pathlib import Path
from typing import Any

from precopy.experiments.moves import ExperimentError
from precopy.experiments.result import Chart, Result

#: What a file's name may end in.
SUFFIXES = (".svg", ".png")

#: Inches of one chart.
_WIDTH, _HEIGHT = 5.0, 3.8

#: Colours of marks, as many as a chart may have.
_MARKS = ("grey", "firebrick")

#: Text stays text, and the same result gives the same file.
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "precopy", "font.size": 9}


def require() -> Any:
    """matplotlib. ExperimentError where it is not installed."""
    try:
        importlib.import_module("matplotlib.figure")
        return importlib.import_module("matplotlib")
    except ImportError as error:
        raise ExperimentError(
            "--plot needs matplotlib, which is not installed: pip install 'precopy[plot]'"
        ) from error


def draw(result: Result, path: Path) -> None:
    """Write ``result``'s charts to ``path``. OSError, ExperimentError."""
    matplotlib = require()
    with matplotlib.rc_context(_SETTINGS):
        count = len(result.charts)
        figure = matplotlib.figure.Figure(
            figsize=(_WIDTH * count, _HEIGHT), dpi=100, layout="constrained"
        )
        for chart, axes in zip(
            result.charts, figure.subplots(1, count, squeeze=False)[0], strict=True
        ):
            _chart(chart, axes)
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, metadata=metadata)


def _chart(chart: Chart, axes: Any) -> None:
    for curve in chart.curves:
        xs = [x for x, _ in curve.points]
        middle = [y.median for _, y in curve.points]
        if curve.predicted:
            axes.plot(xs, middle, linestyle="--", linewidth=1.2, label=curve.label)
            continue
        below = [y.median - y.low for _, y in curve.points]
        above = [y.high - y.median for _, y in curve.points]
        axes.errorbar(
            xs, middle, yerr=(below, above), marker="o", markersize=4, capsize=3, label=curve.label
        )
    for (x, label), color in zip(chart.marks, _MARKS, strict=False):
        axes.axvline(x, linestyle=":", linewidth=1.2, color=color, label=label)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_title(chart.title)
    axes.set_xlabel(chart.x)
    axes.set_ylabel(chart.y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
