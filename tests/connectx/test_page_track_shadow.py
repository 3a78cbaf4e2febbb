"""What a VF's DMA changes is in the reports, whatever made it write.

The shadow is the memory itself: it knows of each write that reaches it, by nobody's telling.
"""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from precopy.guest.layout import BASE
from precopy.mlx5_abi.wqe import WqeOpcode
from tests.connectx.rig import PairRig
from tests.connectx.track_rig import PAGE, TrackRig

#: Where messages come from and where they go to, in the pair's region of 2 MiB; beyond its queues.
SOURCE, TARGET, END = 1 << 18, 1 << 19, 1 << 21
LONGEST = 70_000


class Shadow:
    """A ``DistantMemory`` over the guest's, that knows the bytes which were written."""

    readonly = False

    def __init__(self, view: memoryview) -> None:
        self._view = view
        #: Offset and length of every write since they were last taken.
        self.writes: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self._view)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._view[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        self.writes.append((offset, len(data)))
        self._view[offset : offset + len(data)] = data


Step = tuple[str, int, int, int]


def _send(opcode: int) -> Callable[[PairRig, int, int, bool], None]:
    def step(rig: PairRig, target: int, length: int, signaled: bool) -> None:
        rig.receive((length, rig.mkey, rig.address(target)))
        segment = (length, rig.mkey, rig.address(SOURCE))
        rig.post(opcode, segment, signaled=signaled, immediate=7)

    return step


def _write(opcode: int) -> Callable[[PairRig, int, int, bool], None]:
    def step(rig: PairRig, target: int, length: int, signaled: bool) -> None:
        if opcode == WqeOpcode.RDMA_WRITE_IMM:
            rig.receive_here()
        segment = (length, rig.mkey, rig.address(SOURCE))
        remote = (rig.address(target), rig.mkey)
        rig.post(opcode, segment, remote=remote, signaled=signaled, immediate=7)

    return step


def _read(rig: PairRig, target: int, length: int, signaled: bool) -> None:
    """Into two places."""
    apart = min(target + LONGEST, END - length)
    segments = [(length, rig.mkey, rig.address(at)) for at in (target, apart)]
    rig.post(
        WqeOpcode.RDMA_READ,
        *segments,
        remote=(rig.address(SOURCE), rig.mkey),
        signaled=signaled,
    )


def _fail(rig: PairRig, target: int, length: int, signaled: bool) -> None:
    """A key that does not exist: the QPs fail, and what they have is flushed."""
    rig.receive_here()
    rig.post(WqeOpcode.SEND, (length, 0xFFFF00, rig.address(SOURCE)), signaled=signaled)


#: What a step does, by its name: target, length, signaled.
STEPS: dict[str, Callable[[PairRig, int, int, bool], None]] = {
    "send": _send(WqeOpcode.SEND),
    "send with immediate": _send(WqeOpcode.SEND_IMM),
    "write": _write(WqeOpcode.RDMA_WRITE),
    "write with immediate": _write(WqeOpcode.RDMA_WRITE_IMM),
    "read": _read,
    "arm": lambda rig, *_: rig.arm(),
    "poll": lambda rig, *_: rig.completions() and None,
    "fail": _fail,
}


def places(log_page: int) -> st.SearchStrategy[int]:
    """Where a write begins or ends: at edges of pages and anywhere."""
    pages = st.integers(TARGET >> log_page, END >> log_page)
    edges = st.tuples(pages, st.integers(-1, 1)).map(lambda at: (at[0] << log_page) + at[1])
    return st.one_of(edges, edges, st.integers(TARGET, END - 1)).map(
        lambda at: min(max(at, TARGET), END - 1)
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[Step]]:
    """Page size as a power of two, ranges and windows in such pages, and steps."""
    log_page = draw(st.integers(12, 17))
    pages = END >> log_page
    cuts = sorted(draw(st.sets(st.integers(0, pages), min_size=2, max_size=8)))
    ranges = list(zip(cuts[::2], cuts[1::2], strict=False))
    if draw(st.booleans()):
        ranges = [(0, pages)]
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 12))):
        what = draw(st.sampled_from([*STEPS, *list(STEPS)[:6], "report"]))
        if what == "report":
            # Some that end inside of what was written last.
            recent = [step for step in steps if step[0] != "report"][-1:]
            first = draw(st.integers(0, pages - 1))
            inside = draw(st.booleans())
            if recent and inside:
                first = recent[0][1] >> log_page
            steps.append((what, first, draw(st.integers(1, min(pages - first, 3))), 0))
        else:
            # Edges of pages are where a mark could be missed.
            first, last = sorted(draw(st.tuples(places(log_page), places(log_page))))
            target, length = first, min(last - first + 1, LONGEST)
            steps.append((what, target, length, draw(st.integers(0, 1))))
    return log_page, ranges, steps


@given(scenes())
def test_every_byte_that_dma_wrote_is_in_a_page_that_is_reported(
    scene: tuple[int, list[tuple[int, int]], list[Step]],
) -> None:
    hold_to_shadow(scene)


def hold_to_shadow(scene: tuple[int, list[tuple[int, int]], list[Step]]) -> set[int]:
    """Play ``scene``; the pages of 4096 bytes that were written in all."""
    log_page, ranges, steps = scene
    tracker = TrackRig()
    rig = PairRig(tracker.adapter)
    shadow = Shadow(rig.view)
    rig.port.dma.replace([BASE], [(BASE, shadow)])
    number = tracker.create(
        [(BASE + (low << log_page), high - low << log_page) for low, high in ranges],
        log_page_size=log_page,
    )
    tracked = {page for low, high in ranges for page in range(low, high)}
    marks, written = set[int](), set[int]()
    shadow.writes.clear()
    for what, first, second, third in [*steps, ("report", 0, END >> log_page, 0)]:
        if what != "report":
            STEPS[what](rig, first, second, bool(third))
            continue
        for offset, length in shadow.writes:
            marks |= set(range(offset >> log_page, (offset + length - 1 >> log_page) + 1)) & tracked
            written |= set(range(offset // PAGE, (offset + length - 1) // PAGE + 1))
        shadow.writes.clear()
        expected = sorted(marks & set(range(first, first + second)))
        found = tracker.pages(number, BASE + (first << log_page), second << log_page)
        assert found == [BASE + (page << log_page) for page in expected]
        marks -= set(expected)
    assert not marks
    rig.close()
    return written


def test_work_requests_completions_and_events_all_write() -> None:
    """So that the scenes above are about something: data, CQ and EQ, each in a page of its own."""
    rig = PairRig()
    queue = (rig.at + PAGE - 1) // PAGE
    rig.close()
    whole = (12, [(0, END // PAGE)])
    plain = ("send", TARGET, 5000, 1)
    assert hold_to_shadow((*whole, [plain])) == {queue, TARGET // PAGE, TARGET // PAGE + 1}
    # A queue of events follows the control page.
    assert hold_to_shadow((*whole, [("arm", 0, 0, 0), plain])) == {
        1,
        queue,
        TARGET // PAGE,
        TARGET // PAGE + 1,
    }
    assert hold_to_shadow((*whole, [("fail", 0, 100, 0)])) == {queue}
    assert hold_to_shadow((*whole, [("read", TARGET, 100, 0)])) == {
        TARGET // PAGE,
        (TARGET + LONGEST) // PAGE,
    }
