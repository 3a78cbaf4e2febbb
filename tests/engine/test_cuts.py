"""The connection is cut, or the source cancelled, at every message: the device runs on one side."""

import re

import pytest

from precopy.engine.outcome import Cancelled, Failed, InDoubt, MigrationError
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.engine.target import Received, TargetOptions
from precopy.vfio.states import DeviceState
from tests.engine.relay import AFTER, BEFORE, SOURCE, TARGET, Point, Then
from tests.engine.rig import LARGE, Both, as_before, both, files, works

# How a migration ends for the source ...
UNTOUCHED = (Failed, "nothing has changed, the device is where it was")
KEPT = (Failed, "the device runs at the source")
DOUBT = (InDoubt, "in doubt.*nothing runs here.*look at sim:mlx5.* at the target")
MOVED = (Report, "")
# ... and for the target.
NOTHING = (Failed, "nothing runs here")
RUNS = (Received, "")

#: Every message in the order of the protocol: what follows where the connection is cut before it is
#: forwarded, and where it is cut after that.
CUTS = [
    (SOURCE, "hello", (UNTOUCHED, NOTHING), (UNTOUCHED, NOTHING)),
    (TARGET, "hello", (UNTOUCHED, NOTHING), (UNTOUCHED, NOTHING)),
    (SOURCE, "manifest", (UNTOUCHED, NOTHING), (UNTOUCHED, NOTHING)),
    (TARGET, "accept", (UNTOUCHED, NOTHING), (KEPT, NOTHING)),
    (SOURCE, "data", (KEPT, NOTHING), (KEPT, NOTHING)),
    (TARGET, "loaded", (KEPT, NOTHING), (KEPT, NOTHING)),
    (SOURCE, "final", (KEPT, NOTHING), (KEPT, NOTHING)),
    (SOURCE, "end", (KEPT, NOTHING), (KEPT, NOTHING)),
    (SOURCE, "pages", (KEPT, NOTHING), (KEPT, NOTHING)),
    (SOURCE, "switch", (KEPT, NOTHING), (KEPT, NOTHING)),
    # After: the source has the word that the target is ready, and can't send the right to run.
    (TARGET, "ready", (KEPT, NOTHING), (KEPT, NOTHING)),
    # The source can't know which of these two it was.
    (SOURCE, "run", (DOUBT, NOTHING), (DOUBT, RUNS)),
    (TARGET, "running", (DOUBT, RUNS), (MOVED, RUNS)),
]

POINTS = [
    pytest.param(Point(sender, kind, when), *expected, id=f"{when}-{sender}-{kind}")
    for sender, kind, before, after in CUTS
    for when, expected in ((BEFORE, before), (AFTER, after))
]

Ending = tuple[type, str]


def check(pair: Both, at_source: Ending, at_target: Ending) -> None:
    """Each side says what is expected, and it is so."""
    for said, (kind, text) in ((pair.at_source, at_source), (pair.at_target, at_target)):
        assert type(said) is kind, said
        if isinstance(said, MigrationError):
            line = str(said)
            assert "\n" not in line
            assert re.search(text, line), line
    ran = 0
    if at_source in (UNTOUCHED, KEPT) or at_source[0] is Cancelled:
        assert works(pair.source)
        ran += 1
    else:
        # The guest stands still, and so does the device.
        assert pair.source.device.state in (DeviceState.STOP, DeviceState.STOP_COPY)
    if at_target is RUNS:
        assert works(pair.target)
        ran += 1
    else:
        assert as_before(pair.target)
    assert ran == 1 or at_source is DOUBT
    assert ran <= 1


@pytest.mark.parametrize(("at", "at_source", "at_target"), POINTS)
def test_the_connection_is_cut(at: Point, at_source: Ending, at_target: Ending) -> None:
    with both(LARGE) as pair:
        relay = pair.move(at=at, then=Then.CUT)
        assert relay.acted
        check(pair, at_source, at_target)


def cancelled(text: str) -> Ending:
    return (Cancelled, f"^cancelled; {text}")


