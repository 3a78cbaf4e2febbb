"""A firmware that does what a test tells it: records commands, answers from a script of sizes.

It knows no device: an image is a number of bytes with a pattern, which a load keeps. Saves complete
when the test steps them, or at once.
"""

import errno
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from precopy.mlx5_abi.capabilities import GeneralCap, GeneralCap2
from precopy.mlx5_abi.commands import (
    COMMANDS,
    CapType,
    CreateMkeyIn,
    Opcode,
    Outbox,
)
from precopy.mlx5_abi.port import Done
from precopy.pci.dma import DmaSpace

VHCA_ID = 0x77


@dataclass
class FakeFirmware:
    """``CommandPort`` of a PF whose VF 0 has VHCA id 0x77."""

    chunk_mode: bool = False
    migration_state: bool = False
    migratable: bool = True
    multi_load: bool = True
    #: Answers of QUERY_VHCA_MIGRATION_STATE: full and incremental size, what remains, the state.
    full_size: int = 10_000
    incremental_size: int = 0
    total: int = 0
    state: int = 2
    #: ``next_required_umem_size`` of the coming saves, then 0.
    next_required: deque[int] = field(default_factory=deque)
    #: ``actual_image_size`` of every save; by default what the last query said.
    claimed_size: int | None = None
    #: Saves wait for :meth:`complete`.
    hold: bool = False
    dma: DmaSpace = field(default_factory=DmaSpace)
    log: list[str] = field(default_factory=list)
    faults: dict[tuple[Opcode, int], int] = field(default_factory=dict)
    loaded: list[bytes] = field(default_factory=list)
    keys: dict[int, tuple[int, int]] = field(default_factory=dict)
    pds: set[int] = field(default_factory=set)
    gone: bool = False

    def __post_init__(self) -> None:
        self._held: deque[Callable[[], None]] = deque()
        self._count: dict[Opcode, int] = {}
        self._next = 1
        self._image = 0
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
        if self.gone:
            raise OSError(errno.ENOTCONN, "gone")
        opcode = Opcode(int.from_bytes(inbox[:2], "big"))
        command = COMMANDS[opcode]
        self._count[opcode] = self._count.get(opcode, 0) + 1
        outbox = command.outbox()
        asked = command.inbox(inbox)
        status = self.faults.pop((opcode, self._count[opcode]), 0)
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
        else:
            done(reply)

    def _query_hca_cap(self, asked: object, out: Outbox) -> str:
        kind, maximum = asked.op_mod >> 1, not asked.op_mod & 1  # type: ignore[attr-defined]
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
        function = asked.function_id  # type: ignore[attr-defined]
        return f"CAP {kind:#x}{' max' if maximum else ''}{f' of {function}' if function else ''}"

    def _alloc_pd(self, asked: object, out: Outbox) -> str:
        out.pd = self._number()  # type: ignore[attr-defined]
        self.pds.add(out.pd)  # type: ignore[attr-defined]
        return "ALLOC_PD"

    def _dealloc_pd(self, asked: object, out: Outbox) -> str:
        self.pds.remove(asked.pd)  # type: ignore[attr-defined]
        return "DEALLOC_PD"

    def _create_mkey(self, asked: CreateMkeyIn, out: Outbox) -> str:
        assert asked.mkc.pd in self.pds
        index = self._number()
        out.mkey_index = index  # type: ignore[attr-defined]
        first = int.from_bytes(asked.buf[CreateMkeyIn.SIZE : CreateMkeyIn.SIZE + 8], "big")
        self.keys[index] = first, asked.mkc.len
        return f"CREATE_MKEY {asked.mkc.len // 4096}"

    def _destroy_mkey(self, asked: object, out: Outbox) -> str:
        _, length = self.keys.pop(asked.mkey_index)  # type: ignore[attr-defined]
        return f"DESTROY_MKEY {length // 4096}"

    def _suspend_vhca(self, asked: object, out: Outbox) -> str:
        return f"SUSPEND {asked.op_mod}"  # type: ignore[attr-defined]

    def _resume_vhca(self, asked: object, out: Outbox) -> str:
        return f"RESUME {asked.op_mod}"  # type: ignore[attr-defined]

    def _query_vhca_migration_state(self, asked: object, out: Outbox) -> str:
        incremental = asked.incremental  # type: ignore[attr-defined]
        size = self.incremental_size if incremental else self.full_size
        self._asked = size
        out.required_umem_size = size  # type: ignore[attr-defined]
        out.remaining_total_size = self.total or size  # type: ignore[attr-defined]
        out.migration_state = self.state  # type: ignore[attr-defined]
        return f"QUERY inc={incremental}"

    def _save_vhca_state(self, asked: object, out: Outbox) -> str:
        inc, track = asked.incremental, asked.set_track  # type: ignore[attr-defined]
        index, size = asked.mkey >> 8, asked.size  # type: ignore[attr-defined]
        if index == 0:
            assert size == 0
            return f"SAVE nothing inc={inc} track={track}"
        address, length = self.keys[index]
        assert size == length
        count = min(self._asked, size)
        self._image += 1
        self.dma.view(address, count)[:] = bytes([self._image]) * count
        claimed = count if self.claimed_size is None else self.claimed_size
        out.actual_image_size = claimed  # type: ignore[attr-defined]
        if not track and self.next_required:
            out.next_required_umem_size = self.next_required.popleft()  # type: ignore[attr-defined]
            self._asked = out.next_required_umem_size  # type: ignore[attr-defined]
        return f"SAVE inc={inc} track={track}"

    def _load_vhca_state(self, asked: object, out: Outbox) -> str:
        address, _ = self.keys[asked.mkey >> 8]  # type: ignore[attr-defined]
        self.loaded.append(bytes(self.dma.view(address, asked.size)))  # type: ignore[attr-defined]
        return f"LOAD {asked.size}"  # type: ignore[attr-defined]

    def _number(self) -> int:
        self._next += 1
        return self._next
