"""How many messages are due."""

import pytest

from precopy.guest.pace import UNLIMITED, Pace


@pytest.mark.parametrize("rate", [1, 2, 5, 9, 10, 64, 1000])
def test_as_many_as_the_rate_says(rate: int) -> None:
    pace, sent = Pace(rate, 100.0, 7), 7
    # A whole number of looks at each period, exact in binary.
    steps = 16
    for look in range(1, 3 * steps + 1):
        due = pace.due(100.0 + look / steps, sent)
        sent += max(0, min(due, 1 << 20))
        assert sent - 7 <= look / steps * rate
    assert sent - 7 == 3 * rate or rate >= 160, "none is left out where it is looked often enough"


def test_a_fast_rate_is_kept_where_it_is_looked_often_enough() -> None:
    pace, sent = Pace(4096, 0.0, 0), 0
    for look in range(1, 1025):
        sent += pace.due(look / 1024, sent)
    assert sent == 4096


def test_no_rate_is_no_limit() -> None:
    pace = Pace(0, 0.0, 0)
    assert pace.due(0.0, 1 << 60) == UNLIMITED


def test_what_was_missed_while_it_stood_still_is_not_made_up_for() -> None:
    pace = Pace(100, 0.0, 0)
    assert pace.due(0.5, 0) == 1
    # From there on as before.
    assert pace.due(0.505, 1) == 0
    assert pace.due(0.5101, 1) == 1
    assert pace.due(0.56, 1) == 6


def test_what_was_sent_too_early_is_waited_for() -> None:
    pace = Pace(10, 0.0, 0)
    assert pace.due(0.125, 5) <= 0