#: Where what the source waits for does not come: it is cancelled all the same, and at once.
CANCELS = [
    (Point(TARGET, "hello"), cancelled("nothing has changed")),
    (Point(TARGET, "accept"), cancelled("nothing has changed")),
    (Point(SOURCE, "data"), cancelled("the device runs at the source")),
    (Point(SOURCE, "final"), cancelled("the device runs at the source")),
    (Point(SOURCE, "pages"), cancelled("the device runs at the source")),
    (Point(TARGET, "ready"), cancelled("the device runs at the source")),
]


@pytest.mark.parametrize(("at", "at_source"), CANCELS, ids=str)
def test_a_cancel_before_the_right_to_run_is_given(at: Point, at_source: Ending) -> None:
    options = Options()
    with both(LARGE) as pair:
        relay = pair.move(options, at=at, act=options.cancel.set, then=Then.LOSE)
        assert relay.acted
        check(pair, at_source, NOTHING)


def test_the_target_is_told_of_a_cancel() -> None:
    options = Options()
    with both(LARGE) as pair:
        assert pair.move(options, at=Point(SOURCE, "data"), act=options.cancel.set).acted
        check(pair, cancelled("the device runs at the source"), NOTHING)
        assert "the source gave up: cancelled" in str(pair.at_target)


@pytest.mark.parametrize("at", [Point(SOURCE, "run"), Point(TARGET, "running")], ids=str)
def test_a_cancel_after_the_right_to_run_was_given_is_none(at: Point) -> None:
    options = Options()
    with both(LARGE) as pair:
        assert pair.move(options, at=at, act=options.cancel.set).acted
        check(pair, MOVED, RUNS)


@pytest.mark.parametrize(
    "at",
    [
        Point(SOURCE, "hello"),
        Point(SOURCE, "manifest"),
        Point(SOURCE, "data"),
        Point(SOURCE, "switch"),
        Point(SOURCE, "run"),
    ],
    ids=str,
)
def test_a_target_is_cancelled(at: Point) -> None:
    """As long as the right to run has not come; here what would come next is lost."""
    options = TargetOptions()
    with both(LARGE) as pair:
        before = files()
        pair.move(at=at, act=options.cancel.set, then=Then.LOSE, target_options=options)
        assert type(pair.at_target) is Cancelled
        assert str(pair.at_target) == "cancelled; nothing runs here"
        assert as_before(pair.target)
        assert files() == before
        # It has told the source, which need not be in doubt even where it has sent RUN.
        assert isinstance(pair.at_source, Failed)
        assert "the target failed: cancelled" in str(pair.at_source)
        assert works(pair.source)


def test_a_target_that_has_the_right_to_run_runs() -> None:
    options = TargetOptions()
    with both() as pair:
        pair.move(at=Point(SOURCE, "run", AFTER), act=options.cancel.set, target_options=options)
        check(pair, MOVED, RUNS)


@pytest.mark.parametrize(
    "at", [Point(TARGET, "hello"), Point(TARGET, "ready"), Point(TARGET, "accept")], ids=str
)
def test_a_target_that_says_nothing_more(at: Point) -> None:
    with both(LARGE) as pair:
        pair.move(Options(silence=0.5), at=at, then=Then.LOSE)
        check(pair, KEPT if at.kind == "ready" else UNTOUCHED, NOTHING)
        assert f"the target did not say {at.kind}" in str(pair.at_source)


@pytest.mark.parametrize("kind", ["hello", "manifest", "data", "switch", "run"])
def test_a_source_that_says_nothing_more(kind: str) -> None:
    with both(LARGE) as pair:
        pair.move(at=Point(SOURCE, kind), then=Then.LOSE, target_options=TargetOptions(silence=0.5))
        assert "the peer said nothing for too long" in str(pair.at_target)
        # The target says so, and the source has its device again, also after RUN.
        check(pair, UNTOUCHED if kind in ("hello", "manifest") else KEPT, NOTHING)
        assert "the target failed: the peer said nothing" in str(pair.at_source)
