"""SUSPEND, RESUME, QUERY, SAVE and LOAD of one function."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.connectx.context_memory import Pages, TableSpec
from precopy.connectx.image import SLICE_PAGES, image_bytes
from precopy.connectx.migration import CHUNK_BYTES, Refused
from precopy.mlx5_abi.commands import VhcaMigrationState
from precopy.mlx5_abi.status import Status
from tests.connectx.images import FINAL, FULL, PAGE, Card, Image

IDLE, READY, DIRTY, INIT = (
    VhcaMigrationState.IDLE,
    VhcaMigrationState.READY,
    VhcaMigrationState.DIRTY,
    VhcaMigrationState.INIT,
)


def refuses(call: Any, status: Status, syndrome: int) -> None:
    with pytest.raises(Refused) as caught:
        call()
    assert (caught.value.status, caught.value.syndrome) == (status, syndrome)


# --- Suspend and resume ---------------------------------------------------------------------------


def test_the_ladder_of_suspending_and_resuming() -> None:
    """Initiator, then responder; back the other way; nothing twice and nothing out of turn."""
    card = Card()
    migration = card.migration

    def initiator(on: bool) -> None:
        (migration.suspend if on else migration.resume)(initiator=True)

    def responder(on: bool) -> None:
        (migration.suspend if on else migration.resume)(initiator=False)

    state = Status.BAD_RES_STATE
    refuses(lambda: responder(True), state, 0x5B02)
    refuses(lambda: initiator(False), state, 0x5B04)
    refuses(lambda: responder(False), state, 0x5B05)
    initiator(True)
    assert (card.vhca.initiator_suspended, card.vhca.responder_suspended) == (True, False)
    refuses(lambda: initiator(True), state, 0x5B01)
    refuses(lambda: responder(False), state, 0x5B05)
    responder(True)
    refuses(lambda: responder(True), state, 0x5B02)
    refuses(lambda: initiator(True), state, 0x5B01)
    refuses(lambda: initiator(False), state, 0x5B04)
    responder(False)
    initiator(False)
    assert (card.vhca.initiator_suspended, card.vhca.responder_suspended) == (False, False)


# --- Query ----------------------------------------------------------------------------------------


def test_what_a_query_says_from_beginning_to_end() -> None:
    card = Card(reinit_pages=2)
    query = card.migration.query
    card.write("small", 0, 1)
    assert query(False, False) == (image_bytes(1), image_bytes(1), IDLE)
    refuses(lambda: query(True, False), Status.BAD_RES_STATE, 0x5B10)
    card.save(incremental=False)
    assert query(True, False) == (0, 0, READY)
    # A page that was sent and has changed; a new one; as many new ones as make a new initial state.
    card.write("small", 1, 1)
    assert query(True, False) == (image_bytes(1), image_bytes(1), DIRTY)
    card.write("page", 0, 1)
    assert query(True, False) == (image_bytes(2), image_bytes(2), DIRTY)
    card.write("page", 1, 1)
    assert query(True, False) == (image_bytes(3), image_bytes(3), INIT)
    # Of a full save, however, that is not the question.
    assert query(False, False) == (image_bytes(3), image_bytes(3), IDLE)
    card.save()
    assert query(True, False) == (0, 0, READY)
    card.write("page", 1, 2)
    card.write("page", 0, 2)
    assert query(True, False)[2] == DIRTY
    card.write("page", 2, 1)
    card.write("page", 3, 1)
    assert query(True, False)[2] == INIT
    # A function that stands still has no initial state to come, and always a final image.
    card.stop()
    assert query(True, False) == (image_bytes(4), image_bytes(4), DIRTY)
    card.save(track=False)
    refuses(lambda: query(True, False), Status.BAD_RES_STATE, 0x5B10)


def test_a_stopped_function_that_has_not_changed_has_an_empty_final_image() -> None:
    card = Card()
    card.write("page", 0, 1)
    card.save(incremental=False)
    card.stop()
    assert card.migration.query(True, False) == (image_bytes(0), image_bytes(0), READY)
    data, following = card.save(track=False)
    assert (len(data), following) == (image_bytes(0), 0)
    assert Image.parse(data).fields["flags"] == FINAL


def test_in_chunk_mode_a_query_asks_for_no_more_than_a_chunk() -> None:
    pages = CHUNK_BYTES // PAGE + 10
    card = Card({"page": TableSpec(4096, pages), "steering": TableSpec(4096, 0)})
    card.vhca.table("page").edit_bytes(0, pages * PAGE)
    assert card.migration.query(False, True) == (CHUNK_BYTES, image_bytes(pages), IDLE)
    assert card.migration.query(False, False)[0] == image_bytes(pages)


def test_the_state_of_a_target_follows_what_it_has_loaded() -> None:
    source, target = Card(), Card()
    source.write("page", 0, 1)
    initial = source.save(incremental=False)[0]
    source.stop()
    final = source.save(track=False)[0]
    target.stop()

    def state() -> VhcaMigrationState:
        return target.migration.query(False, False)[2]

    assert state() == IDLE
    target.load(initial)
    assert state() == DIRTY
    refuses(lambda: target.migration.resume(initiator=False), Status.BAD_RES_STATE, 0x5B03)
    target.load(final)
    assert state() == READY
    target.migration.resume(initiator=False)
    target.migration.resume(initiator=True)
    assert state() == IDLE


# --- Save -----------------------------------------------------------------------------------------


def test_saves_that_can_not_be() -> None:
    card = Card()
    card.write("page", 0, 1)
    card.write("page", 1, 1)
    bad_state, bad_param = Status.BAD_RES_STATE, Status.BAD_PARAM
    refuses(lambda: card.save(incremental=True, size=9000), bad_state, 0x5B21)
    refuses(lambda: card.save(incremental=False, size=image_bytes(0) - 1), bad_param, 0x5B22)
    refuses(lambda: card.save(incremental=True, size=9000), bad_state, 0x5B21)
    card.stop()
    refuses(lambda: card.save(incremental=False, track=True), bad_state, 0x5B20)


def test_a_card_without_chunk_mode_saves_the_final_state_whole_or_not_at_all() -> None:
    card = Card(chunk_mode=False)
    card.write("page", 0, 1)
    card.save(incremental=False)
    card.write("page", 0, 2)
    card.write("page", 1, 1)
    card.stop()
    small = image_bytes(2) - 1
    refuses(lambda: card.save(track=False, size=small), Status.BAD_PARAM, 0x5B23)
    # A save that was refused has taken nothing: the next one has it all.
    found = Image.parse(card.save(track=False)[0])
    assert found.ids == [1 << 32, 1 << 32 | 1]
    assert found.fields["flags"] == FINAL
    refuses(lambda: card.save(incremental=False, track=False, size=small), Status.BAD_PARAM, 0x5B23)


def test_a_refused_full_save_leaves_the_session_as_it_was() -> None:
    card = Card(chunk_mode=False)
    card.write("page", 0, 1)
    first = Image.parse(card.save(incremental=False)[0])
    card.write("page", 1, 1)
    card.stop()
    refuses(
        lambda: card.save(incremental=False, track=False, size=image_bytes(1)),
        Status.BAD_PARAM,
        0x5B23,
    )
    last = Image.parse(card.save(track=False)[0])
    assert last.fields["session"] == first.fields["session"]
    assert (last.fields["sequence"], last.ids) == (1, [1 << 32 | 1])


def test_what_a_small_buffer_has_no_room_for_comes_with_the_next_save() -> None:
    card = Card()
    for number in range(5):
        card.write("page", number, number + 1)
    ids: list[int] = []
    for number in range(3):
        data, following = card.save(incremental=number > 0, size=image_bytes(2))
        # While tracking goes on nothing asks for the next save.
        assert following == 0
        found = Image.parse(data)
        ids += found.ids
        assert found.fields["flags"] == (FULL if number == 0 else 0)
        assert found.fields["sequence"] == number
    assert ids == [1 << 32 | number for number in range(5)]


def test_the_final_state_in_chunks_asks_for_the_next_until_the_last() -> None:
    card = Card()
    for number in range(5):
        card.write("page", number, number + 1)
    card.stop()
    found, needed = [], []
    incremental = False
    while True:
        data, following = card.save(incremental=incremental, track=False, size=image_bytes(2))
        found.append(Image.parse(data))
        needed.append(following)
        if not following:
            break
        incremental = True
    assert needed == [image_bytes(3), image_bytes(1), 0]
    assert [image.fields["flags"] for image in found] == [FULL, 0, FINAL]
    assert [image.fields["sequence"] for image in found] == [0, 1, 2]


def test_a_save_that_ends_tracking_ends_the_session() -> None:
    card = Card()
    card.write("page", 0, 1)
    card.save(incremental=False)
    for size in (0, 10, PAGE):
        parts = [memoryview(bytearray(size))] if size else []
        count, following = card.migration.save(parts, size, incremental=False, track=False)
        assert following == 0
        assert count == (image_bytes(0) if size == PAGE else 0)
    refuses(lambda: card.migration.query(True, False), Status.BAD_RES_STATE, 0x5B10)
    # In pieces smaller than the header, too.
    buffer = bytearray(200)
    parts = [memoryview(buffer)[at : at + 10] for at in range(0, 200, 10)]
    assert card.migration.save(parts, 200, incremental=False, track=False)[0] == image_bytes(0)
    assert Image.parse(bytes(buffer[: image_bytes(0)])).fields["session"] == 0


def test_sessions_are_told_apart() -> None:
    card = Card()
    names = {Image.parse(card.save(incremental=False)[0]).fields["session"] for _ in range(20)}
    assert len(names) == 20
    assert 0 not in names


def test_a_reset_ends_the_session() -> None:
    card = Card()
    card.write("page", 0, 1)
    card.save(incremental=False)
    card.vhca.reset()
    refuses(lambda: card.migration.query(True, False), Status.BAD_RES_STATE, 0x5B10)
    refuses(lambda: card.save(size=9000), Status.BAD_RES_STATE, 0x5B21)
    source, target = Card(), Card()
    source.write("page", 0, 1)
    target.stop()
    target.load(source.save(incremental=False)[0])
    target.vhca.reset()
    # Half a device does not survive it: the function works, empty.
    target.stop()
    assert target.pages() == []
    target.migration.resume(initiator=False)


def test_a_driver_that_starts_over_does_not_end_the_session() -> None:
    """TEARDOWN_HCA and the like replace slots; they change pages as any other command."""
    card = Card()
    card.write("page", 0, 1)
    card.save(incremental=False)
    card.write("page", 0, 0)
    card.vhca.forget_derived()
    assert Image.parse(card.save()[0]).ids == [1 << 32]


@pytest.mark.parametrize("somebody_asks", [False, True])
def test_a_reset_while_a_save_copies_refuses_it(somebody_asks: bool) -> None:
    card = Card()
    card.write("page", 0, 1)
    memory = card.vhca.memory
    take = memory.take

    def reset_first(pages: Pages) -> None:
        card.vhca.reset()
        if somebody_asks:
            card.migration.query(False, False)
        take(pages)

    memory.take = reset_first  # type: ignore[method-assign]
    refuses(lambda: card.save(incremental=False), Status.BAD_RES_STATE, 0x5B24)
    memory.take = take  # type: ignore[method-assign]
    card.write("page", 1, 1)
    assert Image.parse(card.save(incremental=False)[0]).ids == [1 << 32 | 1]


def test_what_is_written_while_a_save_copies_comes_with_the_next_one() -> None:
    count = 2 * SLICE_PAGES + 5
    card = Card({"page": TableSpec(4096, count), "steering": TableSpec(4096, 0)})
    target = Card({"page": TableSpec(4096, count), "steering": TableSpec(4096, 0)})
    card.vhca.table("page").edit_bytes(0, count * PAGE)[:] = b"\x01" * (count * PAGE)
    memory = card.vhca.memory
    take, slices = memory.take, list[int]()

    def write_between(pages: Pages) -> None:
        take(pages)
        slices.append(len(pages))
        # One page that has been copied already, this one's first, and one that has yet to be.
        if len(slices) == 2:
            for number in (3, SLICE_PAGES, count - 1):
                card.write("page", number, 2)

    memory.take = write_between  # type: ignore[method-assign]
    first = card.save(incremental=False)[0]
    memory.take = take  # type: ignore[method-assign]
    assert slices == [SLICE_PAGES, SLICE_PAGES, 5]
    second = card.save()[0]
    assert set(Image.parse(second).ids) <= {3, SLICE_PAGES, count - 1}
    card.stop()
    target.stop()
    for data in (first, second, card.save(track=False)[0]):
        target.load(data)
    assert target.memory() == card.memory()


# --- All of it, whatever happens ------------------------------------------------------------------

places = st.one_of(
    st.tuples(st.just("small"), st.integers(0, 249)), st.tuples(st.just("page"), st.integers(0, 4))
)
steps = st.one_of(
    st.tuples(st.just("write"), places, st.integers(0, 255)),
    st.tuples(st.just("write"), places, st.integers(0, 255)),
    st.tuples(st.just("save"), st.integers(0, 5), st.none()),
)

#: The target's tables are larger, so that its pages have other numbers.
LARGER = {
    "small": TableSpec(64, 1000),
    "page": TableSpec(4096, 9),
    "steering": TableSpec(4096, 3),
}


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    before=st.lists(st.tuples(places, st.integers(0, 255)), max_size=10),
    history=st.lists(steps, max_size=25),
    last=st.integers(1, 4),
    pieces=st.lists(st.integers(1, 9000), max_size=6),
)
def test_any_history_of_writes_and_saves_arrives(
    before: list[tuple[tuple[str, int], int]],
    history: list[tuple[str, Any, Any]],
    last: int,
    pieces: list[int],
) -> None:
    """And every image holds what has changed since it was last sent, no more and no less."""
    source, target = Card(), Card(LARGER)
    target.write("page", 7, 0xEE)
    target.stop()
    first = {"small": 0, "page": 4}
    pending: set[int] = set()

    def write(place: tuple[str, int], value: int) -> None:
        source.write(*place, value)
        per_page = {"small": 64, "page": 1}[place[0]]
        pending.add(first[place[0]] + place[1] // per_page)

    def page_id(page: int) -> int:
        return page if page < 4 else 1 << 32 | page - 4

    def save(room: int, **how: bool) -> int:
        size = image_bytes(room) + 17
        lengths = [*pieces, size]
        data, following = source.save(size=size, pieces=lengths, **how)
        found = Image.parse(data)
        expected = sorted(pending)[:room]
        assert found.ids == [page_id(page) for page in expected]
        pending.difference_update(expected)
        target.load(data, [*pieces, len(data)])
        assert following == (image_bytes(len(pending)) if not how["track"] and pending else 0)
        return following

    for place, value in before:
        write(place, value)
    save(2, incremental=False, track=True)
    for what, where, value in history:
        if what == "write":
            write(where, value)
        else:
            save(where, incremental=True, track=True)
    source.stop()
    while save(last, incremental=True, track=False):
        pass
    for name, content in source.memory().items():
        there = target.memory()[name]
        assert there[: len(content)] == content
        assert not any(there[len(content) :])
    target.migration.resume(initiator=False)
