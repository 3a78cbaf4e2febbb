"""DMA logging by the kernel's own mlx5_vfio_pci: reports, compared bit for bit with what was written."""

from collections.abc import Iterable, Iterator
from functools import partial

import pytest

from precopy.guest import messages
from precopy.mlx5_abi.wqe import WqeOpcode
from tests.lab.mlx5.actions import MUCH, PLACES
from tests.lab.mlx5.dirty import BEGIN, CONFIG, LENGTH, MANY, PAGE, PARTS, SMALL_GAPS
from tests.lab.mlx5.rig import Boots, Seen, boot, booting

pytestmark = pytest.mark.timeout(600)

CARD = "mlx5?vfs=3&log_max_qp=12"
FACTS = ("refusals", "bits", "windows", "lasting", "much")

BOOTS = {
    "ordinary": partial(boot, *FACTS, "troubles", adapter=CARD),
    "small messages": partial(boot, *FACTS, adapter=CARD, card="small messages"),
    "heard": partial(boot, "heard", adapter=CARD, card="tells of objects"),
    "unheard": partial(boot, "unheard", adapter=CARD, hangs=True),
}

Pages = set[int]


@pytest.fixture(scope="module")
def boots() -> Iterator[Boots]:
    with booting(BOOTS) as found:
        yield found


@pytest.fixture(params=["ordinary", "small messages"])
def seen(request: pytest.FixtureRequest, boots: Boots) -> Seen:
    return boots[request.param]


