"""DMA logging, requirement by requirement, held against each way to have a device.

The requirements, as linux/vfio.h (n) and vfio_main.c and iova_bitmap.c (c) put them:

==== ==========================================================  =====================================
no.  what                                                        where it is held
==== ==========================================================  =====================================
R74  START without ranges: EINVAL (c)                            test_starts
R75  more than 256 ranges: E2BIG (c); 256 are fine (n)           test_starts
R76  a bad pointer to the ranges: EFAULT (c)                     no pointers here: the kernel's affair
R77  range not aligned to the page size: EINVAL (c)              test_starts
R78  range that ends at 2^64 or beyond: EOVERFLOW (c)            test_starts
R79  overlap: EINVAL; adjacent, unsorted ranges are fine (c)     test_starts
R80  the page size is a hint, the chosen one comes back (n)      test_the_page_size_is_a_hint
R81  a second START: an error, the first log goes on (n)         test_a_second_start
R82  the answer can't be written: EFAULT, no log (c)             no pointers here: the kernel's affair
R83  STOP without a log: fine (c)                                test_stop_and_report_without_a_log
R84  REPORT without a log: an error (n)                          test_stop_and_report_without_a_log
R85  report page size below 4096, no power of two: EINVAL (c)    test_reports
R86  report window that ends beyond 64 bits: EOVERFLOW (c)       test_reports
R87  bit n is iova + n * page size (n)                           test_which_bit_is_which_page
R88  bits are only set, and none beyond the window (n)           test_nothing_else_changes
R89  a report clears what it covers and nothing beside (n)       test_a_report_clears_what_it_covers
R90  coarser pages are the OR, finer ones replicate (n)          test_page_sizes_of_a_report
R91  reads are not logged, writes in a range all are (n)         test_all_writes; reads: tests/mlx5
R92  a bad bitmap: EFAULT (c)                                    test_reports
R93  the log outlives state changes (n), ends at close (c)       test_states; close: tests/mlx5
R94  a range of nothing, page size 0 or 3: EINVAL; report of 0   test_starts, test_reports
==== ==========================================================  =====================================
"""

from collections.abc import Iterator

import pytest

from precopy.vfio.device import VfioDevice
from precopy.vfio.states import DeviceState
from precopy.vfio.uapi import LoggingRange
from tests.contract.ways import WAYS, Way, name_of

PAGE = 4096
TOP = 1 << 64
#: Pages that can be written by ``Way.dma_write``.
ALL = 256

Pairs = list[tuple[int, int]]


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Iterator[Way]:
    with WAYS[request.param]() as made:
        yield made


@pytest.fixture(params=[name for name in WAYS if name != "without the extension"])
def whole(request: pytest.FixtureRequest) -> Iterator[Way]:
    with WAYS[request.param]() as made:
        yield made


def start(device: VfioDevice, *pages: tuple[int, int], page_size: int = PAGE) -> int:
    ranges = [LoggingRange(first * PAGE, count * PAGE) for first, count in pages]
    return device.log_start(ranges, page_size)


