"""One socket between two peers: cut anywhere, in any order, from any thread, and never believed."""

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from precopy.vfio_user.conversation import (
    MOST_WAITING,
    MOST_WAITING_BYTES,
    MOST_WAITING_FDS,
    Conversation,
    Gone,
)
from precopy.vfio_user.messages import HEADER, MOST_FDS, MOST_HEAD, Command
from tests.vfio_user.wires import MOST, ends, new_file, packed, same_fds, same_file

READ, WRITE = Command.MIG_DATA_READ, Command.REGION_WRITE


def in_thread(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` begins; the result waits for what it gives, or raises."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return lambda: future.result(20)


# --- Segmentation ---------------------------------------------------------------------------------

#: A message: payload size, how many descriptors.
MESSAGES = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 200), st.sampled_from([65536, 65537, 100_000, MOST + MOST_HEAD])),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=120, deadline=None)
@given(MESSAGES, st.lists(st.one_of(st.integers(1, 30), st.integers(1, 70_000)), max_size=20))
def test_cut_anywhere_the_same_arrives(messages: list[tuple[int, int]], cuts: list[int]) -> None:
    """Descriptors go with the first piece of their message, as senders do it."""
    kept = [new_file() for _ in range(3)]
    with same_fds(), ends() as (conversation, raw):

        def send() -> None:
            turn = 0
            for number, (size, fds) in enumerate(messages):
                data = packed(WRITE, bytes([number]) * size, number=number)
                with_it = kept[:fds]
                while data:
                    count = cuts[turn] if turn < len(cuts) else len(data)
                    turn += 1
                    raw.send(data[:count], with_it)
                    data, with_it = data[count:], []

        sent = in_thread(send)
        for number, (size, fds) in enumerate(messages):
            message = conversation.next_request()
            assert message.problem is None
            assert message.header == (number, WRITE, HEADER.size + size, 0, 0)
            assert bytes(message.payload) == bytes([number]) * size
            assert len(message.fds) == fds
            assert all(map(same_file, message.fds, kept))
            conversation.recycle(message)
        sent()
    for fd in kept:
        os.close(fd)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=30), st.lists(st.integers(1, 97)))
def test_many_messages_in_pieces_of_any_size(sizes: list[int], cuts: list[int]) -> None:
    """Also several messages in one piece."""
    stream = b"".join(packed(WRITE, bytes(size), number=at) for at, size in enumerate(sizes))
    with ends() as (conversation, raw):
        at = 0
        for cut in cuts:
            raw.send(stream[at : at + cut])
            at += cut
        raw.send(stream[at:])
        for number, size in enumerate(sizes):
            message = conversation.next_request()
            assert (message.header.message_id, len(message.payload)) == (number, size)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 50, 65536, 65528, 65529, 70_000, MOST])
@pytest.mark.parametrize("cut", [1, 16, 17, 23, 24, 25, 40, 1 << 30])
def test_data_goes_straight_into_memory(size: int, cut: int) -> None:
    data = (os.urandom(251) * (MOST // 251 + 1))[:size]
    with ends() as (conversation, raw):
        room = bytearray(size)

        def answer() -> None:
            header, payload, _ = raw.hear()
            assert payload == b"ask"
            reply = packed(
                header.command,
                struct.pack("=II", 8 + size, size) + data,
                number=header.message_id,
                flags=1,
            )
            # And the next message behind it.
            stream = reply + packed(WRITE, b"next")
            raw.send(stream[:cut])
            raw.send(stream[cut:])

        answered = in_thread(answer)
        reply = conversation.call(READ, [b"ask"], into=memoryview(room))
        assert (bytes(reply.payload), reply.header.size) == (
            struct.pack("=II", 8 + size, size),
            HEADER.size + 8 + size,
        )
        assert bytes(room) == data
        conversation.recycle(reply)
        assert bytes(conversation.next_request().payload) == b"next"
        answered()


def test_more_data_than_was_asked_for_ends_it() -> None:
    with ends() as (conversation, raw):
        room = bytearray(100)
        raw.say(READ, bytes(8 + 51), number=0, flags=1)
        with pytest.raises(Gone, match="more than asked for") as caught:
            conversation.call(READ, [], into=memoryview(room)[:50])
        assert caught.value.errno == errno.EPROTO
        assert not any(room)


def test_a_second_reply_does_not_reach_the_memory_of_the_first() -> None:
    """Who asked may have given the memory away already."""
    with ends() as (conversation, raw):
        room = bytearray(8)
        raw.say(READ, bytes(8) + b"A" * 8, number=0, flags=1)
        raw.say(READ, bytes(8) + b"B" * 8, number=0, flags=1)
        raw.say(WRITE, b"after")
        conversation.call(READ, [], into=memoryview(room))
        second = conversation.next_request()
        assert second.problem is not None
        assert second.problem.errno == errno.EINVAL
        assert bytes(conversation.next_request().payload) == b"after"
        assert room == b"A" * 8


# --- Replies --------------------------------------------------------------------------------------


def test_replies_out_of_order_from_several_threads() -> None:
    with ends() as (conversation, raw), ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(conversation.call, WRITE, [bytes([at])]) for at in range(8)]
        asked = [raw.hear() for _ in range(8)]
        assert len({header.message_id for header, _, _ in asked}) == 8
        for header, payload, _ in reversed(asked):
            raw.say(WRITE, payload * 2, number=header.message_id, flags=1)
        for at, call in enumerate(calls):
            assert bytes(call.result(20).payload) == bytes([at, at])


def test_both_sides_call_at_once() -> None:
    """Each thread that waits reads for the others, whichever side they are on."""
    ours, theirs = socket.socketpair()
    one, other = Conversation(ours, MOST), Conversation(theirs, MOST)

    def serve(conversation: Conversation) -> None:
        for _ in range(150):
            message = conversation.next_request()
            conversation.reply(message.header, [bytes(message.payload)[::-1]])
            conversation.recycle(message)

    def ask(conversation: Conversation, letter: bytes) -> None:
        for at in range(50):
            text = letter * at + b"end"
            assert bytes(conversation.call(WRITE, [text]).payload) == text[::-1]

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(serve, each) for each in (one, other)]
        for letter in (b"a", b"b", b"c"):
            jobs += [pool.submit(ask, each, letter) for each in (one, other)]
        for job in jobs:
            job.result(30)
    one.close()
    other.close()


def test_large_messages_from_both_sides_at_once() -> None:
    """Neither waits for the other to read: more than a socket's buffer goes each way."""
    ours, theirs = socket.socketpair()
    one, other = Conversation(ours, MOST), Conversation(theirs, MOST)

    def serve(conversation: Conversation) -> None:
        for _ in range(3):
            message = conversation.next_request()
            conversation.reply(message.header, [b"ok"])
            conversation.recycle(message)

    def ask(conversation: Conversation) -> None:
        for _ in range(3):
            conversation.call(WRITE, [bytes(MOST)])

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(serve, each) for each in (one, other)]
        jobs += [pool.submit(ask, each) for each in (one, other)]
        for job in jobs:
            job.result(30)
    one.close()
    other.close()


def test_an_error_is_raised_with_its_errno() -> None:
    with same_fds(), ends() as (conversation, raw):
        raw.say(WRITE, number=0, flags=0x21, error=errno.EBUSY)
        with pytest.raises(OSError, match="busy") as caught:
            conversation.call(WRITE)
        assert caught.value.errno == errno.EBUSY
        # libvfio-user sends some errors with a payload, and an errno may be missing.
        raw.say(WRITE, b"payload", number=1, flags=0x21, fds=[0])
        with pytest.raises(OSError, match="Input/output") as caught:
            conversation.call(WRITE)
        assert not isinstance(caught.value, Gone)
        raw.say(WRITE, b"fine", number=2, flags=1)
        assert bytes(conversation.call(WRITE).payload) == b"fine"


def test_a_reply_that_cant_be_ends_it() -> None:
    with same_fds(), ends() as (conversation, raw):
        raw.send(HEADER.pack(0, WRITE, 4, 1, 0), [0])
        with pytest.raises(Gone, match="shorter than its header"):
            conversation.call(WRITE)
        with pytest.raises(Gone):
            conversation.call(WRITE)


def test_numbers_in_use_are_passed_over() -> None:
    """After 65536 commands an old one may still wait."""
    with ends() as (conversation, raw), ThreadPoolExecutor(2) as pool:
        waits = pool.submit(conversation.call, READ, [])
        assert raw.hear()[0].message_id == 0
        for at in range(1, 0x10000):
            conversation.post(WRITE, [])
            assert raw.hear()[0].message_id == at
        mine = pool.submit(conversation.call, WRITE)
        assert raw.hear()[0].message_id == 1
        raw.say(WRITE, b"mine", number=1, flags=1)
        assert bytes(mine.result(20).payload) == b"mine"
        raw.say(READ, b"old", number=0, flags=1)
        assert bytes(waits.result(20).payload) == b"old"


def test_no_reply_is_sent_to_whom_wants_none() -> None:
    with ends() as (conversation, raw):
        raw.say(WRITE, flags=0x10, number=5)
        raw.say(WRITE, number=6)
        for _ in range(2):
            message = conversation.next_request()
            conversation.reply(message.header, [b"done"])
            conversation.fail(message.header, errno.EINVAL)
        assert raw.hear()[0] == (6, WRITE, 20, 1, 0)
        assert raw.hear()[0] == (6, WRITE, 16, 0x21, errno.EINVAL)


# --- What is wrong with a message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "body", "text"),
    [
        ((1, 2, 0, 0, 0), b"", "of 0 bytes is shorter"),
        ((1, 2, 15, 0, 0), b"", "of 15 bytes is shorter"),
        ((1, 2, MOST + MOST_HEAD + 17, 0, 0), bytes(MOST + MOST_HEAD + 1), "too large"),
        ((1, 2, 20, 2, 0), b"1234", "neither command nor reply"),
        ((1, 2, 20, 0xF, 0), b"1234", "neither command nor reply"),
        ((1, 2, 20, 1, 0), b"1234", "nobody waits for"),
        ((1, 2, 20, 0x21, 22), b"1234", "nobody waits for"),
    ],
)
def test_what_is_no_message(header: tuple[int, ...], body: bytes, text: str) -> None:
    """It is told, without its payload, and the next message is found behind it."""
    with same_fds(), ends() as (conversation, raw):

        def send() -> None:
            raw.send(HEADER.pack(*header) + body, [0, 1])
            raw.say(3)

        sent = in_thread(send)
        message = conversation.next_request()
        assert message.header == header
        assert message.problem is not None
        assert message.problem.errno == errno.EINVAL
        assert text in str(message.problem)
        conversation.recycle(message)
        following = conversation.next_request()
        assert (following.header.command, following.fds) == (3, [])
        sent()


def test_the_largest_message_and_one_that_never_comes() -> None:
    with ends() as (conversation, raw):
        sent = in_thread(lambda: raw.say(WRITE, bytes(MOST + MOST_HEAD)))
        assert len(conversation.next_request().payload) == MOST + MOST_HEAD
        sent()
        # 4 GiB are announced: nothing is allocated for them.
        raw.send(HEADER.pack(1, WRITE, 0xFFFF_FFFF, 0, 0) + bytes(100_000))
        assert conversation.next_request().problem is not None
        raw.close()
        with pytest.raises(Gone, match="in the middle of a message"):
            conversation.next_request()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", errno.ENOTCONN),
        (packed(WRITE)[:1], errno.EPROTO),
        (packed(WRITE)[:15], errno.EPROTO),
        (packed(WRITE, b"1234")[:16], errno.EPROTO),
        (packed(WRITE, b"1234")[:19], errno.EPROTO),
        (packed(WRITE, bytes(100_000))[:16], errno.EPROTO),
        (packed(WRITE, bytes(100_000))[:99_999], errno.EPROTO),
        (packed(WRITE) + b"1", errno.EPROTO),
    ],
)
def test_a_peer_that_goes(data: bytes, code: int) -> None:
    with same_fds(), ends() as (conversation, raw):

        def send() -> None:
            if data:
                raw.send(data, [0, 1, 2])
            raw.close()

        sent = in_thread(send)
        if data[:16] == packed(WRITE):
            conversation.next_request().close_fds()
        with pytest.raises(Gone) as caught:
            conversation.next_request()
        assert caught.value.errno == code
        sent()
        # From now on nothing goes any more.
        for call in (
            lambda: conversation.call(WRITE),
            lambda: conversation.post(WRITE, []),
            conversation.next_request,
        ):
            with pytest.raises(Gone):
                call()


def test_a_peer_that_goes_in_the_middle_of_data() -> None:
    with ends() as (conversation, raw):
        raw.send(packed(READ, bytes(50_000), number=0, flags=1)[:30_000])
        raw.close()
        with pytest.raises(Gone) as caught:
            conversation.call(READ, [], into=memoryview(bytearray(50_000)))
        assert caught.value.errno in (errno.EPROTO, errno.ENOTCONN)


def test_everybody_who_waits_is_told() -> None:
    with ends() as (conversation, raw), ThreadPoolExecutor(4) as pool:
        waits = [pool.submit(conversation.call, WRITE) for _ in range(3)]
        waits.append(pool.submit(conversation.next_request))
        for _ in range(3):
            raw.hear()
        raw.close()
        for each in waits:
            with pytest.raises(Gone):
                each.result(20)


def test_cut_from_another_thread() -> None:
    with ends() as (conversation, raw), ThreadPoolExecutor(2) as pool:
        waits = pool.submit(conversation.call, WRITE)
        raw.hear()
        conversation.cut(errno.ENOTCONN, "enough")
        with pytest.raises(Gone, match="enough"):
            waits.result(20)
        assert raw.ended()


# --- Deadlines ------------------------------------------------------------------------------------


def test_a_peer_that_does_not_answer() -> None:
    with ends() as (conversation, raw):
        with pytest.raises(TimeoutError):
            conversation.next_request(0.01)
        raw.send(packed(WRITE, b"1234")[:18])
        with pytest.raises(TimeoutError):
            conversation.next_request(0.01)
        # What came is not lost.
        raw.send(b"34")
        assert bytes(conversation.next_request(5).payload) == b"1234"
        with pytest.raises(TimeoutError):
            conversation.call(WRITE, timeout=0.01)
        # A reply that came now would be taken for another's.
        with pytest.raises(Gone):
            conversation.call(WRITE)


def test_one_that_waits_for_less_long_while_another_reads() -> None:
    with ends() as (conversation, raw), ThreadPoolExecutor(1) as pool:
        reads = pool.submit(conversation.next_request)
        with pytest.raises(TimeoutError):
            conversation.call(WRITE, timeout=0.05)
        assert raw.hear()[0].command == WRITE
        with pytest.raises(Gone):
            reads.result(20)


# --- Bounds ---------------------------------------------------------------------------------------


def flood(conversation: Conversation, raw: Any, one: bytes, count: int, fds: list[int]) -> int:
    """``count`` messages while a call is under way; how many of them were refused."""

    def send() -> None:
        for _ in range(count):
            raw.send(one, fds)
        raw.say(WRITE, number=0, flags=1)

    refused = [0]

    def hear() -> None:
        assert raw.hear()[0].flags == 0
        while True:
            header, _, _ = raw.hear()
            if header.command == 99:
                return
            assert (header.flags, header.error) == (0x21, errno.ENOBUFS)
            refused[0] += 1

    sent, heard = in_thread(send), in_thread(hear)
    conversation.call(WRITE)
    conversation.post(99, [])
    sent()
    heard()
    return refused[0]


def test_waiting_commands_are_bounded_in_number() -> None:
    with ends() as (conversation, raw):
        assert flood(conversation, raw, packed(WRITE), MOST_WAITING + 3, []) == 3
        for _ in range(MOST_WAITING):
            conversation.next_request()
        with pytest.raises(TimeoutError):
            conversation.next_request(0.01)


def test_waiting_commands_are_bounded_in_bytes() -> None:
    with ends() as (conversation, raw):
        room = MOST_WAITING_BYTES // MOST
        assert flood(conversation, raw, packed(WRITE, bytes(MOST)), room + 3, []) == 3
        for _ in range(room):
            conversation.recycle(conversation.next_request())
        # There is room again.
        raw.say(WRITE, bytes(MOST // 8))
        assert conversation.next_request().problem is None


def test_descriptors_of_waiting_commands_are_bounded() -> None:
    files = [new_file() for _ in range(MOST_FDS)]
    with same_fds(), ends() as (conversation, raw):
        room = MOST_WAITING_FDS // MOST_FDS
        assert flood(conversation, raw, packed(WRITE), room + 3, files) == 3
        for _ in range(room):
            message = conversation.next_request()
            assert len(message.fds) == MOST_FDS
            conversation.recycle(message)
    for fd in files:
        os.close(fd)


def test_a_stray_reply_that_finds_no_room_is_not_answered() -> None:
    with ends() as (conversation, raw):
        stray = packed(WRITE, number=77, flags=0x21, error=5)
        assert flood(conversation, raw, packed(WRITE), MOST_WAITING, []) == 0
        raw.send(stray)
        raw.say(WRITE, number=2, flags=1)
        conversation.call(WRITE)
        conversation.post(99, [])
        kinds = [raw.hear()[0].command for _ in range(2)]
        assert kinds == [WRITE, 99]


def test_too_many_descriptors_at_once() -> None:
    files = [new_file() for _ in range(MOST_FDS + 2)]
    with same_fds(), ends() as (conversation, raw):
        raw.say(WRITE, fds=files)
        with pytest.raises(Gone, match="more descriptors") as caught:
            conversation.next_request()
        assert caught.value.errno == errno.EPROTO
    for fd in files:
        os.close(fd)


def test_too_many_descriptors_one_by_one() -> None:
    """A message in many pieces, with some in each."""
    files = [new_file() for _ in range(8)]
    with same_fds(), ends() as (conversation, raw):
        raw.send(HEADER.pack(1, WRITE, HEADER.size + 1000, 0, 0))
        for _ in range(30):
            raw.send(b"x", files)
        with pytest.raises(Gone, match="more descriptors"):
            conversation.next_request()
    for fd in files:
        os.close(fd)


def test_messages_that_nobody_took_leave_nothing_open() -> None:
    file = new_file()
    with same_fds():
        with ends() as (conversation, raw):
            for _ in range(3):
                raw.say(WRITE, b"abc", fds=[file, file])
            raw.send(packed(WRITE, b"half")[:18], [file])
            raw.say(WRITE, number=0, flags=1)
            conversation.next_request().close_fds()
        # Both at once: some wait, some have not been received.
        with ends() as (conversation, raw):
            for _ in range(3):
                raw.say(WRITE, b"abc", fds=[file, file])
            raw.say(WRITE, number=0, flags=1, fds=[file])
            raw.send(packed(WRITE, b"half")[:18], [file])
            conversation.recycle(conversation.call(WRITE))
    os.close(file)


def test_two_that_take_requests() -> None:
    """Each gets its own, none gets another's."""
    with ends() as (conversation, raw), ThreadPoolExecutor(4) as pool:
        takers = [pool.submit(conversation.next_request, 20) for _ in range(4)]
        for number in range(4):
            raw.say(WRITE, number=number)
        assert sorted(each.result(20).header.message_id for each in takers) == [0, 1, 2, 3]


def test_no_thread_reads() -> None:
    """A conversation has no thread of its own."""
    before = threading.active_count()
    with ends() as (conversation, raw):
        raw.say(WRITE)
        conversation.next_request()
        assert threading.active_count() == before
