"""Where the workload keeps what in its memory: everything, so that it goes where its memory goes.

    control page | EQ | pair table | pair 0 | pair 1 | ...

A pair is a sending QP, a receiving QP and the CQ of both, with one page of queues and a few pages of
buffers. The pages of a pair that never worked are never touched. The memory that the guest works on
besides is a region of its own (``pages``).
"""

import enum
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from precopy.mlx5_abi import wqe
from precopy.pci.memory import RegionSpec

PAGE = 4096
#: The memory key's pages; memory begins and ends at a multiple of it.
BIG_PAGE_SHIFT = 21
BASE = 1 << 32

#: Messages of a pair that may be under way.
WINDOW = 4
LOG_RQ = 2
LOG_SQ = 3
LOG_CQ = 4
LOG_EQ = 10
EQ_BYTES = wqe.EQE_BYTES << LOG_EQ

MAGIC = 0x70636F7079677374

#: magic, pairs, active, size, rate, seed, mix, uar, mkey, eqn, EQ consumer, cursor, settling;
#: memory, writes, working, fill, zeros
CONTROL = struct.Struct("<QIIIIIIIIIIIIQQIII")


class Count(enum.IntEnum):
    """What is counted, in the order of :data:`COUNTS` and of ``GuestCounts``."""

    SENT = 0
    RECEIVED = 1
    LOST = 2
    DOUBLED = 3
    REORDERED = 4
    DAMAGED = 5
    FAILED = 6


COUNTS = struct.Struct(f"<{len(Count)}Q")
COUNTS_AT = 256
#: How often a page of the memory that it works on was written, in all.
WRITES = struct.Struct("<Q")
WRITES_AT = 512
NAMES_AT = PAGE + EQ_BYTES
#: Numbers of a pair: sending QP, receiving QP, CQ.
NAMES = struct.Struct("<III")

#: Header of a message: sequence number, pair, length of the payload, xxh3 of the payload.
MESSAGE = struct.Struct("<QIIQ")

# In the first page of a pair:
SEND_DBR = 0x00
RECEIVE_DBR = 0x08
CQ_DBR = 0x10
#: ready (1 once the queues are set up), next sequence to send, next to arrive, WQEs posted, of
#: which done, receive WQEs posted, CQ consumer, dead (1 after an error), the messages before the
#: next to arrive that have not arrived (bit 0: the last).
PAIR = struct.Struct("<IQQIIIIIQ")
PAIR_AT = 0x40
#: The sending QP: its (unused) receive queue of 64 bytes, then the send queue of 8 x 64.
SEND_QUEUE = 0x100
#: The receiving QP: a receive queue of 4 x 16.
RECEIVE_QUEUE = 0x400
#: 16 x 64.
CQ_QUEUE = 0x800

#: Operations of a mix, in the order of the letters that name them.
OPERATIONS = {
    "s": wqe.WqeOpcode.SEND,
    "i": wqe.WqeOpcode.SEND_IMM,
    "w": wqe.WqeOpcode.RDMA_WRITE,
    "r": wqe.WqeOpcode.RDMA_READ,
}


#: The lowest and the highest value of each.
BOUNDS: dict[str, tuple[int, int]] = {
    "pairs": (1, 1 << 17),
    "rate": (0, 1 << 20),
    "size": (32, 65536),
    "seed": (0, (1 << 32) - 1),
    "memory": (0, 64 << 30),
    # As many as the machine can; this is what has room.
    "writes": (0, 1 << 60),
    "working": (1, 100),
    "fill": (0, 100),
    "zeros": (0, 100),
}

#: Pages of a memory at least: a header, a table, one with data.
_LEAST_MEMORY = 3 * PAGE


