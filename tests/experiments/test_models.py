"""What is predicted of rounds: against closed forms, and against each other."""

import math

from hypothesis import given
from hypothesis import strategies as st

from precopy.experiments.models import Load, cliff, geometric, saturating

MEMORY = 1 << 26


def load(ratio: float, limit_share: float, working: float = 1.0) -> Load:
    """Written at ``ratio`` of the bandwidth; the limit lets ``limit_share`` of the memory be left."""
    bandwidth = 1e8
    return Load(
        memory=MEMORY,
        working_set=int(MEMORY * working),
        written=ratio * bandwidth,
        bandwidth=bandwidth,
        limit=limit_share * MEMORY / bandwidth,
    )


def test_geometric_rounds_halve_what_is_left() -> None:
    # 1 + 1/2 + 1/4 while it runs; 1/8 is within the limit and goes while it stands still.
    told = geometric(load(0.5, 0.13))
    assert told.rounds == 3
    assert math.isclose(told.bytes, MEMORY * 1.875)
    assert math.isclose(told.seconds, MEMORY * 1.875 / 1e8)
    assert math.isclose(told.downtime, MEMORY / 8 / 1e8)


@given(ratio=st.floats(0.01, 0.98), share=st.floats(0.01, 0.9))
def test_geometric_rounds_are_a_logarithm(ratio: float, share: float) -> None:
    expected = math.log(share) / math.log(ratio)
    told = geometric(load(ratio, share)).rounds
    assert told is not None
    # Just at a whole number rounding decides.
    assert told in {max(1, math.ceil(expected - 1e-6)), max(1, math.ceil(expected + 1e-6))}


@given(ratio=st.floats(1.0, 10.0), share=st.floats(0.01, 0.9))
def test_geometric_rounds_never_end_at_the_bandwidth(ratio: float, share: float) -> None:
    told = geometric(load(ratio, share))
    assert not told.ends
    assert told.seconds == math.inf


@given(ratio=st.floats(0.01, 3.0), share=st.floats(0.01, 0.9), working=st.floats(0.05, 1.0))
def test_pages_written_twice_only_ever_help(ratio: float, share: float, working: float) -> None:
    plain, saturated = geometric(load(ratio, share)), saturating(load(ratio, share, working))
    if plain.rounds is not None:
        assert saturated.rounds is not None
        assert saturated.rounds <= plain.rounds
        assert saturated.bytes <= plain.bytes * (1 + 1e-9)


@given(share=st.floats(0.02, 0.9))
def test_the_cliff_is_where_it_stops_to_end(share: float) -> None:
    edge = cliff(load(1.0, share))
    assert edge > 1
    assert saturating(load(edge * 0.98, share)).ends
    assert not saturating(load(edge * 1.02, share)).ends


def test_there_is_no_cliff_where_the_working_set_fits_the_limit() -> None:
    assert cliff(load(1.0, 0.3, working=0.3)) == math.inf
    told = saturating(load(50.0, 0.3, working=0.3))
    assert told.rounds == 1


def test_a_guest_that_writes_nothing_takes_one_round() -> None:
    for model in (geometric, saturating):
        told = model(load(0.0, 0.01))
        assert (told.rounds, told.bytes, told.downtime) == (1, MEMORY, 0)
