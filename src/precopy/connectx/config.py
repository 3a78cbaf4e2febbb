"""What kind of card an adapter is, and the faults that it is told to have."""

import threading
from dataclasses import dataclass, field

from precopy.mlx5_abi.commands import Opcode


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """Capabilities and sizes. The switches make older and newer cards."""

    num_vfs: int = 1
    #: QPs and CQs of a function, as powers of two.
    log_max_qp: int = 18
    log_max_cq: int = 18
    #: Bytes of bulk state (flow tables and the like), whole pages, filled from ``seed``.
    state_bytes: int = 0
    seed: int = 1
    firmware: str = "28.43.1014"
    serial: str = "MT2243X00001"
    migration: bool = True
    migratable: bool = True
    multi_load: bool = True
    tracking_state: bool = True
    chunk_mode: bool = True
    migration_state: bool = True
    #: Version of the images that it writes; it reads this one and older ones.
    image_version: int = 1
    #: Whether it can track the pages that a VF writes, and in how many ranges at once.
    page_track: bool = True
    page_track_ranges: int = 8
    #: Seconds that a driver waits for a command, as the initialization segment tells it.
    command_timeout: int = 60
    #: Have drivers look seldom by timers of their own: at the health once an hour, at no clock.
    few_polls: bool = False
    #: New pages (never sent before) from which on there is new initial state, not merely change.
    reinit_pages: int = 256
    #: Number of the first saving session after a reset; 0: drawn at random, as it should be where
    #: images of several cards might meet.
    first_session: int = 0
    #: Power on without bulk state, but with room for it: a card that waits to be loaded.
    blank: bool = False
    #: Room for more bulk state than it has: a card that may be loaded though it works already.
    spare_room: bool = False


#: Instead of a status: the command is never answered.
NEVER = 0x100


@dataclass(slots=True)
class FaultPlan:
    """Commands that fail: the nth of an opcode, counted from 1, answers a status, or never answers."""

    faults: dict[tuple[int, int], int] = field(default_factory=dict)
    _counts: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def parse(cls, text: str) -> "FaultPlan":
        """``OPCODE:NTH:STATUS[,...]``, such as ``SAVE_VHCA_STATE:2:0x9``; STATUS may be ``never``.

        ValueError says what is wrong.
        """
        plan = cls()
        for part in filter(None, text.split(",")):
            try:
                opcode, nth, status = part.split(":")
                code = NEVER if status == "never" else int(status, 0)
                plan.add(Opcode[opcode.upper()], int(nth), code)
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"fault {part!r} is not OPCODE:NTH:STATUS (as SAVE_VHCA_STATE:2:0x9)"
                ) from error
        return plan

    def add(self, opcode: Opcode, nth: int, status: int) -> None:
        if nth < 1 or not 1 <= status <= NEVER:
            raise ValueError(f"fault {opcode.name}:{nth}:{status:#x}: nth from 1, status 1 to 0xff")
        self.faults[opcode, nth] = status

    def add_next(self, opcode: Opcode, nth: int, status: int) -> None:
        """The same, counted from now."""
        with self._lock:
            self.add(opcode, self._counts.get(opcode, 0) + nth, status)

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self.faults.clear()

    def take(self, opcode: int) -> int:
        """Count one command of ``opcode``: the status that it has to fail with, or NEVER, or 0."""
        with self._lock:
            count = self._counts[opcode] = self._counts.get(opcode, 0) + 1
            return self.faults.get((opcode, count), 0)
