"""What an experiment finds: tables with the range of each figure, curves, and what is to be said."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """The same figure from several runs; at least one."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """ValueError where there is no value."""
        if not values:
            raise ValueError("a spread needs at least one value")
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "low": self.low,
            "high": self.high,
            "values": list(self.values),
        }


Cell = Spread | float | int | str | None


@dataclass(frozen=True, slots=True)
class Column:
    """``unit`` stands in the heading; figures are shown with ``digits`` behind the point."""

    key: str
    title: str
    unit: str = ""
    digits: int = 0

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, cell: Cell) -> str:
        """A cell for people: the median, and the range where there is one."""
        if cell is None:
            return "-"
        if isinstance(cell, str):
            return cell
        if not isinstance(cell, Spread):
            return f"{cell:,.{self.digits}f}"
        median, low, high = (f"{x:,.{self.digits}f}" for x in (cell.median, cell.low, cell.high))
        return median if low == high else f"{median} ({low} to {high})"


@dataclass(frozen=True, slots=True)
class Table:
    title: str
    columns: tuple[Column, ...]
    #: By the columns' keys; what a row lacks is shown as a dash.
    rows: list[dict[str, Cell]] = field(default_factory=list)

    def texts(self) -> list[list[str]]:
        return [[column.text(row.get(column.key)) for column in self.columns] for row in self.rows]

    def to_dict(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "columns": {column.key: column.heading for column in self.columns},
            "rows": [
                {
                    key: cell.to_dict() if isinstance(cell, Spread) else cell
                    for key, cell in row.items()
                }
                for row in self.rows
            ],
        }


@dataclass(frozen=True, slots=True)
class Curve:
    """``points``: x, and the figure there. A ``predicted`` one was computed before the runs."""

    label: str
    points: list[tuple[float, Spread]]
    predicted: bool = False

    def to_dict(self) -> dict[str, Any]:
        points = [
            {"x": x, "median": y.median, "low": y.low, "high": y.high} for x, y in self.points
        ]
        return {"label": self.label, "predicted": self.predicted, "points": points}


@dataclass(frozen=True, slots=True)
class Chart:
    """``marks``: values of x where something begins or ends, and what."""

    title: str
    x: str
    y: str
    curves: list[Curve]
    marks: list[tuple[float, str]] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False

    def to_dict(self) -> dict[str, Any]:
        curves = [curve.to_dict() for curve in self.curves]
        marks = [{"x": x, "label": label} for x, label in self.marks]
        return {"title": self.title, "x": self.x, "y": self.y, "curves": curves, "marks": marks}


@dataclass(slots=True)
class Result:
    """``settings``: what was asked for; ``runs``: each migration, as it was reported."""

    name: str
    question: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return {
            "experiment": self.name,
            "question": self.question,
            "settings": self.settings,
            "tables": [table.to_dict() for table in self.tables],
            "charts": [chart.to_dict() for chart in self.charts],
            "notes": self.notes,
            "runs": self.runs,
        }
