"""Figures and their range, tables for people and for programs, where it was measured."""

import json
import shlex

import pytest

from precopy.experiments import machine
from precopy.experiments.result import Chart, Column, Curve, Result, Spread, Table


def test_a_spread_is_median_and_range() -> None:
    found = Spread.of([3.0, 1.0, 2.0, 10.0])
    assert (found.median, found.low, found.high) == (2.5, 1.0, 10.0)
    assert found.to_dict() == {"median": 2.5, "low": 1.0, "high": 10.0, "values": [3, 1, 2, 10]}


def test_a_spread_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "-"),
        ("never", "never"),
        (12345, "12,345.0"),
        (1.26, "1.3"),
        (Spread.of([1.0, 2.0, 4.0]), "2.0 (1.0 to 4.0)"),
        # A range that can't be seen is none.
        (Spread.of([2.01, 2.02]), "2.0"),
    ],
)
def test_a_cell_for_people(cell: Spread | float | str | None, text: str) -> None:
    assert Column("x", "x", digits=1).text(cell) == text


def test_a_table_shows_a_dash_for_what_a_row_lacks() -> None:
    table = Table("t", (Column("a", "a"), Column("b", "b", "ms")), [{"b": 1}, {"a": "x", "b": 2}])
    assert table.texts() == [["-", "1"], ["x", "2"]]
    assert table.to_dict()["columns"] == {"a": "a", "b": "b (ms)"}


def test_a_result_is_json() -> None:
    spread = Spread.of([1.0, 3.0])
    table = Table("t", (Column("a", "a"),), [{"a": spread}])
    chart = Chart("c", "x", "y", [Curve("measured", [(5.0, spread)])])
    result = Result("n", "q?", {"runs": 2}, [table], [chart], ["note"], [{"downtime": 1}])
    found = json.loads(json.dumps(result.to_dict()))
    assert found["tables"][0]["rows"] == [{"a": spread.to_dict()}]
    assert found["charts"][0]["curves"][0]["points"] == [{"x": 5, "median": 2, "low": 1, "high": 3}]
    assert (found["experiment"], found["settings"], found["notes"]) == ("n", {"runs": 2}, ["note"])


def test_where_it_was_measured() -> None:
    words = ["precopy", "experiment", "queues", "--plot", "a file.svg"]
    told = machine.facts(words)
    assert shlex.split(told["command"]) == words
    assert told["cores"] >= 1
    assert len(told["load"]) == 3
    assert told["python"].split()[1] in machine.line(told)
    assert json.loads(json.dumps(told)) == told
