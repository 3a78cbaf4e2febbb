"""One of two processes is killed, or told to stop, at a chosen message: what the other says and does.

Every message is covered without processes (tests/engine/test_cuts.py); here is a choice of them,
with real ones.
"""

import json
import signal
from pathlib import Path

import pytest

from tests.cli.processes import Ended, Pair, pair
from tests.engine.relay import AFTER, BEFORE, SOURCE, TARGET, Point, Then

OK, FAILED, IN_DOUBT, CANCELLED = 0, 4, 5, 130


def kill_source(pair: Pair) -> None:
    pair.source.send_signal(signal.SIGKILL)
    pair.source.wait()


def kill_target(pair: Pair) -> None:
    pair.target.send_signal(signal.SIGKILL)
    pair.target.wait()


def works_at_target(target: Ended) -> None:
    """The device ran at the target, and its guest missed nothing."""
    assert target.status == OK, target.err
    said = [json.loads(line) for line in target.out.splitlines()]
    assert "running" in said[0]
    counts = said[1]["guest"]
    assert counts["sent"] == counts["received"] > 0
    assert not any(counts[fault] for fault in ("lost", "doubled", "reordered", "damaged", "failed"))


@pytest.mark.parametrize(
    ("at", "runs"),
    [
        (Point(TARGET, "accept", BEFORE), False),
        (Point(SOURCE, "data", AFTER), False),
        (Point(TARGET, "ready", AFTER), False),
        # From here on the device is the target's.
        (Point(SOURCE, "run", AFTER), True),
    ],
    ids=str,
)
def test_the_source_is_killed(tmp_path: Path, at: Point, runs: bool) -> None:
    # Where it would go on with the handover, what it says must not get through before its death.
    then = Then.FORWARD if runs else Then.CUT
    with pair(tmp_path) as both:
        source, target = both.run(at, kill_source, then)
        assert source.status == -signal.SIGKILL
        if runs:
            works_at_target(target)
        else:
            assert target.status == FAILED
            assert target.line.endswith("; nothing runs here")
            assert not target.out  # but that it listens


@pytest.mark.parametrize(
    ("at", "status", "text"),
    [
        (Point(SOURCE, "data", AFTER), FAILED, "the device runs at the source"),
        (Point(SOURCE, "switch", AFTER), FAILED, "the device runs at the source"),
        # It had not heard RUN, or it had: the source can't tell.
        (Point(SOURCE, "run", BEFORE), IN_DOUBT, "in doubt: the right to run was given"),
        (Point(TARGET, "running", BEFORE), IN_DOUBT, "in doubt: the right to run was given"),
        (Point(TARGET, "running", AFTER), OK, ""),
    ],
    ids=str,
)
def test_the_target_is_killed(tmp_path: Path, at: Point, status: int, text: str) -> None:
    then = Then.CUT if status == IN_DOUBT else Then.FORWARD
    with pair(tmp_path) as both:
        source, target = both.run(at, kill_target, then)
        assert target.status == -signal.SIGKILL
        assert source.status == status, source.err
        if status == OK:
            assert json.loads(source.out)["outcome"].startswith("moved")
            return
        assert not source.out
        assert text in source.line
        if status == FAILED:
            assert source.line.endswith("messages, 0 faults")
        else:
            assert "nothing runs here" in source.line
            assert "look at sim:mlx5?log_max_qp=8 at the target" in source.line
            assert source.line.endswith("it listened at unix:" + str(tmp_path / "front"))


@pytest.mark.parametrize(
    ("at", "then", "sign"),
    [
        (Point(SOURCE, "manifest", BEFORE), Then.LOSE, signal.SIGINT),
        (Point(SOURCE, "data", AFTER), Then.FORWARD, signal.SIGTERM),
        (Point(TARGET, "ready", BEFORE), Then.LOSE, signal.SIGINT),
    ],
    ids=str,
)
def test_the_source_is_cancelled(
    tmp_path: Path, at: Point, then: Then, sign: signal.Signals
) -> None:
    with pair(tmp_path) as both:
        source, target = both.run(at, lambda each: each.source.send_signal(sign), then)
        assert source.status == CANCELLED
        assert source.line.startswith("precopy: cancelled; ")
        early = at.kind == "manifest"
        place = "nothing has changed" if early else "the device runs at the source"
        assert place in source.line
        assert source.line.endswith("messages, 0 faults")
        assert target.status == FAILED
        # What is lost is lost for the rest, too: then the target hears only that it is over.
        heard = "the peer closed the connection" if early else "the source gave up: cancelled"
        assert target.line.startswith(f"precopy: {heard}")
        assert target.line.endswith("; nothing runs here")


def test_it_is_too_late_for_a_cancel(tmp_path: Path) -> None:
    """The source waits for the answer to RUN, which is on its way."""
    with pair(tmp_path) as both:
        source, target = both.run(
            Point(SOURCE, "run", BEFORE), lambda each: each.source.send_signal(signal.SIGINT)
        )
        assert source.status == OK, source.err
        assert "cancelled" not in source.out + source.err
        works_at_target(target)


@pytest.mark.parametrize(
    ("at", "sign"),
    [
        (Point(SOURCE, "manifest", BEFORE), signal.SIGINT),
        (Point(SOURCE, "run", BEFORE), signal.SIGTERM),
    ],
    ids=str,
)
def test_the_target_is_told_to_end(tmp_path: Path, at: Point, sign: signal.Signals) -> None:
    with pair(tmp_path) as both:
        source, target = both.run(at, lambda each: each.target.send_signal(sign), Then.LOSE)
        assert target.status == CANCELLED
        assert target.line == "precopy: cancelled; nothing runs here"
        assert source.status == FAILED
        assert source.line.startswith("precopy: the target failed: cancelled; ")
        assert source.line.endswith("messages, 0 faults")


def test_the_connection_is_cut_between_run_and_running(tmp_path: Path) -> None:
    with pair(tmp_path) as both:
        source, target = both.run(Point(SOURCE, "run", AFTER), lambda _: None, Then.CUT)
        assert source.status == IN_DOUBT
        assert "in doubt" in source.line
        assert target.status == OK
        assert "the device runs here, but the source could not be told" in target.line
        assert '"running": "sim:mlx5' in target.out


@pytest.mark.parametrize("run_here", [True, False])
def test_in_doubt_the_device_is_kept_until_somebody_knows(tmp_path: Path, run_here: bool) -> None:
    """The target dies with the right to run, before it said whether it does."""
    with pair(tmp_path, "--hold") as both:
        relay = both.relay(Point(SOURCE, "run", BEFORE), kill_target, Then.CUT)
        kept = both.source.stderr.readline()
        relay.join()
        assert "in doubt" in kept
        assert f"kill -USR1 {both.source.pid}" in kept
        if not run_here:
            both.source.send_signal(signal.SIGTERM)
            ended = Ended.of(both.source)
            assert ended.status == IN_DOUBT
            assert ended.line == "precopy: given up here; what it was at the source is gone"
            return
        both.source.send_signal(signal.SIGUSR1)
        assert "the device runs at the source" in both.source.stderr.readline()
        both.source.send_signal(signal.SIGTERM)
        ended = Ended.of(both.source)
        assert ended.status == FAILED
        assert ended.line.endswith("messages, 0 faults")
