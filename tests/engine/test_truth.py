"""The truth test: whatever happens while a guest moves, its memory and its messages are right."""

import os

from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st

from precopy.engine.policy import GiveUp, Policy
from precopy.engine.report import Report
from precopy.engine.source import Options
from precopy.mlx5_abi.commands import Opcode
from tests.engine.relay import AFTER, ANY, BEFORE, SOURCE, TARGET, Point
from tests.engine.truth import Cancel, CancelTarget, Cut, Fault, LogOverflows, Trouble, journey

#: How many journeys, where others are wanted than in each run of the tests.
EXAMPLES = int(os.environ.get("TRUTH_EXAMPLES", "0"))

#: More than any machine can.
AS_FAST_AS_IT_GOES = 1 << 40

MIB = 1 << 20

_guests = st.builds(
    lambda fixed, **options: "&".join([fixed, *(f"{k}={v}" for k, v in options.items())]),
    st.just("sim:mlx5?qps=8&log_max_qp=8"),
    active=st.sampled_from([0, 1, 8]),
    # Messages a second; 0: no pause between them.
    rate=st.sampled_from([0, 200, 5000]),
    size=st.sampled_from([32, 256, 4096, 10000]),
    mix=st.sampled_from(["siwr", "s", "w", "r"]),
    # From the fewest pages that there can be, to several windows of them.
    memory=st.sampled_from([3 * 4096, 1 * MIB, 6 * MIB + 4096, 12 * MIB]),
    writes=st.sampled_from([0, 500, 20000, AS_FAST_AS_IT_GOES]),
    working=st.integers(1, 100),
    fill=st.integers(1, 100),
    zeros=st.sampled_from([0, 10, 100]),
    state=st.sampled_from([0, MIB]),
    chunks=st.booleans().map(int),
    page_track=st.sampled_from([1, 1, 1, 0]),
    seed=st.integers(1, 1000),
)

_SAVING = [
    Opcode.SUSPEND_VHCA,
    Opcode.RESUME_VHCA,
    Opcode.SAVE_VHCA_STATE,
    Opcode.QUERY_VHCA_MIGRATION_STATE,
]
_LOGGING = [
    Opcode.CREATE_GENERAL_OBJECT,
    Opcode.MODIFY_GENERAL_OBJECT,
    Opcode.QUERY_GENERAL_OBJECT,
    Opcode.DESTROY_GENERAL_OBJECT,
]
_LOADING = [Opcode.LOAD_VHCA_STATE, Opcode.SUSPEND_VHCA, Opcode.RESUME_VHCA]

_when = st.sampled_from([BEFORE, AFTER])
_points = st.one_of(
    # Anywhere in what the source sends ...
    st.builds(Point, st.just(SOURCE), st.just(ANY), _when, st.integers(3, 16)),
    st.builds(Point, st.just(SOURCE), st.sampled_from(["data", "pages"]), _when, st.integers(1, 4)),
    # ... and where something becomes of it.
    st.builds(Point, st.just(SOURCE), st.sampled_from(["final", "end", "switch", "run"]), _when),
    st.builds(Point, st.just(TARGET), st.sampled_from(["accept", "ready", "running"]), _when),
)

_troubles = st.one_of(
    st.just(Trouble()),
    st.builds(Fault, st.just(True), st.sampled_from(_SAVING), st.integers(1, 3)),
    st.builds(Fault, st.just(True), st.sampled_from(_LOGGING), st.integers(1, 5)),
    st.builds(Fault, st.just(False), st.sampled_from(_LOADING), st.integers(1, 2)),
    st.just(LogOverflows()),
    st.builds(Cancel, st.integers(1, 14)),
    st.builds(Cut, _points),
    st.builds(CancelTarget, _points),
)

_policies = st.builds(
    Policy,
    downtime_limit=st.sampled_from([0.0, 0.005, 10.0]),
    max_rounds=st.integers(0, 6),
    # What does not end by itself ends by this.
    timeout=st.just(2.0),
    give_up=st.sampled_from([GiveUp.SWITCH_OVER, GiveUp.CANCEL, GiveUp.SLOW]),
)


def _options(policies: st.SearchStrategy[Policy]) -> st.SearchStrategy[Options]:
    return st.builds(
        Options,
        precopy=st.sampled_from([True, True, True, False]),
        policy=policies,
        max_bandwidth=st.sampled_from([0.0, 0.0, 40.0 * MIB]),
        tracking=st.sampled_from(["userfaultfd", "checksums"]),
        log_page_size=st.sampled_from([4096, 65536, 2 * MIB]),
        min_rounds=st.integers(0, 3),
    )


#: It goes on for as long as nobody cancels it.
_keeping = st.just(Policy(0.0, max_rounds=0, give_up=GiveUp.KEEP))

_kept_on = st.tuples(_options(_keeping), st.builds(Cancel, st.integers(1, 30)))
_others = st.tuples(_options(_policies), _troubles)
_hops = st.sampled_from([_others] * 6 + [_kept_on]).flatmap(lambda each: each)


@settings(
    max_examples=EXAMPLES or 50,
    # The same each time, unless more are asked for. What fails is seen without being made smaller.
    derandomize=not EXAMPLES,
    phases=[Phase.explicit, Phase.generate],
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(guest=_guests, picks=st.data())
def test_a_guest_is_right_whatever_happens(guest: str, picks: st.DataObject) -> None:
    with journey(guest) as way:
        for _ in range(picks.draw(st.integers(1, 3))):
            options, trouble = picks.draw(_hops)
            outcome = way.hop(options, trouble)
            event(f"{type(trouble).__name__}: {type(outcome).__name__}")
            note(f"{type(outcome).__name__}: {'' if isinstance(outcome, Report) else outcome}")
            if way.stands:
                break
