"""A short run of the dissectors' fuzzer, and that it throws the same again."""

import pytest

from precopy.stream.registry import formats
from tests.fuzz.stream_seeds import seeds
from tests.fuzz.streams import Mutations, fuzz, verdict

INPUTS = 4_000


def test_4_000_inputs_get_a_verdict() -> None:
    result = fuzz(INPUTS, seed=3)
    assert not result.faults
    assert result.inputs == INPUTS
    # Every format gets some that are good and some that are not.
    for name, _ in seeds():
        assert 0 < result.wrong[name] < result.formats[name], name


def test_what_is_thrown_is_decided_by_the_seed() -> None:
    def some(seed: int) -> list[tuple[str, bytes]]:
        mutations = Mutations(seed, seeds())
        return [mutations.input() for _ in range(300)]

    assert some(1) == some(1)
    assert some(1) != some(2)


@pytest.mark.parametrize(("name", "data"), seeds(), ids=[name for name, _ in seeds()])
def test_what_the_fuzzer_spoils_was_good(name: str, data: bytes) -> None:
    summary, wrongs = verdict(name, data)
    assert summary.format == name
    assert not wrongs


def test_every_format_is_fuzzed() -> None:
    assert {name for name, _ in seeds()} == set(formats())
