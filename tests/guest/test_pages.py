"""What the memory has to hold: found right after anything that is right, wrong after anything else."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from precopy.guest.layout import PAGE, WorkloadConfig
from precopy.guest.pages import HEADER, MemoryCheck
from tests.guest.memories import Worked, worked

ZEROES = bytes(PAGE)

#: Pages: the smallest; a few; one page of the table full; one entry and one and a half in a second.
SIZES = (3, 4, 7, 50, 1026, 1028, 1600)


class AnyOrder(RuleBasedStateMachine):
    """Writes, pauses and moves in any order leave no page wrong; every spoiled page is found."""

    snapshots = Bundle("snapshots")

    @initialize(
        size=st.sampled_from(SIZES),
        fill=st.integers(1, 100),
        working=st.integers(1, 100),
        zeros=st.sampled_from([0, 1, 30, 100]),
        seed=st.integers(0, (1 << 32) - 1),
    )
    def power_on(self, size: int, fill: int, working: int, zeros: int, seed: int) -> None:
        config = WorkloadConfig(
            memory=size * PAGE, fill=fill, working=working, zeros=zeros, seed=seed
        )
        self.worked = Worked(config)
        self.worked.pages.power_on()

    @rule(count=st.integers(1, 300), at_once=st.integers(1, 64))
    def write(self, count: int, at_once: int) -> None:
        self.worked.write(count, at_once)

    @rule()
    def move(self) -> None:
        old, self.worked = self.worked, self.worked.copy()
        old.close()

    @rule(target=snapshots, where=st.randoms(use_true_random=False))
    def remember(self, where: random.Random) -> object:
        """A page as it is now, to be put back when it is old."""
        index = where.randrange(self.worked.pages.pages)
        return multiple((index, self.worked.page(index)), (0, self.worked.page(0)))

    @rule(snapshot=snapshots)
    def an_old_page(self, snapshot: tuple[int, bytes]) -> None:
        self.spoiled(*snapshot)

    @rule(where=st.randoms(use_true_random=False))
    def a_dropped_page(self, where: random.Random) -> None:
        self.spoiled(where.randrange(self.worked.pages.pages), ZEROES)

    @rule(where=st.randoms(use_true_random=False), bit=st.integers(0, 7))
    def a_flipped_bit(self, where: random.Random, bit: int) -> None:
        index = where.randrange(self.worked.pages.pages)
        page = bytearray(self.worked.page(index))
        page[where.randrange(PAGE)] ^= 1 << bit
        self.spoiled(index, bytes(page))

    @rule(where=st.randoms(use_true_random=False))
    def a_page_in_the_wrong_place(self, where: random.Random) -> None:
        count = self.worked.pages.pages
        self.spoiled(where.randrange(count), self.worked.page(where.randrange(count)))

    def spoiled(self, index: int, data: bytes) -> None:
        """With ``data`` in the place of page ``index`` it is found; then all is as before."""
        before = self.worked.page(index)
        self.worked.put_page(index, data)
        found = self.worked.pages.check()
        self.worked.put_page(index, before)
        if data == before:
            assert found.wrong_pages == 0
        elif index > self.worked.pages.table_pages:
            assert found == MemoryCheck(self.worked.pages.pages, 1, index)
        else:
            # A page that tells of others: they are what is wrong then, or it is.
            assert found.wrong_pages

    @invariant()
    def all_is_right(self) -> None:
        if hasattr(self, "worked"):
            assert self.worked.pages.check() == MemoryCheck(self.worked.pages.pages, 0, None)

    def teardown(self) -> None:
        if hasattr(self, "worked"):
            self.worked.close()


def test_any_order() -> None:
    run_state_machine_as_test(
        AnyOrder,
        settings=settings(max_examples=20, stateful_step_count=20, deadline=None, derandomize=True),
    )


@settings(max_examples=15, deadline=None, derandomize=True)
@given(pieces=st.lists(st.integers(1, 64), min_size=1, max_size=12))
def test_the_same_writes_whatever_the_pieces(pieces: list[int]) -> None:
    with worked(20, zeros=20) as one, worked(20, zeros=20) as other:
        for piece in pieces:
            one.write(piece)
        other.write(sum(pieces), at_once=1)
        assert one.all() == other.all()
        assert one.pages.writes == sum(pieces)


def test_whatever_of_a_header_and_table_is_flipped() -> None:
    """All bytes that say something, some of the others; also with all pages of data cleared, so
    that none of them can tell."""
    rest = range(PAGE + 24, 2 * PAGE, 61)
    for zeros in (0, 100):
        with worked(6, zeros=zeros, fill=100) as made:
            made.write(200)
            for at in (*range(32), *range(32, PAGE, 61), *range(PAGE, PAGE + 24), *rest):
                made.view[at] ^= 0x80
                found = made.pages.check()
                assert found.wrong_pages, at
                made.view[at] ^= 0x80
            assert not made.pages.check().wrong_pages


def test_a_copy_that_is_old_as_a_whole() -> None:
    with worked(30) as made:
        made.write(50)
        old = made.all()
        made.write(1)
        for index, page in enumerate(old):
            made.put_page(index, page)
        assert made.pages.check() == MemoryCheck(30, 1, 0)


def test_a_page_that_never_came() -> None:
    """Nothing is in its place, not even zeroes."""
    with worked(12) as made:
        made.write(30)
        for index in range(12):
            there = made.copy(index)
            found = there.pages.check()
            if index == 1:
                # Without the table, nothing that is there is known.
                assert found == MemoryCheck(12, 10, 2)
            else:
                assert found == MemoryCheck(12, 1, index)
            there.close()
        there = made.copy(*range(12))
        assert there.pages.check() == MemoryCheck(12, 1, 0)
        there.close()


@pytest.mark.parametrize("count", [1, 2, 7])
def test_as_many_as_are_wrong(count: int) -> None:
    with worked(1500) as made:
        places = random.Random(count).sample(range(made.pages.table_pages + 1, 1500), count)
        for index in places:
            made.view[index * PAGE + 5] ^= 1
        assert made.pages.check() == MemoryCheck(1500, count, min(places))


@pytest.mark.parametrize(
    ("fill", "working", "filled", "written"),
    [(100, 100, 98, 98), (50, 100, 49, 49), (50, 10, 49, 5), (1, 1, 1, 1), (0, 50, 0, 0)],
)
def test_what_holds_data_and_what_is_written(
    fill: int, working: int, filled: int, written: int
) -> None:
    with worked(100, fill=fill, working=working) as made:
        # What was never touched takes no memory, also after a check.
        assert not made.pages.check().wrong_pages
        used = sum(extent.length for extent in made.memory.extents() if extent.region)
        assert used == (1 + bool(filled) + filled) * PAGE
        before = made.all()
        assert [page != ZEROES for page in before[2:]] == [True] * filled + [False] * (98 - filled)
        made.write(2000 if written else 0)
        changed = [old != new for old, new in zip(before, made.all(), strict=True)][2:]
        assert changed == [True] * written + [False] * (98 - written)


def test_a_page_of_its_own_for_each_version() -> None:
    with worked(12) as made:
        seen = Counter(made.all()[2:])
        for _ in range(30):
            made.write(1)
            seen.update(made.all()[2:])
        # One more for each write.
        assert len(seen) == 10 + 30


@pytest.mark.parametrize("zeros", [0, 25, 100])
def test_writes_that_clear(zeros: int) -> None:
    with worked(402, zeros=zeros) as made:
        made.write(10_000)
        cleared = made.all()[2:].count(ZEROES)
        assert cleared == pytest.approx(4 * zeros, rel=0.3)


def test_all_pages_are_written_about_as_often() -> None:
    with worked(66) as made:
        often: Counter[int] = Counter()
        before = made.all()
        for _ in range(1000):
            made.write(1)
            after = made.all()
            often.update(n for n in range(2, 66) if after[n] != before[n])
            before = after
        assert sum(often.values()) == 1000
        assert len(often) == 64


def test_counts_begin_anew_after_two_to_the_31_writes_of_a_page() -> None:
    with worked(3) as made:
        table = PAGE
        # The only page of data, as it is before its last count.
        writes = (1 << 31) - 3
        words = HEADER.unpack_from(made.view, 0)
        HEADER.pack_into(made.view, 0, words[0], writes, (1 << 64) - 1 - writes)
        made.view[table : table + 4] = ((1 << 31) - 2 << 1 | 1).to_bytes(4, "little")
        for _ in range(5):
            made.write(1)
            assert not made.pages.check().wrong_pages
        assert int.from_bytes(made.view[table : table + 4], "little") == 3 << 1 | 1


def test_memory_without_a_header_is_not_written() -> None:
    with worked(5) as made:
        made.put_page(0, ZEROES)
        with pytest.raises(RuntimeError, match="has no header"):
            made.write(1)
        assert made.pages.check() == MemoryCheck(5, 1, 0)
