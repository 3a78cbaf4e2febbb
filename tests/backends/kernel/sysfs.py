"""A tree of sysfs and /dev, as the kernel shows VFIO devices in it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Tree:
    root: Path

    def node(self, path: str) -> None:
        """A device node, as far as its being there goes."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()

    def _link(self, link: Path, target: Path) -> None:
        link.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)

    def _device(
        self, real: Path, bus: str, driver: str, group: str, vfio: str, nodes: tuple[str, ...]
    ) -> Path:
        sys = self.root / "sys"
        real.mkdir(parents=True)
        self._link(sys / "bus" / bus / "devices" / real.name, real)
        if driver:
            self._link(real / "driver", sys / "bus" / bus / "drivers" / driver)
        if group:
            self._link(real / "iommu_group", sys / "kernel/iommu_groups" / group)
        if vfio:
            own = real / "vfio-dev" / vfio
            own.mkdir(parents=True)
            (own / "device").symlink_to(real)
            self._link(sys / "class/vfio-dev" / vfio, own)
        for path in nodes:
            self.node(path)
        return real

    def pci(
        self,
        name: str,
        *nodes: str,
        driver: str = "",
        group: str = "12",
        vfio: str = "",
        ids: tuple[str, str] = ("0x15b3", "0x101e"),
    ) -> Path:
        """A PCI device; ``vfio``: its name among VFIO's, where a VFIO driver has it."""
        real = self.root / "sys/devices/pci0000:00" / name
        self._device(real, "pci", driver, group, vfio, nodes)
        (real / "vendor").write_text(f"{ids[0]}\n")
        (real / "device").write_text(f"{ids[1]}\n")
        return real

    def mdev(
        self,
        name: str,
        *nodes: str,
        parent: Path,
        kind: str = "mtty-2",
        driver: str = "mtty",
        group: str = "12",
        vfio: str = "vfio0",
    ) -> Path:
        real = self._device(parent / name, "mdev", driver, group, vfio, nodes)
        self._link(real / "mdev_type", parent / "mdev_supported_types" / kind)
        return real
