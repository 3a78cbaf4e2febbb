"""The migratable device of the fake kernel: its state is its registers."""

import errno
import struct
from dataclasses import dataclass, field

from precopy.vfio.states import DATA_FD_ARCS, PRE_COPY_STATES, DeviceState, MigrationFlags, path

PAGE = 4096
RUNNING, RESUMING = DeviceState.RUNNING, DeviceState.RESUMING

#: What a state starts with; the device's registers follow.
HEADER = b"fake state 1"


def fail(code: int) -> OSError:
    """As ctypes and os raise it: no words but the kernel's."""
    return OSError(code, "")


@dataclass
class Session:
    """What is behind a data_fd."""

    saving: bool
    data: bytearray = field(default_factory=bytearray)
    #: No more will come, once ``data`` has been read.
    ended: bool = False
    #: More will come, but not yet: a reader waits.
    working: bool = False
    alive: bool = True
    initial: int = 0


class FakeDevice:
    """A migratable device whose state is its registers. Two regions: BAR0, and config space (7)."""

    def __init__(self) -> None:
        self.flags = MigrationFlags.STOP_COPY | MigrationFlags.P2P | MigrationFlags.PRE_COPY
        self.state = RUNNING
        self.session: Session | None = None
        self.regions = {0: bytearray(8), 7: bytearray(struct.pack("<HH60x", 0x15B3, 0x101E))}
        self.info_v2 = False
        self.reinit = False
        self.logged: list[tuple[int, int]] = []
        self.dirty: set[int] = set()

    def reset(self) -> None:
        self.end_session()
        self.state = RUNNING
        self.regions[0][:] = bytes(8)

    def end_session(self) -> None:
        if self.session is not None:
            self.session.alive = False
        self.session = None

    def step(self, new: DeviceState) -> Session | None:
        """One arc; the session whose data_fd it hands out."""
        old = self.state
        handed = None
        if old is RESUMING:
            assert self.session is not None
            if len(self.session.data) != len(HEADER) + 8 or self.session.data[:12] != HEADER:
                raise fail(errno.EINVAL)
            self.regions[0][:] = self.session.data[12:]
        if (old, new) in DATA_FD_ARCS:
            handed = self.session = Session(saving=new is not RESUMING)
            if handed.saving:
                handed.data += HEADER
                handed.initial = len(HEADER)
        elif new not in PRE_COPY_STATES | {DeviceState.STOP_COPY}:
            self.end_session()
        if new is DeviceState.STOP_COPY:
            assert self.session is not None
            self.session.data += self.regions[0]
            self.session.ended = True
        self.state = new
        return handed

    def set_state(self, new: int) -> Session | None:
        handed = None
        try:
            steps = path(self.state, new, self.flags)
        except OSError as error:
            raise fail(error.errno or 0) from error
        for step in steps:
            handed = self.step(step)
        return handed

    def write_page(self, iova: int) -> None:
        """The device writes to a page of the guest's memory."""
        if any(start <= iova < start + length for start, length in self.logged):
            self.dirty.add(iova // PAGE)
