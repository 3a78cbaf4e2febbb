"""The saving file against its model, whatever the order of reads, questions, arcs, completions and
failures."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from precopy.vfio.states import DeviceState
from tests.mlx5.saving_model import DIRTY, INIT, Beginning, SavingModel

STARTS = (DeviceState.PRE_COPY, DeviceState.PRE_COPY_P2P, DeviceState.STOP_COPY)
#: Mostly none; else a status that a save may answer in PRE_COPY, or one that ends the session.
FAULTS = (0, 0, 0, 0, 0, 0, 9, 1)
#: Seldom any, since sessions that go on for long reach more.
WAYS_OUT = ("", "", "", "", "", "", "stop", "stop", "cancel", "reset", "go on")
TOTALS = (0, 30_000, 1 << 34)
QUARTERS = (0, 1, 2, 3, 4, 4, 4)
REPLIES = (DIRTY, DIRTY, INIT)

sizes = st.integers(1, 20_000)
none_or_sizes = st.one_of(st.just(0), sizes)
faults = st.sampled_from(FAULTS)
beginnings = st.tuples(st.sampled_from(STARTS), st.lists(sizes, max_size=6), faults)


class SavingMachine(RuleBasedStateMachine):
    """The model's steps in any order, and the shortest order where one of them is wrong."""

    model: SavingModel | None = None

    @initialize(
        chunks=st.booleans(),
        cap=st.booleans(),
        v2=st.booleans(),
        full=sizes,
        total=st.sampled_from(TOTALS),
        beginning=beginnings,
    )
    def probe(
        self, chunks: bool, cap: bool, v2: bool, full: int, total: int, beginning: Beginning
    ) -> None:
        self.model = SavingModel(chunks, cap, v2, full, total, beginning)

    @property
    def there(self) -> SavingModel:
        assert self.model is not None
        return self.model

    @rule(fault=faults)
    def time_passes(self, fault: int) -> None:
        self.there.time_passes(fault)

    @rule(quarters=st.sampled_from(QUARTERS), more=st.integers(-1, 2))
    def reads(self, quarters: int, more: int) -> None:
        self.there.reads(quarters, more)

    @rule(quarters=st.sampled_from(QUARTERS), more=st.integers(-1, 2), part=st.integers(0, 4))
    def peeks(self, quarters: int, more: int, part: int) -> None:
        self.there.peeks(quarters, more, part)

    @rule(size=none_or_sizes, more=none_or_sizes, state=st.sampled_from(REPLIES), fault=faults)
    def asks(self, size: int, more: int, state: int, fault: int) -> None:
        self.there.asks(size, more, state, fault)

    @rule()
    def suspend_or_resume(self) -> None:
        self.there.suspend_or_resume()

    @rule(how=st.sampled_from(WAYS_OUT), increment=sizes, fault=faults, then=beginnings)
    def leave(self, how: str, increment: int, fault: int, then: Beginning) -> None:
        self.there.leave(how, increment, fault, then)

    @invariant()
    def holds(self) -> None:
        if self.model is not None:
            self.model.check()

    def teardown(self) -> None:
        if self.model is not None:
            self.model.close()


SavingMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)
TestSaving = SavingMachine.TestCase


@pytest.mark.parametrize("seed", range(40))
def test_long_walks(seed: int) -> None:
    """What only a long history reaches. The steps follow from the seed."""
    draw = random.Random(seed)

    def size(none: float = 0.0) -> int:
        return 0 if draw.random() < none else draw.randint(1, 20_000)

    def beginning() -> Beginning:
        chunks = [size() for _ in range(draw.randint(0, 6))]
        return draw.choice(STARTS), chunks, draw.choice(FAULTS)

    options = (draw.random() < 0.7, draw.random() < 0.7, draw.random() < 0.7)
    model = SavingModel(*options, size(), draw.choice(TOTALS), beginning())
    for _ in range(250):
        step = draw.choices(("time", "read", "ask", "suspend", "leave"), (4, 4, 4, 1, 1))[0]
        fault = draw.choice(FAULTS)
        if step == "time":
            model.time_passes(fault)
        elif step == "read":
            model.reads(draw.choice(QUARTERS), draw.randint(-1, 2))
        elif step == "ask":
            model.asks(size(0.2), size(0.5), draw.choice(REPLIES), fault)
        elif step == "suspend":
            model.suspend_or_resume()
        else:
            model.leave(draw.choice(WAYS_OUT), size(), fault, beginning())
        model.check()
    model.close()
