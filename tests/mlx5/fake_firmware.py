"""A firmware that does what a test tells it: records commands, answers from a script of sizes.

It knows no device: an image is a number of bytes with a pattern, which a load keeps. Saves complete
when the test steps them, or at once.
"""

# A fake answers by opcode; the fields of each inbox and outbox are known at run time only.
# mypy: disable-error-code="attr-defined"

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from precopy.mlx5_abi.capabilities import GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import (
    COMMANDS,
    CapType,
    CreateMkeyIn,
    Opcode,
    Outbox,
)
from precopy.mlx5_abi.port import Done
from precopy.pci.dma import DmaMemory, DmaSpace

VHCA_ID = 0x77


class WatchedDma(DmaSpace):
    """Knows what is mapped, so that a test can see what was left behind."""

    def __init__(self) -> None:
        super().__init__()
        self.mapped: set[int] = set()

    def map(self, address: int, memory: DmaMemory) -> None:
        super().map(address, memory)
        self.mapped.add(address)

    def unmap(self, address: int) -> None:
        super().unmap(address)
        self.mapped.remove(address)


def pattern(image: int, count: int) -> bytes:
    """What save number ``image`` (from 1) writes: no two of them alike, no part like its neighbour."""
    return (np.arange(count, dtype=np.uint32) // 3 + image * 41).astype(np.uint8).tobytes()


@dataclass
class FakeFirmware:
    """``CommandPort`` of a PF whose VF 0 has VHCA id 0x77."""

    chunk_mode: bool = False
    migration_state: bool = False
    migratable: bool = True
    multi_load: bool = True
    #: Answers of QUERY_VHCA_MIGRATION_STATE: full and incremental size, what remains in all of the
    #: full and of the increment (0: the same), the state.
    full_size: int = 10_000
    incremental_size: int = 0
    total: int = 0
    incremental_total: int = 0
    state: int = 2
    #: ``next_required_umem_size`` of the coming saves, then 0.
    next_required: deque[int] = field(default_factory=deque)
    #: ``actual_image_size`` of every save; by default what the last query said.
    claimed_size: int | None = None
    #: Saves wait for :meth:`complete`; ``on_hold`` is called as each begins to.
    hold: bool = False
    on_hold: Callable[[], None] = lambda: None
    dma: WatchedDma = field(default_factory=WatchedDma)
    log: list[str] = field(default_factory=list)
    opcodes: list[Opcode] = field(default_factory=list)
    faults: dict[tuple[Opcode, int], int] = field(default_factory=dict)
    #: How many commands have come, and what to do at some of them, first thing: the status that
    #: the command fails with, or None.
    commands: int = 0
    at: dict[int, Callable[[], int | None]] = field(default_factory=dict)
    #: The images that saves have written, as far as they claim to; those that loads have taken.
    images: list[bytes] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    keys: dict[int, tuple[int, int]] = field(default_factory=dict)
    pds: set[int] = field(default_factory=set)
    gone: bool = False

    def __post_init__(self) -> None:
        self._held: deque[Callable[[], None]] = deque()
        self._count: dict[Opcode, int] = {}
        self._next = 1
        self._saves = 0
        self._asked = 0

    def fail(self, opcode: Opcode, nth: int, status: int) -> None:
        """The ``nth`` command (from 1, counted from now) of ``opcode`` answers ``status``."""
        self.faults[opcode, self._count.get(opcode, 0) + nth] = status

    def take_log(self) -> list[str]:
        log, self.log = self.log, []
        return log

    def complete(self) -> None:
        """Complete the oldest save that is held."""
        self._held.popleft()()

    @property
    def held(self) -> int:
        return len(self._held)

    def execute(self, inbox: bytes) -> bytes:
        self.commands += 1
        status = self.at.pop(self.commands, lambda: None)() or 0
        if self.gone:
            raise OSError(errno.ENOTCONN, "gone")
        opcode = Opcode(int.from_bytes(inbox[:2], "big"))
        self.opcodes.append(opcode)
        command = COMMANDS[opcode]
        self._count[opcode] = self._count.get(opcode, 0) + 1
        outbox = command.outbox()
        asked = command.inbox(inbox)
        # The real one would fail the save, or the query.
        increment = opcode is Opcode.QUERY_VHCA_MIGRATION_STATE and asked.incremental
        apart = increment or opcode in (Opcode.SUSPEND_VHCA, Opcode.SAVE_VHCA_STATE)
        assert not (self.held and apart), f"{opcode.name} beside a save"
        status = self.faults.pop((opcode, self._count[opcode]), status)
        if status:
            self.log.append(f"{opcode.name}!")
            outbox.status, outbox.syndrome = status, 0xBAD
        else:
            self.log.append(getattr(self, f"_{opcode.name.lower()}")(asked, outbox))
        return bytes(outbox)

    def submit(self, inbox: bytes, done: Done) -> None:
        reply = self.execute(inbox)
        if self.hold:
            self._held.append(lambda: done(reply))
            self.on_hold()
        else:
            done(reply)

    def _query_hca_cap(self, asked: object, out: Outbox) -> str:
        kind, maximum = asked.op_mod >> 1, not asked.op_mod & 1
        body = memoryview(out.buf)[16:]
        if kind == CapType.GENERAL:
            GeneralCap(body, migration=1, vhca_id=VHCA_ID, log_max_qp=18)
        elif kind == CapType.GENERAL_2:
            GeneralCap2(
                body,
                migration_multi_load=self.multi_load,
                migration_tracking_state=1,
                migration_in_chunks=self.chunk_mode,
                migration_state=self.migration_state,
                migratable=self.migratable and maximum,
            )
        function = asked.function_id
        return f"CAP {kind:#x}{' max' if maximum else ''}{f' of {function}' if function else ''}"

    def _alloc_pd(self, asked: object, out: Outbox) -> str:
        out.pd = self._number()
        self.pds.add(out.pd)
        return "ALLOC_PD"

    def _dealloc_pd(self, asked: object, out: Outbox) -> str:
        self.pds.remove(asked.pd)
        return "DEALLOC_PD"

    def _create_mkey(self, asked: CreateMkeyIn, out: Outbox) -> str:
        assert asked.mkc.pd in self.pds
        index = self._number()
        out.mkey_index = index
        first = int.from_bytes(asked.buf[CreateMkeyIn.SIZE : CreateMkeyIn.SIZE + 8], "big")
        self.keys[index] = first, asked.mkc.len
        return f"CREATE_MKEY {asked.mkc.len // 4096}"

    def _destroy_mkey(self, asked: object, out: Outbox) -> str:
        _, length = self.keys.pop(asked.mkey_index)
        return f"DESTROY_MKEY {length // 4096}"

    def _suspend_vhca(self, asked: object, out: Outbox) -> str:
        return f"SUSPEND {asked.op_mod}"

    def _resume_vhca(self, asked: object, out: Outbox) -> str:
        return f"RESUME {asked.op_mod}"

    def _query_vhca_migration_state(self, asked: object, out: Outbox) -> str:
        incremental = asked.incremental
        size = self.incremental_size if incremental else self.full_size
        self._asked = size
        out.required_umem_size = size
        out.remaining_total_size = (self.incremental_total if incremental else self.total) or size
        out.migration_state = self.state
        return f"QUERY inc={incremental}"

    def _save_vhca_state(self, asked: object, out: Outbox) -> str:
        inc, track = asked.incremental, asked.set_track
        index, size = asked.mkey >> 8, asked.size
        if index == 0:
            assert size == 0
            return f"SAVE nothing inc={inc} track={track}"
        address, length = self.keys[index]
        assert size == length
        count = min(self._asked, size)
        self._saves += 1
        image = pattern(self._saves, count)
        self.dma.view(address, count)[:] = image
        claimed = count if self.claimed_size is None else self.claimed_size
        self.images.append(image[:claimed])
        out.actual_image_size = claimed
        if not track and self.next_required:
            out.next_required_umem_size = self.next_required.popleft()
            self._asked = out.next_required_umem_size
        return f"SAVE inc={inc} track={track}"

    def _load_vhca_state(self, asked: object, out: Outbox) -> str:
        address, _ = self.keys[asked.mkey >> 8]
        self.loaded.append(bytes(self.dma.view(address, asked.size)))
        return f"LOAD {asked.size}"

    def _number(self) -> int:
        self._next += 1
        return self._next
