"""Streams of the kernel's own drivers are dissected wholly."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from precopy.lab import MTTY_UUIDS, Job, run

TOP = Path(__file__).parents[2]
#: A dual port mtty, and a VF with a guest at work.
MTTY, VF = MTTY_UUIDS[1], "vfio:0000:00:01.0?guest=1&qps=4&rate=500"


@pytest.fixture(scope="module")
def streams() -> dict[str, Any]:
    program = [sys.executable, "-m", "tests.lab.inside_streams", MTTY, VF]
    result = run(Job(program, mtty=2, adapter="mlx5?vfs=1&log_max_qp=8", cwd=TOP))
    assert (result.status, result.err, result.trouble) == (0, "", "")
    told: dict[str, Any] = json.loads(result.out)
    return told


def test_the_ports_of_an_mtty(streams: dict[str, Any]) -> None:
    told = streams[MTTY]
    assert told["wrong"] == []
    assert (told["format"], told["bytes"], told["counts"]) == ("mtty", 24 + 72, {"ports": 2})
    assert told["phases"] == {"initial": 24, "final": 72}


def test_the_records_of_mlx5_vfio_pci(streams: dict[str, Any]) -> None:
    told = streams[VF]
    assert told["wrong"] == []
    assert told["format"] == "mlx5"
    assert told["counts"]["images"] >= 4
    assert list(told["phases"]) == ["initial", "middle", "final"]
    assert sum(told["phases"].values()) == told["bytes"]
    # The first image has all there is of the guest's four pairs.
    assert ["record 1", "STOP_COPY_SIZE"] in told["items"]
    tables = [text for name, text in told["items"] if name == "table qp"]
    assert tables[0].endswith("8 QPs in use (8 RTS)")
