"""What is held to the suite: each pair of devices, in each mix of capabilities, on each kernel."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from precopy.lab import MTTY_UUIDS
from precopy.lab.build import NEWEST, ORDINARY, VERSIONS


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of the lab, see ``lab.build``."""

    version: str = NEWEST
    variant: str = ORDINARY

    @property
    def name(self) -> str:
        """``6.12``, ``newest debug``."""
        return self.version if self.variant == ORDINARY else f"{self.version} {self.variant}"


@dataclass(frozen=True, slots=True)
class Target:
    """``name``: unique. ``devices``: one to check, and its peer, as ``precopy conform`` has them."""

    name: str
    devices: tuple[str, str]
    #: The driver's file of known differences; empty: all has to pass.
    known: str = ""
    #: What a lab kernel needs to have: mtty devices, an adapter.
    mtty: int = 0
    adapter: str = ""
    #: Whether it runs in a lab kernel.
    in_kernel: bool = False
    #: What is served by vfio-user at ``devices``: a name for each; empty: nothing has to be.
    served: str = ""
    #: False: the driver must not offer its migration.
    migrates: bool = True


@dataclass(frozen=True, slots=True)
class Capability:
    """Of the software ConnectX: its ``option`` (see ``connectx.options``), and its name in a target's."""

    option: str
    name: str


#: What mlx5_vfio_pci does otherwise with and without; every mix is a target.
OPTIONAL = (
    Capability("chunks", "chunks"),
    Capability("migration_state", "reinit"),
    Capability("page_track", "log"),
)

#: Without one of these the driver has to leave the VF without migration.
NECESSARY = (
    Capability("migratable", "migratable"),
    Capability("multi_load", "multi-load"),
)

#: State of more than a chunk (8 MiB): the driver asks for the rest of it in chunks, where the card
#: has that. Its largest mixes.
_BULK = (("bulk", "state=20M"), ("bulk no-chunks", "state=20M&chunks=0"))

_VFS = ("vfio:0000:00:01.0", "vfio:0000:00:02.0")

#: The sockets of what is served, below the directory of the run.
SOCKETS = ("vfio-user:{directory}/one", "vfio-user:{directory}/two")


def mixes() -> Iterator[tuple[str, str]]:
    """Every mix of :data:`OPTIONAL`, and two with bulk state: what is added to a target's name, and
    the options of the card."""
    for present in product((True, False), repeat=len(OPTIONAL)):
        lacking = [each for each, there in zip(OPTIONAL, present, strict=True) if not there]
        name = " ".join(f"no-{each.name}" for each in lacking)
        yield name, "&".join(f"{each.option}=0" for each in lacking)
    yield from _BULK


def _named(what: str, mix: str) -> str:
    return f"{what} {mix}".strip()


def targets() -> list[Target]:
    """All of them: the kernel's drivers, then our own devices."""
    found = [Target("mtty", (MTTY_UUIDS[0], MTTY_UUIDS[1]), known="mtty", mtty=2, in_kernel=True)]
    for name, options in mixes():
        adapter = "&".join(filter(None, ("mlx5?vfs=2", options)))
        found.append(
            Target(_named("mlx5", name), _VFS, known="mlx5", adapter=adapter, in_kernel=True)
        )
    found += [
        Target(
            f"mlx5 no-{each.name}",
            _VFS,
            known="mlx5",
            adapter=f"mlx5?vfs=2&{each.option}=0",
            in_kernel=True,
            migrates=False,
        )
        for each in NECESSARY
    ]
    for name, options in mixes():
        device = "?".join(filter(None, ("sim:mlx5", options)))
        found.append(Target(_named("sim", name), (device, device)))
    for name, options in mixes():
        device = "?".join(filter(None, ("sim:mlx5", options)))
        found.append(Target(_named("vfio-user", name), SOCKETS, served=device))
    return found


def cells(
    chosen: Sequence[Target], versions: Sequence[str] = tuple(VERSIONS), variant: str = ORDINARY
) -> Iterator[tuple[Target, Kernel | None]]:
    """Each target with each kernel that it is to run on; None: it needs no kernel."""
    for target in chosen:
        if target.in_kernel:
            yield from ((target, Kernel(version, variant)) for version in versions)
        else:
            yield target, None
