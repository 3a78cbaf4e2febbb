"""When a source switches over, pays for another round, or gives up."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine.policy import Decision, GiveUp, Measured, Pace, Policy, predicted_downtime

MIB = 1 << 20
AGAIN, SWITCH, GIVE_UP = Decision.ANOTHER_ROUND, Decision.SWITCH_OVER, Decision.GIVE_UP


@pytest.mark.parametrize(
    ("now", "seconds"),
    [
        (Measured(0, 0.0, 0.0, 0.0), 0.0),
        (Measured(0, 100 * MIB, 100 * MIB, 0.02), 0.02),
        (Measured(50 * MIB, 100 * MIB, 0.0, 0.0), 0.5),
        # The slower of moving and loading counts, not both.
        (Measured(50 * MIB, 100 * MIB, 25 * MIB, 0.0), 2.0),
        (Measured(50 * MIB, 100 * MIB, 1000 * MIB, 0.1), 0.6),
        # Nothing measured yet: what it costs is not known, and not made up.
        (Measured(50 * MIB, 0.0, 0.0, 0.25), 0.25),
    ],
)
def test_predicted_downtime(now: Measured, seconds: float) -> None:
    assert predicted_downtime(now) == pytest.approx(seconds)


#: 100 MiB/s: 30 MiB are as much as the limit of 0.3 s allows.
FITS = Measured(30 * MIB, 100 * MIB, 0.0, 0.0)
TOO_MUCH = Measured(31 * MIB, 100 * MIB, 0.0, 0.0)


@pytest.mark.parametrize(
    ("now", "rounds", "elapsed", "stalled", "all_sent", "expected", "cancelling"),
    [
        (FITS, 0, 0.0, 0, True, SWITCH, SWITCH),
        # Another image costs no downtime as long as something was never sent.
        (FITS, 0, 0.0, 0, False, AGAIN, AGAIN),
        (TOO_MUCH, 0, 0.0, 0, True, AGAIN, AGAIN),
        (TOO_MUCH, 29, 299.9, 2, True, AGAIN, AGAIN),
        # Each of the three ends the attempts by itself ...
        (TOO_MUCH, 30, 0.0, 0, True, SWITCH, GIVE_UP),
        (TOO_MUCH, 0, 300.0, 0, True, SWITCH, GIVE_UP),
        (TOO_MUCH, 0, 0.0, 3, True, SWITCH, GIVE_UP),
        # ... but what is within the limit is not given up.
        (FITS, 30, 300.0, 3, True, SWITCH, SWITCH),
        # A first image that does not come to its end within the time.
        (FITS, 0, 300.0, 0, False, SWITCH, GIVE_UP),
    ],
)
def test_decisions(
    now: Measured,
    rounds: int,
    elapsed: float,
    stalled: int,
    all_sent: bool,
    expected: Decision,
    cancelling: Decision,
) -> None:
    assert Policy().decide(now, rounds, elapsed, stalled, all_sent) is expected
    policy = Policy(give_up=GiveUp.CANCEL)
    assert policy.decide(now, rounds, elapsed, stalled, all_sent) is cancelling


rates = st.sampled_from([0.0]) | st.floats(1.0, 1e12)
measured = st.builds(Measured, st.integers(0, 1 << 50), rates, rates, st.floats(0, 10))
policies = st.builds(
    Policy,
    st.floats(0, 1e4),
    st.integers(0, 40),
    st.floats(0, 1e4),
    st.sampled_from(GiveUp),
    st.integers(1, 5),
)
rounds = st.integers(0, 50)
seconds = st.floats(0, 2e4)
stalls = st.integers(0, 6)


def spent(policy: Policy, rounds: int, elapsed: float, stalled: int) -> bool:
    return rounds >= policy.max_rounds or elapsed >= policy.timeout or stalled >= policy.patience


@given(policies, measured, rounds, seconds, stalls, st.booleans())
def test_above_the_limit_only_after_all_attempts(
    policy: Policy, now: Measured, done: int, elapsed: float, stalled: int, all_sent: bool
) -> None:
    decision = policy.decide(now, done, elapsed, stalled, all_sent)
    within = predicted_downtime(now) <= policy.downtime_limit
    gave_up = spent(policy, done, elapsed, stalled)
    if decision is SWITCH:
        assert (within and all_sent) or (gave_up and policy.give_up is GiveUp.SWITCH_OVER)
    elif decision is GIVE_UP:
        assert gave_up
        assert policy.give_up is GiveUp.CANCEL
        assert not (within and all_sent)
    elif decision is Decision.SLOW_DOWN:
        assert gave_up
        assert policy.give_up is GiveUp.SLOW
    else:
        assert not gave_up or policy.give_up is GiveUp.KEEP


@given(policies, measured, seconds, stalls)
def test_it_comes_to_an_end(policy: Policy, now: Measured, elapsed: float, stalled: int) -> None:
    """Whatever is measured, there is no round after the last, unless the user wants it so."""
    decision = policy.decide(now, policy.max_rounds, elapsed, stalled, False)
    assert (decision is AGAIN) == (policy.give_up is GiveUp.KEEP)


# --- Rounds ---------------------------------------------------------------------------------------

#: 1 MB left after each round, a tenth of a second to move it, and an eleventh to write it anew.
STUCK = Measured(0, 1e7, 0.0, 0.01, memory_bytes=1_000_000, dirty_rate=1.1e7)
NEVER = Policy(downtime_limit=0.05, max_rounds=100, patience=3)


def decisions(policy: Policy, *measured: Measured) -> tuple[Pace, list[Decision]]:
    pace = Pace(policy)
    pace.begin(0)
    found = []
    for now in measured:
        found.append(pace.decide(now))
        if found[-1] in (SWITCH, GIVE_UP):
            break
        pace.went(now.all_bytes)
    return pace, found


def test_rounds_that_bring_nothing_are_told_with_their_reason() -> None:
    pace, found = decisions(NEVER, *[STUCK] * 10)
    assert found == [AGAIN, AGAIN, AGAIN, SWITCH]
    assert pace.notes(STUCK) == [
        "switched over at a predicted downtime of 110 ms, over the limit of 50 ms:"
        " memory is written at 10.5 MiB/s, 9.5 MiB/s can be moved"
    ]


def test_giving_up_says_why() -> None:
    pace, found = decisions(replace(NEVER, give_up=GiveUp.CANCEL), *[STUCK] * 10)
    assert found[-1] is GIVE_UP
    assert pace.complaint(STUCK) == (
        "the downtime would be 110 ms, over the limit of 50 ms, after 3 rounds:"
        " memory is written at 10.5 MiB/s, 9.5 MiB/s can be moved"
    )
    slower = replace(STUCK, dirty_rate=1e6)
    pace, _ = decisions(replace(NEVER, give_up=GiveUp.CANCEL), *[slower] * 10)
    assert pace.complaint(slower).endswith("3 rounds in a row left no less than before")


def test_a_guest_is_slowed_down_until_it_has_hardly_any_time() -> None:
    pace, found = decisions(replace(NEVER, give_up=GiveUp.SLOW), *[STUCK] * 100)
    assert found[:4] == [AGAIN, AGAIN, AGAIN, Decision.SLOW_DOWN]
    assert found.count(Decision.SLOW_DOWN) == 7
    assert found[-1] is SWITCH
    assert pace.share == 0.01
    assert pace.notes(STUCK)[-1] == "the guest was slowed down to 1% of its time"


def test_a_guest_that_was_slowed_down_enough() -> None:
    better = replace(STUCK, memory_bytes=100_000)
    pace, found = decisions(replace(NEVER, give_up=GiveUp.SLOW), *[STUCK] * 4, better)
    assert found == [AGAIN, AGAIN, AGAIN, Decision.SLOW_DOWN, SWITCH]
    assert pace.share == 0.5
    assert pace.notes(better) == ["the guest was slowed down to 50% of its time"]


def test_keeping_on() -> None:
    _, found = decisions(replace(NEVER, give_up=GiveUp.KEEP, max_rounds=1), *[STUCK] * 50)
    assert found == [AGAIN] * 50


@given(measured, st.integers(0, 1 << 50))
def test_more_to_move_is_never_predicted_shorter(now: Measured, more: int) -> None:
    grown = Measured(now.remaining_bytes + more, now.bandwidth, now.load_rate, now.fixed)
    assert predicted_downtime(grown) >= predicted_downtime(now) >= now.fixed
    assert math.isfinite(predicted_downtime(grown))
