"""Guests at work that are moved by the kernel's own mlx5_vfio_pci, within a kernel and between two."""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from precopy.lab import Job, Result, run, run_linked
from tests.lab import soak
from tests.lab.mlx5.rig import TOP, Boots, Seen, boot, booting

pytestmark = pytest.mark.timeout(600)

#: Round trips; ``make lab-soak`` makes more.
TRIPS = 20
CARD = "log_max_qp=12"
PRECOPY = (sys.executable, "-m", "precopy")
VF, ADDRESS = "vfio:0000:00:01.0", "tcp://10.77.0.1:7475"

FAULTS = ("lost", "doubled", "reordered", "damaged", "failed")


def two_kernels() -> Seen:
    """A VF moves from one kernel with its adapter to another with its own."""
    receive = [
        *PRECOPY,
        "receive",
        VF,
        "--listen",
        ADDRESS,
        "--plain-from-network",
        "--progress",
        "none",
    ]
    migrate = [*PRECOPY, "migrate", "--wait", "60", "--min-rounds", "2", "--progress", "none"]
    adapter = f"mlx5?vfs=1&{CARD}"
    target, source = run_linked(
        Job([*receive, "--json", "--run-for", "2"], adapter=adapter, cwd=TOP),
        Job(
            [*migrate, "--json", f"{VF}?guest=1&qps=4&rate=200", ADDRESS], adapter=adapter, cwd=TOP
        ),
    )
    return Seen({"target": _told(target), "source": _told(source)}, {}, {}, {}, source)


def live_memory() -> Seen:
    """Guest memory moves while the guest runs: the kernel's page tracker tells what the VF writes."""
    command = [*PRECOPY, "migrate", "--json", "--progress", "none", "--min-rounds", "2"]
    source, target = f"{VF}?guest=1&qps=4&memory=8M&writes=500&zeros=10", "vfio:0000:00:02.0"
    job = Job([*command, source, target], adapter=f"mlx5?vfs=2&{CARD}", cwd=TOP)
    result = run(job)
    return Seen({"moved": _told(result)}, {}, {}, {}, result)


def _told(result: Result) -> dict[str, Any]:
    return {
        "status": result.status,
        "out": result.out,
        "err": result.err,
        "trouble": result.trouble,
    }


BOOTS: dict[str, Callable[[], Seen]] = {
    "trips": partial(soak.soak, TRIPS),
    "two at once": partial(boot, "two at once", adapter=f"mlx5?vfs=4&{CARD}", kernel=()),
    "two kernels": two_kernels,
    "live memory": live_memory,
}


@pytest.fixture(scope="module")
def boots() -> Iterator[Boots]:
    with booting(BOOTS) as found:
        yield found


def test_round_trips(boots: Boots) -> None:
    seen = boots["trips"]
    assert soak.faults(seen, TRIPS) == []
    told = seen.told[f"trips={TRIPS}"]
    assert len(told["images"]) == 2 * TRIPS
    # Most ways take an initial, a middle and a final image; every fifth way takes one.
    assert told["images"][4::5] == [1] * 8
    assert max(told["images"]) == 4


def test_two_vfs_at_once(boots: Boots) -> None:
    told = boots["two at once"].told["two at once"]
    for report, slots in zip(told, ((1, 3), (2, 4)), strict=True):
        names = [f"vfio:0000:00:{slot:02x}.0" for slot in slots]
        assert [report["source"], report["target"]] == names
        assert report["outcome"].startswith("moved")
        guest = report["guest"]
        assert guest["sent"] == guest["received"] > 0
        assert not any(guest[each] for each in FAULTS)


def test_from_one_kernel_to_another(boots: Boots) -> None:
    told = boots["two kernels"].told
    source, target = told["source"], told["target"]
    assert (source["status"], source["err"], source["trouble"]) == (0, "", "")
    assert (target["status"], target["trouble"]) == (0, ""), target["err"]
    report = json.loads(source["out"])
    assert report["outcome"].startswith("moved")
    assert report["precopy"]
    kinds = [image["kind"] for image in report["images"]]
    assert (kinds[0], kinds[-1]) == ("initial", "final")
    assert report["downtime"] == pytest.approx(sum(report["stages"].values()))
    events = [json.loads(line) for line in target["out"].splitlines()]
    guest = next(event["guest"] for event in events if event.get("guest"))
    assert guest["sent"] == guest["received"] > 100
    assert not any(guest[each] for each in FAULTS)


def test_memory_moves_while_the_guest_runs(boots: Boots) -> None:
    told = boots["live memory"].told["moved"]
    assert (told["status"], told["err"], told["trouble"]) == (0, "", "")
    report = json.loads(told["out"])
    assert report["memory"]["tracking"].endswith("DMA log of the device")
    # All of it once, what was written since in two rounds at least, and the rest while stopped.
    first, *later = report["memory"]["rounds"]
    assert first >= 8 << 20
    assert len(later) >= 3
    assert 0 < sum(later) < first
    guest = report["guest"]
    assert guest["sent"] > 0
    assert guest["memory_pages"] == (8 << 20) // 4096
    assert [guest[name] for name in (*FAULTS, "memory_wrong")] == [0] * 6