def report(device: VfioDevice, first: int = 0, count: int = ALL, page_size: int = PAGE) -> set[int]:
    """Bits of a report of pages of 4096."""
    bits = -(-count * PAGE // page_size)
    bitmap = bytearray(-(-bits // 8))
    device.log_report(first * PAGE, count * PAGE, page_size, memoryview(bitmap))
    return {n for n in range(8 * len(bitmap)) if bitmap[n // 8] >> n % 8 & 1}


def write(way: Way, *pages: int) -> None:
    for page in pages:
        way.dma_write(page * PAGE, b"x")


@pytest.mark.parametrize(
    ("requirement", "ranges", "page_size", "code"),
    [
        ("R74", [], PAGE, "EINVAL"),
        ("R75", [(2 * n * PAGE, PAGE) for n in range(257)], PAGE, "E2BIG"),
        ("R75", [(2 * n * PAGE, PAGE) for n in range(256)], PAGE, ""),
        ("R77", [(1, PAGE)], PAGE, "EINVAL"),
        ("R77", [(0, PAGE + 1)], PAGE, "EINVAL"),
        ("R77", [(PAGE, 2 * PAGE)], 2 * PAGE, "EINVAL"),
        ("R77", [(2 * PAGE, PAGE)], 2 * PAGE, "EINVAL"),
        ("R78", [(TOP - PAGE, PAGE)], PAGE, "EOVERFLOW"),
        ("R78", [(TOP - PAGE, 2 * PAGE)], PAGE, "EOVERFLOW"),
        ("R78", [(TOP - 2 * PAGE, PAGE)], PAGE, ""),
        ("R79", [(0, 2 * PAGE), (PAGE, PAGE)], PAGE, "EINVAL"),
        ("R79", [(PAGE, PAGE), (0, 2 * PAGE)], PAGE, "EINVAL"),
        ("R79", [(PAGE, PAGE), (PAGE, PAGE)], PAGE, "EINVAL"),
        ("R79", [(0, 9 * PAGE), (PAGE, PAGE)], PAGE, "EINVAL"),
        ("R79", [(0, PAGE), (PAGE, PAGE)], PAGE, ""),
        ("R79", [(9 * PAGE, PAGE), (0, PAGE), (5 * PAGE, 2 * PAGE)], PAGE, ""),
        ("R94", [(0, 0)], PAGE, "EINVAL"),
        ("R94", [(0, PAGE), (PAGE, 0)], PAGE, "EINVAL"),
        ("R94", [(0, PAGE)], 0, "EINVAL"),
        ("R94", [(0, PAGE)], 3, "EINVAL"),
    ],
)
def test_starts(way: Way, requirement: str, ranges: Pairs, page_size: int, code: str) -> None:
    """R74, R75, R77, R78, R79, R94: after one that is refused there is no log."""
    device = way.device
    wanted = [LoggingRange(*each) for each in ranges]
    assert name_of(lambda: device.log_start(wanted, page_size)) == code
    assert name_of(lambda: report(device)) == ("EINVAL" if code else "")


@pytest.mark.parametrize(
    ("hint", "chosen"), [(1, PAGE), (PAGE, PAGE), (1 << 16, 1 << 16), (1 << 40, 1 << 30)]
)
def test_the_page_size_is_a_hint(way: Way, hint: int, chosen: int) -> None:
    """R80: what is tracked is what is answered."""
    assert way.device.log_start([LoggingRange(0, max(hint, 1 << 20))], hint) == chosen
    write(way, 17)
    whole_page = chosen // PAGE
    first = 17 // whole_page * whole_page
    expected = set(range(first, min(first + whole_page, ALL)))
    assert report(way.device) == expected


def test_a_second_start(way: Way) -> None:
    """R81: refused; the first one goes on, with its ranges and what it has."""
    start(way.device, (0, 8))
    write(way, 3)
    assert name_of(lambda: start(way.device, (0, 64))) == "EINVAL"
    write(way, 5, 20)
    assert report(way.device) == {3, 5}


def test_stop_and_report_without_a_log(way: Way) -> None:
    """R83, R84: before a log and after it."""
    device = way.device
    for _ in range(2):
        device.log_stop()
        assert name_of(lambda: report(device)) == "EINVAL"
        start(device, (0, 8))
        device.log_stop()
    # What was marked does not live on.
    start(device, (0, 8))
    write(way, 3)
    device.log_stop()
    start(device, (0, 8))
    assert report(device) == set()


@pytest.mark.parametrize(
    ("requirement", "iova", "length", "page_size", "room", "code"),
    [
        ("R85", 0, PAGE, 2048, 8, "EINVAL"),
        ("R85", 0, PAGE, 1, 8, "EINVAL"),
        ("R85", 0, PAGE, 6000, 8, "EINVAL"),
        ("R85", 0, PAGE, 3 * PAGE, 8, "EINVAL"),
        ("R86", TOP - PAGE, PAGE, PAGE, 8, "EOVERFLOW"),
        ("R86", TOP - PAGE, 2 * PAGE, PAGE, 8, "EOVERFLOW"),
        ("R92", 0, 65 * PAGE, PAGE, 8, "EFAULT"),
        ("R94", 0, PAGE, 0, 8, "EINVAL"),
        ("R94", 0, PAGE, 3, 8, "EINVAL"),
    ],
)
def test_reports(
    way: Way, requirement: str, iova: int, length: int, page_size: int, room: int, code: str
) -> None:
    """R85, R86, R92, R94: one that is refused sets no bit and forgets no page."""
    start(way.device, (0, ALL))
    write(way, 0, 7)
    bitmap = bytearray(room)
    assert (
        name_of(lambda: way.device.log_report(iova, length, page_size, memoryview(bitmap))) == code
    )
    assert bitmap == bytes(room)
    assert report(way.device) == {0, 7}


def test_a_report_of_nothing(way: Way) -> None:
    """R94: no bits, and nothing is forgotten."""
    start(way.device, (0, 8))
    write(way, 0)
    bitmap = bytearray(1)
    way.device.log_report(0, 0, PAGE, memoryview(bitmap))
    assert bitmap == b"\0"
    assert report(way.device) == {0}


def test_a_bitmap_that_is_read_only(whole: Way) -> None:
    """R92: EFAULT, and nothing is forgotten."""
    start(whole.device, (0, 8))
    write(whole, 0)
    bitmap = memoryview(bytes(8))
    assert name_of(lambda: whole.device.log_report(0, PAGE, PAGE, bitmap)) == "EFAULT"
    assert report(whole.device) == {0}


@pytest.mark.parametrize("page", [0, 1, 7, 8, 63, 64, 65, 127, 128, 255])
def test_which_bit_is_which_page(way: Way, page: int) -> None:
    """R87: in words of 64 bits, little-endian, as in bytes; counted from the window's iova."""
    start(way.device, (0, ALL))
    write(way, page)
    words = bytearray(ALL // 8)
    way.device.log_report(0, ALL * PAGE, PAGE, memoryview(words))
    number = page // 64
    assert int.from_bytes(words[8 * number : 8 * number + 8], "little") == 1 << page % 64
    assert sum(byte.bit_count() for byte in words) == 1
    write(way, page)
    first = min(page, 3)
    assert report(way.device, page - first, 1 + first) == {first}


@pytest.mark.parametrize("count", [1, 3, 8, 9, 63, 64, 65])
def test_nothing_else_changes(way: Way, count: int) -> None:
    """R88: what was set before, the last byte's other bits, and what is around."""
    start(way.device, (0, ALL))
    write(way, *range(ALL))
    size = -(-count // 8)
    room = bytearray(b"\xa4" * (size + 2))
    way.device.log_report(0, count * PAGE, PAGE, memoryview(room)[1 : 1 + size])
    assert room[0] == room[-1] == 0xA4
    pattern = int.from_bytes(b"\xa4" * size, "little")
    assert int.from_bytes(room[1:-1], "little") == pattern | (1 << count) - 1


def test_a_report_clears_what_it_covers(way: Way) -> None:
    """R89: a second one is empty, neighbours are kept."""
    start(way.device, (0, ALL))
    write(way, 9, 10, 11, 12, 13)
    assert report(way.device, 10, 3) == {0, 1, 2}
    assert report(way.device, 10, 3) == set()
    assert report(way.device) == {9, 13}
    assert report(way.device) == set()


def test_a_report_of_a_part_of_what_is_tracked_together(way: Way) -> None:
    """R89: of a page that is larger than the window, the rest is kept."""
    assert start(way.device, (0, ALL), page_size=4 * PAGE) == 4 * PAGE
    write(way, 9)
    assert report(way.device, 10, 1) == {0}
    assert report(way.device, 10, 1) == set()
    assert report(way.device) == {8, 9, 11}
    assert report(way.device) == set()


@pytest.mark.parametrize("tracked", [PAGE, 4 * PAGE, 16 * PAGE])
@pytest.mark.parametrize("asked", [PAGE, 2 * PAGE, 4 * PAGE, 32 * PAGE, 256 * PAGE])
def test_page_sizes_of_a_report(way: Way, tracked: int, asked: int) -> None:
    """R90: coarse is the OR of fine, fine is the repetition of coarse."""
    assert start(way.device, (0, ALL), page_size=tracked) == tracked
    written = {3, 4, 100, 255}
    write(way, *written)
    dirty = {
        page
        for page in range(ALL)
        if any(page * PAGE // tracked == other * PAGE // tracked for other in written)
    }
    assert report(way.device, page_size=asked) == {page * PAGE // asked for page in dirty}
    assert report(way.device) == set()


def test_all_writes(way: Way) -> None:
    """R91: the first and the last byte of each range, over an edge, and nothing beside."""
    start(way.device, (10, 2), (20, 1))
    for address in (10 * PAGE - 1, 12 * PAGE, 20 * PAGE - 1, 21 * PAGE):
        way.dma_write(address, b"x")
    assert report(way.device) == set()
    for address, data, expected in (
        (10 * PAGE, b"x", {10}),
        (12 * PAGE - 1, b"x", {11}),
        (11 * PAGE - 1, b"xy", {10, 11}),
        (10 * PAGE - 1, b"xy", {10}),
        (21 * PAGE - 1, b"xy", {20}),
        (0, bytes(40 * PAGE), {10, 11, 20}),
    ):
        way.dma_write(address, data)
        assert report(way.device) == expected


def test_many_ranges(way: Way) -> None:
    """R75, R91: more than the device can track apart; the gaps between them are never told."""
    pages = list(range(0, ALL, 2))
    start(way.device, *((page, 1) for page in reversed(pages)))
    write(way, *range(ALL))
    assert report(way.device) == set(pages)


def test_states(whole: Way) -> None:
    """R93: the log and what it has outlive every state of a migration."""
    device = whole.device
    start(device, (0, ALL))
    path = ("PRE_COPY", "PRE_COPY_P2P", "STOP_COPY", "STOP", "RUNNING_P2P", "RUNNING")
    for page, name in enumerate(path):
        write(whole, page)
        file = device.set_state(DeviceState[name])
        write(whole, 100 + page)
        assert report(device) == {page, 100 + page}
        if file is not None:
            file.close()