def covered(writes: Iterable[tuple[int, int]], page: int = PAGE) -> Pages:
    """Numbers of the pages that hold a byte of ``writes``."""
    return {
        number
        for address, length in writes
        for number in range(address // page, (address + length - 1) // page + 1)
    }


def within(pages: Pages, ranges: Iterable[tuple[int, int]], page: int = PAGE) -> Pages:
    inside = covered(ranges, page)
    return pages & inside


def told(bitmap: str, begin: int = BEGIN, page: int = PAGE) -> Pages:
    """Numbers of the pages whose bit is set in a bitmap that begins at ``begin``."""
    number = int.from_bytes(bytes.fromhex(bitmap), "little")
    return {begin // page + bit for bit in range(number.bit_length()) if number >> bit & 1}


def written(seen: Seen, mark: str, vf: int = 0, page: int = PAGE) -> Pages:
    """What a VF wrote from ``mark`` to the next, in the guest's memory."""
    writes = [(address, length) for who, address, length in seen.writes[mark] if who == vf]
    return within(covered(writes, page), [(BEGIN, LENGTH)], page)


# --- Bits -----------------------------------------------------------------------------------------


def test_every_page_that_was_written_and_no_other(seen: Seen) -> None:
    bits = seen.told["bits"]
    assert bits["started"] == [PAGE, PAGE]
    for vf in (0, 1):
        first = told(bits["first"][vf])
        assert first == written(seen, "bits: first", vf)
        assert len(first) > 10
    assert first != told(bits["first"][0])


def test_the_pages_are_those_of_the_messages(seen: Seen) -> None:
    """Of what the messages are, without asking the card: where each of them was to arrive."""
    expected = []
    for pair in range(CONFIG.pairs):
        sends = 0
        for sequence in range(20 // CONFIG.pairs):
            operation = messages.operation(CONFIG, sequence)
            if operation == WqeOpcode.RDMA_WRITE:
                slot = CONFIG.rdma_slot(pair, sequence)
            elif operation == WqeOpcode.RDMA_READ:
                slot = CONFIG.send_slot(pair, sequence)
            else:
                slot, sends = CONFIG.receive_slot(pair, sends), sends + 1
            expected.append((BEGIN + slot, CONFIG.size))
    found = told(seen.told["bits"]["first"][0])
    data = covered(expected)
    assert data < found
    # The rest are completions and events.
    queues = {(BEGIN + CONFIG.pair_at(pair)) // PAGE for pair in range(CONFIG.pairs)}
    events = set(range(BEGIN // PAGE + 1, (BEGIN + CONFIG.pairs_at) // PAGE))
    assert queues < found
    assert found - data - queues < events


def test_a_report_clears_what_it_tells(seen: Seen) -> None:
    bits = seen.told["bits"]
    assert [told(each) for each in bits["again"]] == [set(), set()]
    for vf in (0, 1):
        # The first hundred pages have been reported in between.
        late = written(seen, "bits: third", vf)
        early = written(seen, "bits: second", vf)
        expected = late | (early - covered([(BEGIN, 100 * PAGE)]) if vf == 0 else early)
        assert told(bits["third"][vf]) == expected


def test_a_report_only_sets(seen: Seen) -> None:
    assert seen.told["bits"]["second, on ones"] == "ff" * 16


def test_a_log_that_is_stopped(seen: Seen) -> None:
    bits = seen.told["bits"]
    assert bits["stopped"] == [None, None]
    assert bits["after it"] == "EINVAL"
    assert told(bits["the other"]) == set()


# --- Ranges and sizes -----------------------------------------------------------------------------


def test_ranges_with_gaps(seen: Seen) -> None:
    size, first, again = seen.told["windows"]["parts"]
    assert size == PAGE
    expected = within(written(seen, "windows: parts"), PARTS)
    assert told(first) == expected
    assert 0 < len(expected) < len(written(seen, "windows: parts"))
    assert told(again) == set()


def test_more_ranges_than_the_card_has(seen: Seen) -> None:
    """The smallest gaps are tracked with them, and told of."""
    size, found = seen.told["windows"]["many"]
    assert size == PAGE
    everything = written(seen, "windows: many")
    asked = within(everything, MANY)
    assert told(found) == within(everything, [*MANY, *SMALL_GAPS])
    assert asked < told(found) < everything
    made = [line for line in seen.lines("windows: many") if "CREATE_GENERAL_OBJECT" in line]
    assert len(made) == 1
    assert "num_ranges=0x8" in made[0]
    assert len(MANY) == 12


def test_a_window_at_a_time(seen: Seen) -> None:
    size, low, low_again, high, all_again = seen.told["windows"]["halves"]
    assert size == PAGE
    half = len(low) * 4 * PAGE
    everything = written(seen, "windows: halves")
    below = within(everything, [(BEGIN, half)])
    assert told(low) == below
    assert told(low_again) == set()
    assert told(high, BEGIN + half) == everything - below
    assert told(all_again) == set()


def test_large_pages(boots: Boots) -> None:
    """A log of large pages marks them as a whole; a hint that can't be followed is not."""
    for name, sizes in (
        ("ordinary", {1 << 10: PAGE, 1 << 16: 1 << 16, 1 << 21: 1 << 21}),
        ("small messages", {1 << 10: PAGE, 1 << 16: 1 << 16, 1 << 21: 1 << 20}),
    ):
        seen = boots[name]
        for asked, size in sizes.items():
            mark = f"pages of {asked}"
            tracked, found = seen.told["windows"][mark]
            assert tracked == size
            marked = [(page * size, size) for page in written(seen, f"windows: {mark}", 0, size)]
            assert told(found, BEGIN, 1 << 16) == within(
                covered(marked, 1 << 16), [(BEGIN, LENGTH)], 1 << 16
            )


def test_small_pages_in_a_report_of_large_ones(seen: Seen) -> None:
    size, found = seen.told["windows"]["large pages of small ones"]
    assert size == PAGE
    expected = written(seen, "windows: large pages of small ones", 0, 1 << 16)
    assert told(found, BEGIN, 1 << 16) == expected


# --- What is refused, what lasts ------------------------------------------------------------------


def test_refusals(seen: Seen, boots: Boots) -> None:
    # ENOTSUP is the same number.
    no = {"ENOTSUP": "EOPNOTSUPP"}
    found = {name: no.get(str(each), each) for name, each in seen.told["refusals"].items()}
    # With 40 bits of addresses half of all are too many, so the second log is the first.
    little = seen is boots["small messages"]
    assert found == {
        "no EQ": ["EIO", PAGE],
        "no log": "EINVAL",
        "stop without one": None,
        "no ranges": "EINVAL",
        "not whole pages": "EINVAL",
        "no page size": "EINVAL",
        "an overlap": "EINVAL",
        "beyond the end": "EOVERFLOW",
        "257 ranges": "E2BIG",
        "more than half of all": "EOPNOTSUPP",
        "half of all": "EOPNOTSUPP" if little else PAGE,
        "a second log": PAGE if little else "EINVAL",
        "small pages": "EINVAL",
        "odd pages": "EINVAL",
        "report beyond the end": "EOVERFLOW",
        "256 ranges": [None, PAGE],
    }


def test_a_log_lasts_as_long_as_its_device_is_open(seen: Seen) -> None:
    lasting = seen.told["lasting"]
    assert lasting["started"] == PAGE
    assert told(lasting["states"]) == written(seen, "lasting: states") != set()
    assert told(lasting["reset"]) == set()
    assert told(lasting["after a reset"]) == written(seen, "lasting: after a reset") != set()
    assert lasting["on another VF"] == PAGE
    assert lasting["closed"] == "EINVAL"


def test_more_pages_than_there_is_room_for_messages(seen: Seen, boots: Boots) -> None:
    much = seen.told["much"]
    assert much["started"] == PAGE
    assert much["all"] == MUCH
    assert much["again"] == ""
    assert told(much["here and there"], 0) == covered(PLACES)
    made = next(line for line in seen.lines("lasting: after a reset") if "CREATE_GENERAL" in line)
    room = 12 if seen is boots["small messages"] else 20
    assert f"log_msg_size={room:#x}" in made


# --- Queues that fail -----------------------------------------------------------------------------


def test_queues_of_the_log_that_fail(boots: Boots) -> None:
    """The log is of no use any more, until a new one is begun."""
    broken = ["EIO", "EIO", "pages"]
    assert boots["ordinary"].told["troubles"] == {
        "BREAK_RECEIVER": broken,
        "CQ_ERROR": broken,
        "WQ_CATAS_ERROR": broken,
        "WQ_ACCESS_ERROR": broken,
        "WQ_INVAL_REQ_ERROR": broken,
        # Of others it does not matter.
        "OTHERS": ["pages", "none", "pages"],
    }


def test_a_report_that_breaks_off(boots: Boots) -> None:
    """The driver asks what has become of its object."""
    assert boots["heard"].told["heard"] == {
        "asked": ["EIO", "EIO", "pages"],
        "not told": ["EINVAL", "EIO", "pages"],
    }


def test_a_report_that_breaks_off_unheard(boots: Boots) -> None:
    """mlx5_core listens to OBJECT_CHANGE only for the sake of other objects (MACsec, IPsec, PCIe
    congestion). On a card without these the driver waits for ever, with the VF's lock held.
    """
    assert boots["unheard"].told["unheard"] == [True, True]


def test_nothing_is_left_in_the_card(seen: Seen) -> None:
    objects = seen.standings["closed"].objects
    # The EQ for completions stays for the next log.
    assert objects == {"pd": 0, "mkey": 0, "cq": 0, "qp": 0, "eq": 4, "uar": 1}
