"""What a migration needs of the guest that works on a device, where there is one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from precopy.pci.memory import GuestMemory, RegionSpec
from precopy.vfio.device import Buffer, VfioDevice
from precopy.vfio.face import PciFace


@dataclass(frozen=True, slots=True)
class GuestCounts:
    """What a guest knows of its messages and of its memory. A migration is good only when
    :attr:`faults` is 0."""

    sent: int = 0
    received: int = 0
    lost: int = 0
    doubled: int = 0
    reordered: int = 0
    damaged: int = 0
    #: Completions with an error, and a work queue that stands still though it should not.
    failed: int = 0
    #: Pages of the memory that it works on that do not hold what it wrote, of ``memory_pages`` that
    #: were looked at; both 0 before ``settle``, and where it has no such memory.
    memory_wrong: int = 0
    memory_pages: int = 0

    @property
    def faults(self) -> int:
        messages = self.lost + self.doubled + self.reordered + self.damaged + self.failed
        return messages + self.memory_wrong


class Guest(Protocol):
    """A guest: software that keeps all it knows in its memory, so that it goes where that goes."""

    @property
    def memory(self) -> GuestMemory: ...

    def start(self) -> None:
        """Run, from what the memory says (at power-on: from the beginning)."""

    def pause(self) -> None:
        """Stop the vCPUs: on return no instruction of the guest runs until ``start``."""

    def limit(self, share: float) -> None:
        """Let it have ``share`` of its time from now on, 1.0 being all; running or not.

        For who moves a guest that dirties memory faster than it can be moved. It is no part of
        what moves: a guest begins with all its time. ValueError for a share that can't be given.
        """

    def counts(self) -> GuestCounts:
        """What it has seen so far; may be asked while it runs."""

    def settle(self, timeout: float) -> GuestCounts:
        """Send nothing more, wait up to ``timeout`` seconds until all that was sent has arrived.

        Messages that have not arrived by then are counted as lost. Nothing more is written to the
        memory that it works on, all of which is then checked, however long that takes.
        """

    def close(self) -> None: ...


@dataclass(slots=True)
class Opened:
    """A device that a backend has opened, and the guest on it.

    ``adopt_guest`` is there where the device can take the guest of a source: called with the
    regions of its memory, it gives the guest, not yet started, whose memory is to be filled.
    """

    device: VfioDevice
    guest: Guest | None = None
    adopt_guest: Callable[[Sequence[RegionSpec]], Guest] | None = None
    #: Makes a counter of the records in the device's stream, fed with pieces of it; each call
    #: answers how many records have begun so far. None where nobody here knows the stream.
    count_records: Callable[[], Callable[[Buffer], int]] | None = None
    #: Has every firmware command that the driver gives from now on told to whom it is called with:
    #: its name, seconds of ``time.monotonic`` at its begin and its end, its status ("OK"). None where
    #: the commands can't be seen from here, as those of a kernel's driver.
    watch_commands: Callable[[Callable[[str, float, float, str], None]], None] | None = None
    #: The device's PCI face, where it was opened to be served.
    face: PciFace | None = None
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        if self.guest is not None:
            self.guest.close()
        self.device.close()
