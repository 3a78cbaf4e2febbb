"""Timelines of devices that a kernel has, and of two kernels, each of which has a clock of its own."""

import sys
from pathlib import Path

from precopy.engine.timeline import Notes, Timeline
from precopy.engine.timeline.perfetto import read
from precopy.lab import MTTY_UUIDS, Job, run, run_linked
from tests.lab.mlx5.rig import TOP

PRECOPY = (sys.executable, "-m", "precopy")
VF, ADDRESS = "vfio:0000:00:01.0", "tcp://10.77.0.1:7475"

#: Messages of a migration that both sides note.
MESSAGES = ("manifest", "sync", "final", "end", "switch", "run")
ANSWERS = ("accept", "synced", "ready", "running")


def arcs(notes: Notes | None) -> list[str]:
    assert notes is not None
    return [span.name for span in notes.spans("arcs")]


def moments(notes: Notes | None, name: str) -> list[float]:
    assert notes is not None
    return [span.begin for span in notes.spans("moments") if span.name == name]


def check_order(timeline: Timeline) -> None:
    """On one clock nothing is heard before it is sent, as far as the error lets that be told."""
    assert timeline.clock is not None
    there = (MESSAGES, timeline.source, timeline.target)
    back = (ANSWERS, timeline.target, timeline.source)
    for messages, sender, hearer in (there, back):
        for message in messages:
            sent, heard = moments(sender, f"sent {message}"), moments(hearer, f"heard {message}")
            assert len(sent) == len(heard) > 0
            for before, after in zip(sent, heard, strict=True):
                assert before <= after + timeline.clock.error + 1e-6


def test_devices_of_one_kernel(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    command = [*PRECOPY, "migrate", "--progress", "none", "--run-for", "0.1"]
    command += ["--timeline", str(file), MTTY_UUIDS[0], MTTY_UUIDS[1]]
    result = run(Job(command, mtty=2, writable=(tmp_path,), cwd=TOP))
    assert (result.status, result.trouble) == (0, ""), result.err
    timeline = read(file)
    assert arcs(timeline.source)[0] == "RUNNING->PRE_COPY"
    assert arcs(timeline.target) == ["RUNNING->RESUMING", "RESUMING->STOP", "STOP->RUNNING"]
    # A kernel's driver does not show its commands, and that is said.
    assert [remark.partition(":")[0] for remark in timeline.all_remarks()] == ["source", "target"]
    check_order(timeline)


def test_two_kernels_on_one_clock(tmp_path: Path) -> None:
    """Their clocks began when they booted; what the target noted comes out where it belongs."""
    file = tmp_path / "t.json"
    receive = [*PRECOPY, "receive", VF, "--listen", ADDRESS, "--plain-from-network"]
    migrate = [*PRECOPY, "migrate", "--wait", "60", "--min-rounds", "2", "--timeline", str(file)]
    adapter = "mlx5?vfs=1&log_max_qp=8"
    target, source = run_linked(
        Job([*receive, "--progress", "none", "--run-for", "1"], adapter=adapter, cwd=TOP),
        Job(
            [*migrate, "--progress", "none", f"{VF}?guest=1&qps=4&rate=200", ADDRESS],
            adapter=adapter,
            cwd=TOP,
            writable=(tmp_path,),
        ),
    )
    assert (source.status, source.trouble) == (0, ""), source.err
    assert (target.status, target.trouble) == (0, ""), target.err
    timeline = read(file)
    clock = timeline.clock
    assert clock is not None
    assert clock.end is not None
    check_order(timeline)
    window = timeline.downtime()
    assert window is not None
    assert timeline.target is not None
    for span in timeline.target.spans("downtime"):
        assert window[0] - clock.error <= span.begin
        assert span.end <= window[1] + clock.error
