"""One function of the adapter (a VHCA): its context memory, its DMA, and whether it works."""

import threading
from collections.abc import Callable, Mapping

import numpy as np

from precopy.connectx import slots
from precopy.connectx.config import AdapterConfig
from precopy.connectx.context_memory import ContextMemory, Table, TableSpec
from precopy.connectx.numbers import Numbers, Runs
from precopy.connectx.slots import FIRST_NUMBER, FLAGS_BYTE, HcaSlot, MkeySlot, SlotFlags
from precopy.pci.dma import DmaSpace


class Vhca:
    """All of it is read and changed with :attr:`lock` held."""

    def __init__(
        self, vhca_id: int, config: AdapterConfig, tables: Mapping[str, TableSpec]
    ) -> None:
        self.vhca_id = vhca_id
        self.config = config
        self.lock = threading.RLock()
        self.dma = DmaSpace()
        self.memory = ContextMemory(tables)
        #: Suspended as initiator it starts no work; as responder it also answers none: it stands still.
        self.initiator_suspended = False
        self.responder_suspended = False
        #: Handlers by MSI-X vector; they belong to who uses the function, so they do not migrate.
        self.interrupts: dict[int, Callable[[], None]] = {}
        #: What raises the vectors that no handler is for: the MSI-X table of the PCI function.
        self.msix: Callable[[int], None] | None = None
        #: Counts power-ons, resets and loads: what was derived from the slots before is void.
        self.generation = 0
        self._numbers: dict[str, Numbers] = {}
        self._mtts: Runs | None = None
        self._power_on()

    def table(self, name: str) -> Table:
        return self.memory.tables[name]

    def _power_on(self) -> None:
        steering = self.table("steering")
        if steering.slots and not self.config.blank:
            generator = np.random.default_rng((self.config.seed, self.vhca_id))
            step = 1 << 22
            total = min(steering.slots * steering.slot_bytes, self.config.state_bytes)
            block = generator.bytes(min(step, total))
            for offset in range(0, total, step):
                length = min(step, total - offset)
                view = steering.edit_bytes(offset, length)
                view[:] = block[:length]
                # Every block differs, without paying for random bytes throughout.
                view[:8] = offset.to_bytes(8, "big")

    def reset(self) -> None:
        """FLR: the state after power-on, at work. Mappings and handlers belong to others and stay."""
        with self.lock:
            self.memory.clear()
            self.initiator_suspended = self.responder_suspended = False
            self.forget_derived()
            self._power_on()

    @property
    def hca(self) -> HcaSlot:
        """The function itself, for reading."""
        return HcaSlot(self.table("hca").slot(0))

    def edit_hca(self) -> HcaSlot:
        """The same, for writing."""
        return HcaSlot(self.table("hca").edit(0))

    def teardown(self) -> None:
        """TEARDOWN_HCA: every object is gone; the command queue stays."""
        with self.lock:
            for name, byte in FLAGS_BYTE.items():
                table = self.table(name)
                for number in table.flagged_slots(byte, SlotFlags.IN_USE).tolist():
                    slot = table.edit(number)
                    slot[:] = bytes(len(slot))
            self.forget_derived()

    def forget_derived(self) -> None:
        """The slots have been replaced."""
        self.generation += 1
        self._numbers.clear()
        self._mtts = None

    def numbers(self, name: str) -> Numbers:
        """The free numbers of table ``name``."""
        found = self._numbers.get(name)
        if found is None:
            table = self.table(name)
            used = table.flagged_slots(FLAGS_BYTE[name], SlotFlags.IN_USE)
            found = Numbers(FIRST_NUMBER[name], table.slots, used.tolist())
            self._numbers[name] = found
        return found

    def mtt_runs(self) -> Runs:
        """The free translation entries."""
        if self._mtts is None:
            table = self.table("mkey")
            used = table.flagged_slots(FLAGS_BYTE["mkey"], SlotFlags.IN_USE)
            keys = (MkeySlot(table.slot(int(number))) for number in used)
            self._mtts = Runs(slots.MTT_SLOTS, ((key.first_mtt, key.num_mtts) for key in keys))
        return self._mtts

    def in_use(self, name: str, number: int) -> bool:
        table = self.table(name)
        return 0 <= number < table.slots and bool(
            table.slot(number)[FLAGS_BYTE[name]] & SlotFlags.IN_USE
        )

    def interrupt(self, vector: int) -> None:
        """Raise MSI-X ``vector``."""
        handler = self.interrupts.get(vector)
        if handler is not None:
            handler()
        elif self.msix is not None:
            self.msix(vector)
