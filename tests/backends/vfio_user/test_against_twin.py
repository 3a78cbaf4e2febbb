"""Whatever is done to a device through a socket comes out as where it is in this process."""

import errno
import select
import tempfile
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from precopy.vfio.uapi import Feature, FeatureFlags, LoggingRange
from tests.backends.vfio_user.twins import CARD, MEMORY, ServedTwin, Twin
from tests.lab.operations import Operation, Outcome, Run, sequences

PAGE = 4096


#: One step of pre-copy.
ROUND: list[Operation] = [
    ["touch", 1],
    ["touch", 3],
    ["info"],
    ["info"],
    ["read_all"],
    ["read", 40],
]


class Side(Run):
    """One of the two, step by step."""

    def __init__(self, bench: Twin) -> None:
        super().__init__(bench)
        self.bench = bench

    def step(self, operation: Operation) -> Outcome:
        if operation[0] == "write" and not self._stream[self._written :][: operation[1]]:
            # Nothing is not sent, so a session that has failed is not told of.
            return "nothing"
        found = self._outcome(operation)
        self.bench.settle()
        if operation[0] == "poll" or operation == ["old_file", "poll"]:
            # A resuming file of the kernel's driver has no poll of its own, and no end to tell.
            return found & select.POLLIN if isinstance(found, int) else found
        return found

    def ask(self, what: str, *arguments: Any) -> Outcome:
        """The value of a property or of a call to the device."""
        try:
            found = getattr(self.bench.device, what)
            return found(*arguments) if callable(found) else found
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def report(self, iova: int, length: int, page_size: int, room: int) -> Outcome:
        bitmap = bytearray(room)
        outcome = self.ask("log_report", iova, length, page_size, memoryview(bitmap))
        return outcome, bytes(bitmap)


class AgainstTwin(RuleBasedStateMachine):
    """Same errno, same bytes, same info, at every step."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory(prefix="twins")
        self._sides = [Side(Twin(CARD)), Side(ServedTwin(CARD, f"{self._folder.name}/socket"))]

    def _same(self, found: list[Outcome]) -> Outcome:
        assert found[0] == found[1]
        return found[0]

    @rule(operations=sequences(4, 12))
    def operate(self, operations: list[Operation]) -> None:
        for operation in operations:
            self._same([side.step(operation) for side in self._sides])

    @rule(rounds=st.lists(st.sampled_from(ROUND), min_size=1, max_size=8), v2=st.booleans())
    def pre_copy(self, rounds: list[Operation], v2: bool) -> None:
        """What chance alone seldom comes to: rounds of a session, to its end and into RESUMING."""
        begin: list[Operation] = [["reset"], *([["info_v2"]] if v2 else []), ["set_state", 6]]
        end: list[Operation] = [["set_state", 3], ["read_all"], ["set_state", 1], ["restore"]]
        for operation in [*begin, ["read_all"], *rounds, *end, ["set_state", 2]]:
            self._same([side.step(operation) for side in self._sides])

    @rule(what=st.sampled_from(["features", "migration_flags", "data_size", "identity"]))
    def ask(self, what: str) -> None:
        self._same([side.ask(what) for side in self._sides])

    @rule(
        feature=st.sampled_from([*map(int, Feature), 0, 3, 13, 99]),
        methods=st.sampled_from([0, FeatureFlags.GET, FeatureFlags.SET]),
    )
    def probe(self, feature: int, methods: int) -> None:
        self._same([side.ask("probe", feature, FeatureFlags(methods)) for side in self._sides])

    @rule(
        pages=st.lists(
            st.tuples(st.integers(0, 63), st.integers(0, 20)), max_size=3, unique_by=lambda p: p[0]
        ),
        page_size=st.sampled_from([PAGE, 2 * PAGE, 16 * PAGE, 0, 3]),
    )
    def log_start(self, pages: list[tuple[int, int]], page_size: int) -> None:
        ranges = [LoggingRange(first * PAGE, count * PAGE) for first, count in pages]
        self._same([side.ask("log_start", ranges, page_size) for side in self._sides])

    @rule()
    def log_stop(self) -> None:
        self._same([side.ask("log_stop") for side in self._sides])

    @rule(address=st.integers(0, MEMORY - 1), length=st.integers(1, 3 * PAGE))
    def dma(self, address: int, length: int) -> None:
        for side in self._sides:
            side.bench.dma_write(address, bytes(min(length, MEMORY - address)))

    @rule(
        iova=st.integers(0, 70).map(lambda page: page * PAGE),
        length=st.integers(0, 70).map(lambda page: page * PAGE),
        page_size=st.sampled_from([PAGE, 2 * PAGE, 16 * PAGE, 2048, 0, 3 * PAGE]),
        room=st.integers(0, 16),
    )
    def log_report(self, iova: int, length: int, page_size: int, room: int) -> None:
        self._same([side.report(iova, length, page_size, room) for side in self._sides])

    @invariant()
    def same_state(self) -> None:
        self._same([side.ask("state") for side in self._sides])

    def teardown(self) -> None:
        for side in self._sides:
            side.bench.clear()
            side.bench.close()
        self._folder.cleanup()


TestAgainstTwin = AgainstTwin.TestCase
TestAgainstTwin.settings = settings(
    max_examples=25,
    stateful_step_count=16,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    derandomize=True,
)