@dataclass(frozen=True, slots=True)
class WorkloadConfig:
    """``pairs`` QP pairs, of which the first ``active`` send ``rate`` messages a second in all.

    ``rate`` 0: as fast as it goes. ``size``: bytes of a message, 32 to 65536. ``mix``: letters of
    :data:`OPERATIONS`, taken in turn.

    ``memory``: bytes that it works on besides (:mod:`precopy.guest.pages`), whole pages. ``fill``
    percent of them hold data at power-on; of these ``working`` percent are written, ``writes`` pages
    a second, of which ``zeros`` percent are cleared.

    ValueError where a value is out of range.
    """

    pairs: int = 16
    active: int = 16
    rate: int = 2000
    size: int = 256
    mix: str = "siwr"
    seed: int = 1
    memory: int = 0
    writes: int = 0
    working: int = 100
    fill: int = 100
    zeros: int = 0

    def __post_init__(self) -> None:
        for name, (low, high) in {**BOUNDS, "active": (0, self.pairs)}.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name} must be {low} to {high}, not {getattr(self, name)}")
        if not 1 <= len(self.mix) <= 8 or set(self.mix) - set(OPERATIONS):
            raise ValueError(f"mix must be 1 to 8 letters of {''.join(OPERATIONS)}: {self.mix!r}")
        if self.memory % PAGE or 0 < self.memory < _LEAST_MEMORY:
            raise ValueError(
                f"memory must be 0, or whole pages from {_LEAST_MEMORY} bytes on, not {self.memory}"
            )
        if self.memory and self.writes and not self.fill:
            raise ValueError("writes go to pages that hold data: fill must not be 0")

    @property
    def slot_bytes(self) -> int:
        """Room of one message."""
        return -(-self.size // 64) * 64

    @property
    def pair_bytes(self) -> int:
        buffers = 3 * WINDOW * self.slot_bytes
        return PAGE + -(-buffers // PAGE) * PAGE

    @property
    def pairs_at(self) -> int:
        return NAMES_AT + -(-self.pairs * NAMES.size // PAGE) * PAGE

    @property
    def region(self) -> RegionSpec:
        size = self.pairs_at + self.pairs * self.pair_bytes
        step = 1 << BIG_PAGE_SHIFT
        return RegionSpec(BASE, -(-size // step) * step)

    def memory_region(self, others: Iterable[RegionSpec]) -> RegionSpec:
        """The memory that it works on, above the ``others`` of the guest."""
        step = 1 << BIG_PAGE_SHIFT
        end = max(spec.iova + spec.length for spec in others)
        return RegionSpec(-(-end // step) * step, self.memory)

    def pair_at(self, index: int) -> int:
        """Offset of pair ``index`` in the region."""
        return self.pairs_at + index * self.pair_bytes

    def send_slot(self, index: int, sequence: int) -> int:
        return self.pair_at(index) + PAGE + (sequence % WINDOW) * self.slot_bytes

    def receive_slot(self, index: int, sequence: int) -> int:
        """Where the n-th SEND arrives; ``sequence`` counts SENDs only."""
        return self.send_slot(index, sequence) + WINDOW * self.slot_bytes

    def rdma_slot(self, index: int, sequence: int) -> int:
        """Where a WRITE arrives and a READ fetches from."""
        return self.send_slot(index, sequence) + 2 * WINDOW * self.slot_bytes

    def mix_code(self) -> int:
        """The mix as a number: 4 bits a letter, the first lowest; 0 ends it."""
        letters = list(OPERATIONS)
        return sum((letters.index(letter) + 1) << 4 * n for n, letter in enumerate(self.mix))

    @staticmethod
    def mix_of(code: int) -> str:
        """The mix of a :meth:`mix_code`. ValueError for a number that is none."""
        letters = list(OPERATIONS)
        mix, rest = "", code
        while rest:
            letter = rest & 0xF
            if not 1 <= letter <= len(letters):
                raise ValueError(f"{code:#x} is not the code of a mix")
            mix += letters[letter - 1]
            rest >>= 4
        return mix


class Control(NamedTuple):
    """The control page's first words."""

    magic: int
    pairs: int
    active: int
    size: int
    rate: int
    seed: int
    mix: int
    uar: int
    mkey: int
    eqn: int
    eq_consumer: int
    cursor: int
    settling: int
    memory: int
    writes: int
    working: int
    fill: int
    zeros: int

    def config(self) -> WorkloadConfig:
        """ValueError where the words can't be a guest's."""
        return WorkloadConfig(
            self.pairs,
            self.active,
            self.rate,
            self.size,
            WorkloadConfig.mix_of(self.mix),
            self.seed,
            self.memory,
            self.writes,
            self.working,
            self.fill,
            self.zeros,
        )


class Pair(NamedTuple):
    """What the driver knows of a pair."""

    ready: int
    next_send: int
    next_arrival: int
    posted: int
    done: int
    receives: int
    cq_consumer: int
    dead: int
    missing: int

    @property
    def under_way(self) -> int:
        """Messages whose completion has not come."""
        return (self.posted - self.done) & 0xFFFFFFFF
