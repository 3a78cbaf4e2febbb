"""What a workload may be, and where it keeps it."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.guest import layout
from precopy.guest.layout import WINDOW, Control, WorkloadConfig


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("pairs", 1, 1 << 17),
        ("active", 0, 16),
        ("rate", 0, 1 << 20),
        ("size", 32, 65536),
        ("seed", 0, (1 << 32) - 1),
        ("memory", 0, 64 << 30),
        ("writes", 0, 1 << 60),
        ("working", 1, 100),
        ("fill", 0, 100),
        ("zeros", 0, 100),
    ],
)
def test_bounds(name: str, low: int, high: int) -> None:
    for value in (low, high):
        others: dict[str, Any] = {"active": 1} if name == "pairs" else {}
        assert getattr(WorkloadConfig(**{**others, name: value}), name) == value
    for value in (low - 1, high + 1):
        others = {"active": 0} if name == "pairs" else {}
        with pytest.raises(ValueError, match=f"^{name} must be {low} to {high}, not {value}$"):
            WorkloadConfig(**{**others, name: value})


@pytest.mark.parametrize("mix", ["", "siwrsiwrs", "x", "sX", "S", " s", "s,i"])
def test_mixes_that_are_none(mix: str) -> None:
    with pytest.raises(ValueError, match="mix must be 1 to 8 letters of siwr"):
        WorkloadConfig(mix=mix)


def test_every_mix_is_a_number_and_back() -> None:
    codes = set()
    for length in (1, 2, 3, 4):
        for letters in itertools.product("siwr", repeat=length):
            mix = "".join(letters)
            code = WorkloadConfig(mix=mix).mix_code()
            assert WorkloadConfig.mix_of(code) == mix
            codes.add(code)
    assert len(codes) == 4 + 16 + 64 + 256
    longest = WorkloadConfig(mix="r" * 8).mix_code()
    assert longest < 1 << 32
    assert WorkloadConfig.mix_of(longest) == "r" * 8


@pytest.mark.parametrize("code", [0x5, 0xF, 0x10, 0x101, 0x6121, 0xFFFFFFFF])
def test_numbers_that_are_no_mix(code: int) -> None:
    with pytest.raises(ValueError, match="is not the code of a mix"):
        WorkloadConfig.mix_of(code)


def test_the_control_page_brings_the_workload_back() -> None:
    config = WorkloadConfig(pairs=7, active=3, rate=11, size=99, mix="wris", seed=5)
    config = replace(config, memory=5 << 20, writes=9, working=50, fill=40, zeros=3)
    words = (layout.MAGIC, 7, 3, 99, 11, 5, config.mix_code(), *range(6), 5 << 20, 9, 50, 40, 3)
    assert Control(*words).config() == config
    for at, value in ((1, 0), (2, 8), (3, 31), (6, 0x50), (6, 0)):
        wrong = [*words]
        wrong[at] = value
        with pytest.raises(ValueError, match=r"must be|code of a mix"):
            Control(*wrong).config()


@settings(max_examples=80, deadline=None, derandomize=True)
@given(pairs=st.integers(1, 9), size=st.integers(32, 65536), sequence=st.integers(0, 1 << 40))
def test_nothing_overlaps(pairs: int, size: int, sequence: int) -> None:
    config = WorkloadConfig(pairs=pairs, active=pairs, size=size)
    used: list[tuple[int, int]] = [
        (0, layout.CONTROL.size),
        (layout.COUNTS_AT, layout.COUNTS_AT + layout.COUNTS.size),
        (layout.PAGE, layout.PAGE + layout.EQ_BYTES),
        (layout.NAMES_AT, layout.NAMES_AT + pairs * layout.NAMES.size),
    ]
    for index in range(pairs):
        at = config.pair_at(index)
        assert at % layout.PAGE == 0
        used += [
            (at + layout.SEND_DBR, at + layout.SEND_DBR + 8),
            (at + layout.RECEIVE_DBR, at + layout.RECEIVE_DBR + 8),
            (at + layout.CQ_DBR, at + layout.CQ_DBR + 8),
            (at + layout.PAIR_AT, at + layout.PAIR_AT + layout.PAIR.size),
            (at + layout.SEND_QUEUE, at + layout.SEND_QUEUE + 64 + (64 << layout.LOG_SQ)),
            (at + layout.RECEIVE_QUEUE, at + layout.RECEIVE_QUEUE + (16 << layout.LOG_RQ)),
            (at + layout.CQ_QUEUE, at + layout.CQ_QUEUE + (64 << layout.LOG_CQ)),
        ]
        for slot in (config.send_slot, config.receive_slot, config.rdma_slot):
            starts = [slot(index, sequence + n) for n in range(WINDOW)]
            used += [(start, start + size) for start in starts]
            assert slot(index, sequence + WINDOW) == starts[0]
    for (_, end), (start, _) in itertools.pairwise(sorted(used)):
        assert end <= start
    assert max(end for _, end in used) <= config.region.length
    assert config.region.length % (1 << layout.BIG_PAGE_SHIFT) == 0


def test_a_cq_holds_all_that_a_window_can_complete() -> None:
    # Each message completes at most twice, and the messages fit the queues.
    assert 2 * WINDOW <= 1 << layout.LOG_CQ
    assert 1 << layout.LOG_SQ >= WINDOW
    assert 1 << layout.LOG_RQ >= WINDOW
