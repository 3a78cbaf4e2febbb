"""A kernel for a guest in QEMU: Debian's for cloud machines, as it is, with the modules it is to load.

``python -m precopy.lab.guest_kernel`` unpacks it and a busybox into the cache; with ``--initramfs FILE``
it writes a root file system whose console is a shell. What a guest does is the script that becomes its
``/init``; modules are put beside it in the order in which they load.
"""

import argparse
import gzip
import lzma
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from precopy.lab import packages
from precopy.lab.errors import LabError
from precopy.lab.packages import Packages, number, tree_name
from precopy.lab.source import Say

#: The package that stands for the newest kernel of a suite, and where the shell comes from.
PACKAGE, BUSYBOX = "linux-image-cloud-amd64", "busybox-static"

#: Of a kernel's packages: the image and the modules (one package before Linux 7.3, two since).
_PARTS = re.compile(r"linux-(image|binary|modules)-\d")

#: Loads the modules, then is a shell on the console; at its end the machine is switched off.
SHELL = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
/bin/busybox --install -s /bin
export PATH=/bin
while read -r module; do insmod "$module"; done </modules
setsid cttyhack sh
poweroff -f
"""

_FAILED = 4

#: How modules lie in the package, and how they are read.
_READERS: dict[str, Callable[[bytes], bytes]] = {
    ".ko": bytes,
    ".ko.gz": gzip.decompress,
    ".ko.xz": lzma.decompress,
}

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


def installed() -> Path | None:
    """The tree of the kernel installed last, or None."""
    return packages.installed("guest-kernel")


def require() -> Path:
    """The tree of the kernel that is here. LabError says how to get one."""
    tree = installed()
    if tree is None:
        raise LabError(
            "a guest's kernel is not in the cache: run make qemu-test, which puts it there"
        )
    return tree


def install(say: Say, *, refresh: bool = False) -> Path:
    """The tree of kernel and busybox, from Debian unless the cache has one. LabError."""

    def fetch(debian: Packages) -> Path:
        debian.update(say)
        versions = debian.versions(PACKAGE)
        version = max(versions.values(), key=number)
        parts = _parts(debian, PACKAGE, version)
        tree = debian.cache / tree_name("guest-kernel", version)
        if not tree.exists():
            say(f"downloading {', '.join(each.partition('=')[0] for each in parts)}")
            shell = max(debian.versions(BUSYBOX).values(), key=number)
            debian.download([*parts, f"{BUSYBOX}={shell}"])
            debian.unpack(say).rename(tree)
        return tree

    return packages.install("guest-kernel", "a guest's kernel", fetch, say, refresh=refresh)


def _parts(debian: Packages, package: str, version: str) -> list[str]:
    """``NAME=VERSION`` of the packages in which ``package``'s kernel and modules lie."""
    found, todo = list[str](), [package]
    while todo:
        for name in debian.needs(todo.pop(), version):
            part = f"{name}={version}"
            if _PARTS.match(name) and part not in found:
                found.append(part)
                todo.append(name)
    if not found:
        raise LabError(f"{package} {version} names no kernel")
    return found


