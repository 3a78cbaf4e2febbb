"""What a name may say of a guest's memory."""

import pytest

from precopy import options
from precopy.guest import WorkloadConfig
from precopy.guest.options import GUEST, workload_of
from precopy.options import Option, OptionError, within

TABLE = {**GUEST, "seed": Option(within(0, 9), "1", "")}


def parsed(query: str) -> WorkloadConfig | None:
    return workload_of(options.parse(query, TABLE))


@pytest.mark.parametrize(
    ("query", "memory", "writes", "working", "fill", "zeros"),
    [
        ("", 0, 0, 100, 100, 0),
        ("memory=12K", 12 << 10, 0, 100, 100, 0),
        ("memory=16M&writes=20000", 16 << 20, 20_000, 100, 100, 0),
        ("memory=1000000&zeros=100", 1003520, 0, 100, 100, 100),
        ("memory=64G&fill=1&working=1&writes=99999999&zeros=7", 64 << 30, 99_999_999, 1, 1, 7),
        ("memory=1G&fill=0", 1 << 30, 0, 100, 0, 0),
    ],
)
def test_memory(query: str, memory: int, writes: int, working: int, fill: int, zeros: int) -> None:
    config = WorkloadConfig(memory=memory, writes=writes, working=working, fill=fill, zeros=zeros)
    assert parsed(query) == config


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("memory=much", "memory: a size is a number with K, M or G behind it"),
        ("memory=65G", "memory: 65G is more than 64G"),
        ("memory=1", "memory must be 0, or whole pages from 12288 bytes on, not 4096"),
        ("memory=8K", "memory must be 0, or whole pages from 12288 bytes on, not 8192"),
        ("writes=-1", "writes: 0 to"),
        ("working=0", "working: 1 to 100"),
        ("working=101", "working: 1 to 100"),
        ("fill=-1", "fill: 0 to 100"),
        ("fill=101", "fill: 0 to 100"),
        ("zeros=101", "zeros: 0 to 100"),
        ("memory=1M&writes=1&fill=0", "writes go to pages that hold data: fill must not be 0"),
    ],
)
def test_what_memory_cannot_be(query: str, text: str) -> None:
    with pytest.raises((OptionError, ValueError), match=text):
        parsed(query)


def test_more_data_than_the_machine_has_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("precopy.guest.options.MACHINE", 1 << 30)
    assert parsed("memory=1G")
    assert parsed("memory=64G&fill=1")
    with pytest.raises(ValueError, match="memory: 100 percent of 2048M is more than this machine"):
        parsed("memory=2G")
