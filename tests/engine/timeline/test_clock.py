"""Whatever the delays are, the true offset of the clocks lies within what is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from precopy.engine.timeline.clock import Clock, Exchange, Offset, estimate

#: For what floating-point numbers lose at this size.
_ROUNDING = 1e-6

_delay = st.floats(0, 10)
_exchanges = st.lists(st.tuples(_delay, _delay, _delay), min_size=1, max_size=10)
_offset = st.floats(-1e5, 1e5)


def _play(
    start: float, delays: list[tuple[float, float, float]], offset: float, drift: float = 0.0
) -> list[Exchange]:
    """Exchanges by a source's clock that is true and a target's that is not."""
    now, found = start, []
    for there, back, pause in delays:
        answered = now + there
        heard = answered + back
        found.append(Exchange(now, answered + offset + drift * answered, heard))
        now = heard + pause
    return found


@given(_exchanges, _offset)
def test_the_true_offset_lies_within_the_error(
    delays: list[tuple[float, float, float]], offset: float
) -> None:
    found = estimate(_play(1000.0, delays, offset))
    assert abs(found.offset - offset) <= found.error + _ROUNDING


@given(_exchanges)
def test_the_error_is_half_of_the_least_round_trip(
    delays: list[tuple[float, float, float]],
) -> None:
    least = min(there + back for there, back, _ in delays)
    assert estimate(_play(0.0, delays, 5.0)).error == pytest.approx(least / 2, abs=_ROUNDING)


def test_the_exchange_with_the_least_round_trip_wins() -> None:
    slow, fast = Exchange(0.0, 59.0, 10.0), Exchange(10.0, 60.2, 10.2)
    assert estimate([slow, fast]).offset == pytest.approx(50.1)
    assert estimate([fast, slow]) == estimate([slow, fast])


def test_no_exchange() -> None:
    with pytest.raises(ValueError, match="no exchange"):
        estimate([])


@given(_exchanges, _exchanges, _offset, st.floats(-1e-3, 1e-3), st.floats(0, 1))
def test_times_between_two_comparisons(
    first: list[tuple[float, float, float]],
    second: list[tuple[float, float, float]],
    offset: float,
    drift: float,
    part: float,
) -> None:
    """A target's clock that runs evenly, too fast or too slow: its times come out within the error."""
    clock = Clock(
        estimate(_play(1000.0, first, offset, drift)),
        estimate(_play(2000.0, second, offset, drift)),
    )
    assert clock.end is not None
    true = clock.begin.at + part * (clock.end.at - clock.begin.at)
    told = clock.to_source(true + offset + drift * true)
    # The error of a time is that of the offset; a clock that drifts counts its own seconds wrong.
    allowed = clock.error * (1 + 2 * abs(drift)) + _ROUNDING
    assert abs(told - true) <= allowed


@given(_exchanges, _exchanges, _offset)
def test_a_clock_that_does_not_drift_is_told_as_one(
    first: list[tuple[float, float, float]],
    second: list[tuple[float, float, float]],
    offset: float,
) -> None:
    clock = Clock(estimate(_play(0.0, first, offset)), estimate(_play(500.0, second, offset)))
    assert clock.drift is not None
    assert clock.drift_error is not None
    assert abs(clock.drift) <= clock.drift_error + _ROUNDING


def test_without_a_second_comparison_the_first_holds() -> None:
    clock = Clock(Offset(2.5, 0.1, 100.0))
    assert clock.to_source(110.0) == 107.5
    assert clock.error == 0.1
    assert clock.drift is None
    assert clock.drift_error is None


def test_a_second_comparison_at_the_time_of_the_first() -> None:
    clock = Clock(Offset(2.5, 0.1, 100.0), Offset(9.0, 0.1, 100.0))
    assert clock.to_source(110.0) == 107.5
