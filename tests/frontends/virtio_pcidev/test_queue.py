"""The device's side of a virtqueue against a driver's, in the same memory."""

from collections.abc import Callable, Iterator

import pytest

from precopy.frontends.virtio_pcidev.messages import ProtocolError
from precopy.frontends.virtio_pcidev.queue import Queue, gather, scatter
from precopy.pci.dma import DmaSpace
from tests.frontends.virtio_pcidev.front_end import ENTRIES, NEXT, SIZE, START, WRITE, Memory, Ring


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    memory.close()


@pytest.fixture
def space(memory: Memory) -> Iterator[DmaSpace]:
    space = DmaSpace()
    view = memory.bytes[START:]
    # In two mappings, so that a buffer can lie in both.
    half = START + SIZE // 2
    space.replace((), [(START, view[: SIZE // 2]), (half, view[SIZE // 2 :])])
    yield space
    space.replace([START, half], ())
    view.release()


@pytest.fixture
def ring(memory: Memory) -> Ring:
    return Ring(memory, 0)


def queue_of(space: DmaSpace, ring: Ring, **changed: int) -> Queue:
    asked = {"desc": ring.desc, "avail": ring.avail, "used": ring.used, **changed}
    entries = asked.pop("entries", ENTRIES)
    return Queue(space, entries, **asked)


def test_an_empty_queue_has_no_request(space: DmaSpace, ring: Ring) -> None:
    assert queue_of(space, ring).pop() is None


def test_requests_go_round_and_round(space: DmaSpace, ring: Ring) -> None:
    queue = queue_of(space, ring)
    # More than 65536, over which the indexes wrap.
    for number in range(70_000 // 3):
        heads = [ring.add([b"%d" % (number + n)], [8]) for n in range(3)]
        for n in range(3):
            chain = queue.pop()
            assert chain is not None
            text = gather(chain.readable)
            assert text == b"%d" % (number + n)
            scatter(chain.writable, text[::-1])
            queue.push(chain, len(text))
        assert queue.pop() is None
        for n, head in enumerate(heads):
            assert ring.take() == (head, (b"%d" % (number + n))[::-1])
    assert ring.take() is None
    assert queue.base == 3 * (70_000 // 3) % 65536


def test_requests_may_be_given_back_in_another_order(space: DmaSpace, ring: Ring) -> None:
    queue = queue_of(space, ring)
    first, second = ring.add([b"1"]), ring.add([b"2"])
    one, two = queue.pop(), queue.pop()
    assert one is not None
    assert two is not None
    queue.push(two, 0)
    queue.push(one, 0)
    assert ring.take() == (second, b"")
    assert ring.take() == (first, b"")


def test_a_request_in_many_parts(space: DmaSpace, ring: Ring) -> None:
    queue = queue_of(space, ring)
    head = ring.add([b"ab", b"", b"cde"], [1, 0, 3])
    chain = queue.pop()
    assert chain is not None
    assert gather(chain.readable) == b"abcde"
    scatter(chain.writable, b"xyz")
    queue.push(chain, 3)
    assert ring.take() == (head, b"xyz")


def test_a_part_over_two_mappings(memory: Memory, space: DmaSpace, ring: Ring) -> None:
    queue = queue_of(space, ring)
    border = START + SIZE // 2
    memory.write(border - 2, b"wxyz")
    ring.describe(5, border - 2, 4, 0, 0)
    ring.publish(5)
    chain = queue.pop()
    assert chain is not None
    assert gather(chain.readable) == b"wxyz"


def test_an_answer_needs_room() -> None:
    room = [memoryview(bytearray(2)), memoryview(bytearray(1))]
    with pytest.raises(ProtocolError, match="4 bytes are to be answered into room for 3"):
        scatter(room, b"1234")
    scatter([], b"")


def test_it_goes_on_where_it_is_told(space: DmaSpace, ring: Ring) -> None:
    for n in range(3):
        ring.add([b"%d" % n])
    queue = queue_of(space, ring, base=2)
    chain = queue.pop()
    assert chain is not None
    assert gather(chain.readable) == b"2"
    assert queue.pop() is None


@pytest.mark.parametrize("entries", [0, 3, 255, 1 << 16])
def test_entries_that_no_queue_has(space: DmaSpace, ring: Ring, entries: int) -> None:
    with pytest.raises(ProtocolError, match=f"a queue of {entries} entries"):
        queue_of(space, ring, entries=entries)


@pytest.mark.parametrize("ring_", ["desc", "avail", "used"])
@pytest.mark.parametrize(
    "address", [0, START - 16, START + SIZE - 16, START + SIZE, (1 << 64) - 16]
)
def test_rings_outside_the_memory(space: DmaSpace, ring: Ring, ring_: str, address: int) -> None:
    with pytest.raises(ProtocolError, match=r"rings of a queue are not in memory.*EFAULT"):
        queue_of(space, ring, **{ring_: address})


@pytest.mark.parametrize("ring_", ["desc", "avail", "used"])
def test_rings_that_are_not_aligned(space: DmaSpace, ring: Ring, ring_: str) -> None:
    with pytest.raises(ProtocolError, match="are not aligned"):
        queue_of(space, ring, **{ring_: START + 1})


def _loop(ring: Ring) -> None:
    ring.describe(0, START, 1, NEXT, 1)
    ring.describe(1, START, 1, NEXT, 0)
    ring.publish(0)


def _one(ring: Ring, address: int = START, length: int = 1, flags: int = 0) -> None:
    ring.describe(0, address, length, flags, 0)
    ring.publish(0)


def _written_first(ring: Ring) -> None:
    ring.describe(0, START, 1, NEXT | WRITE, 1)
    ring.describe(1, START, 1, 0, 0)
    ring.publish(0)


def _far_next(ring: Ring) -> None:
    ring.describe(0, START, 1, NEXT, ENTRIES)
    ring.publish(0)


def _long(ring: Ring) -> None:
    for index in range(20):
        ring.describe(index, START, 2 << 20, NEXT, index + 1)
    ring.publish(0)


def _jump(ring: Ring) -> None:
    for _ in range(ENTRIES + 1):
        ring.publish(0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (_loop, "chain from descriptor 0 has no end"),
        (_jump, "257 requests are available in a queue of 256"),
        (lambda ring: ring.publish(ENTRIES), "descriptor 256 of a queue of 256"),
        (_far_next, "descriptor 256 of a queue of 256"),
        (_written_first, "descriptor 1 is to be read after one to be written"),
        (_long, "chain from descriptor 0 is over 33554432 bytes"),
        (lambda ring: _one(ring, flags=4), "descriptor 0 has flags 0x4"),
        (lambda ring: _one(ring, address=START - 1), "descriptor 0: .*EFAULT"),
        (lambda ring: _one(ring, address=START + SIZE), "descriptor 0: .*EFAULT"),
        (lambda ring: _one(ring, address=(1 << 64) - 1, length=2), "descriptor 0: .*EFAULT"),
        (lambda ring: _one(ring, length=0xFFFFFFFF), "over 33554432 bytes"),
    ],
)
def test_what_a_driver_cannot_ask(
    space: DmaSpace, ring: Ring, make: Callable[[Ring], None], text: str
) -> None:
    queue = queue_of(space, ring)
    make(ring)
    with pytest.raises(ProtocolError, match=text):
        queue.pop()
