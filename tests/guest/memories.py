"""Memory that a guest works on, without a guest: written, copied, spoiled."""

from collections.abc import Iterator
from contextlib import contextmanager

from precopy.guest.layout import BASE, PAGE, WorkloadConfig
from precopy.guest.pages import BATCH, Pages
from precopy.pci.memory import GuestMemory, RegionSpec


class Worked:
    """The control page's region and the memory, with its pages."""

    def __init__(self, config: WorkloadConfig) -> None:
        control = RegionSpec(BASE, PAGE)
        self.config = config
        self.memory = GuestMemory([control, config.memory_region([control])])
        self.pages = Pages(self.memory, 1, config)
        self.view = self.memory.regions[1].view

    def write(self, count: int, at_once: int = BATCH) -> None:
        while count:
            some = min(count, at_once)
            self.pages.write(some)
            count -= some

    def copy(self, *without: int) -> "Worked":
        """What a migration makes of it: what was ever written is moved, but for pages ``without``."""
        made = Worked(self.config)
        for region, offset, length in self.memory.extents():
            mine, its = self.memory.regions[region].view, made.memory.regions[region].view
            for at in range(offset, offset + length, PAGE):
                if not region or at // PAGE not in without:
                    its[at : at + PAGE] = mine[at : at + PAGE]
        return made

    def page(self, index: int) -> bytes:
        """Page ``index`` of the region."""
        return bytes(self.view[index * PAGE : (index + 1) * PAGE])

    def put_page(self, index: int, data: bytes) -> None:
        self.view[index * PAGE : (index + 1) * PAGE] = data

    def all(self) -> list[bytes]:
        return [self.page(index) for index in range(self.pages.pages)]

    def close(self) -> None:
        self.pages.release()
        self.memory.close()


@contextmanager
def worked(memory: int, *, fill: int = 100, working: int = 100, zeros: int = 0) -> Iterator[Worked]:
    """A memory of so many pages, as at power-on."""
    made = Worked(WorkloadConfig(memory=memory * PAGE, fill=fill, working=working, zeros=zeros))
    made.pages.power_on()
    yield made
    made.close()