@dataclass(frozen=True, slots=True)
class GuestKernel:
    """The kernel in ``tree``. LabError where it lacks something."""

    tree: Path

    @property
    def release(self) -> str:
        """What ``uname -r`` says in the guest."""
        return self._modules.name

    @property
    def _modules(self) -> Path:
        found = sorted(self.tree.glob("usr/lib/modules/*")) or sorted(
            self.tree.glob("lib/modules/*")
        )
        if not found:
            raise LabError(f"{self.tree.name} has no modules; run it again with --refresh")
        return found[-1]

    @property
    def image(self) -> Path:
        """What QEMU takes as ``-kernel``."""
        for path in (self._modules / "vmlinuz", self.tree / "boot" / f"vmlinuz-{self.release}"):
            if path.exists():
                return path
        raise LabError(f"{self.tree.name} has no kernel image")

    def initramfs(self, init: str, modules: Sequence[str] = ()) -> bytes:
        """An initramfs with busybox, ``init``, and ``modules`` with all that they need.

        ``/modules`` names the modules' files, a line each, in the order in which they are to be loaded.
        """
        loaded = list(self._in_order(modules))
        busybox = self.tree / "usr/bin/busybox"
        if not busybox.exists():
            busybox = self.tree / "bin/busybox"
        entries: list[tuple[str, int, bytes]] = [
            (name, _DIRECTORY, b"") for name in ("bin", "dev", "proc", "sys", "lib")
        ]
        entries.append(("bin/busybox", _PROGRAM, busybox.read_bytes()))
        entries.append(("init", _PROGRAM, init.encode()))
        entries += [(f"lib/{name}.ko", _FILE, data) for name, data in loaded]
        listing = "".join(f"/lib/{name}.ko\n" for name, _ in loaded)
        entries.append(("modules", _FILE, listing.encode()))
        return gzip.compress(b"".join(_newc(entries)), 1)

    def _in_order(self, wanted: Sequence[str]) -> Iterator[tuple[str, bytes]]:
        """The modules and what they need, each after what it needs; as they say it themselves."""
        paths = {_name(path): path for path in self._modules.rglob("*.ko*")}
        done: set[str] = set()

        def visit(name: str) -> Iterator[tuple[str, bytes]]:
            if name in done:
                return
            done.add(name)
            if name not in paths:
                raise LabError(f"{self.release} has no module {name}")
            data = _read(paths[name])
            said = _DEPENDS.search(data)
            for needed in said.group(1).decode().split(",") if said else ():
                if needed:
                    yield from visit(needed.replace("-", "_"))
            yield name, data

        for name in wanted:
            yield from visit(name)


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    reader = _READERS.get(path.name[path.name.index(".") :])
    if reader is None:
        raise LabError(f"{path.name}: a module packed in a way that is not known here")
    return reader(path.read_bytes())


# --- cpio -------------------------------------------------------------------------------------

_DIRECTORY, _PROGRAM, _FILE = 0o040755, 0o100755, 0o100644


def _newc(entries: Iterable[tuple[str, int, bytes]]) -> Iterator[bytes]:
    """An archive in cpio's "newc" form, as the kernel unpacks it into its first root.

    Source: Documentation/driver-api/early-userspace/buffer-format.rst (Linux 7.3).
    """
    last = ("TRAILER!!!", 0, b"")
    for number_, (name, mode, data) in enumerate([*entries, last], 1):
        path = name.encode() + b"\0"
        links = 2 if mode == _DIRECTORY else 1
        fields = (number_, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(path), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields) + path
        yield header + bytes(-len(header) % 4)
        yield data + bytes(-len(data) % 4)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the kernel's image. Exit status 4, with a line that says why, where it can't be got."""
    parser = argparse.ArgumentParser(
        prog="python -m precopy.lab.guest_kernel",
        description="Debian's kernel for a guest in QEMU, unpacked into the cache.",
    )
    parser.add_argument("--refresh", action="store_true", help="ask Debian for a newer one")
    parser.add_argument(
        "--initramfs", type=Path, metavar="FILE", help="write a root file system with a shell"
    )
    parser.add_argument(
        "--load", action="append", default=[], metavar="MODULE", help="to be loaded in it"
    )
    asked = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(f"precopy: lab: {text}", file=sys.stderr, flush=True)

    try:
        kernel = GuestKernel(install(say, refresh=asked.refresh))
        if asked.initramfs is not None:
            asked.initramfs.write_bytes(kernel.initramfs(SHELL, asked.load))
        print(kernel.image)
    except LabError as error:
        say(str(error))
        return _FAILED
    except OSError as error:
        say(f"{error.filename or asked.initramfs}: {error.strerror}")
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
