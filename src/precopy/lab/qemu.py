"""Debian's QEMU beside the host's packages, as a peer to measure against in the lab.

``python -m precopy.lab.qemu`` unpacks it, with every library that it needs, into the cache; the host
is given nothing. It runs through the loader of its own C library: ``python -m precopy.lab.qemu --
OPTIONS`` starts it.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from precopy.lab import packages
from precopy.lab.errors import LabError
from precopy.lab.packages import Packages, number, tree_name
from precopy.lab.source import SUITES, Say, run

PACKAGE = "qemu-system-x86"

#: The first suite that has at least this is taken; where none has, the newest that there is.
WANTED = (11, 1)

#: Where the libraries of each suite's QEMU come from.
_BASES = {
    "trixie-backports": ("trixie-backports", "trixie"),
    "sid": ("sid",),
    "trixie": ("trixie",),
}

_FAILED = 4


def installed() -> Path | None:
    """The tree of the QEMU installed last, or None."""
    return packages.installed("qemu")


def require() -> Path:
    """The tree of the QEMU that is here. LabError says how to get one."""
    tree = installed()
    if tree is None:
        raise LabError("QEMU is not in the cache: run make qemu-test, which installs it there")
    return tree


def command(tree: Path) -> list[str]:
    """How the QEMU of ``tree`` is started; its options follow."""
    share = tree / "usr/share"
    return [
        str(tree / "usr/lib64/ld-linux-x86-64.so.2"),
        *("--library-path", str(tree / "usr/lib/x86_64-linux-gnu")),
        str(tree / "usr/bin/qemu-system-x86_64"),
        *("-L", str(share / "seabios"), "-L", str(share / "qemu")),
    ]


def install(say: Say, *, refresh: bool = False) -> Path:
    """The tree of QEMU, from Debian unless the cache has one. ``refresh``: ask Debian all the same.

    LabError where this is no Debian, its mirror does not answer or has no QEMU, or QEMU doesn't run.
    """

    def fetch(debian: Packages) -> Path:
        debian.update(say)
        suite, version = _choose(debian.versions(PACKAGE))
        tree = debian.cache / tree_name("qemu", version)
        if not tree.exists():
            say(f"downloading QEMU and its libraries from {suite}")
            debian.download_with_needs(PACKAGE, _BASES[suite])
            unpacked = debian.unpack(say)
            run([*command(unpacked), "--version"])
            unpacked.rename(tree)
        return tree

    return packages.install("qemu", "QEMU", fetch, say, refresh=refresh)


def _choose(versions: dict[str, str]) -> tuple[str, str]:
    """Suite and version of the QEMU to take."""
    new_enough = [
        suite for suite in SUITES if suite in versions and number(versions[suite]) >= WANTED
    ]
    suite = new_enough[0] if new_enough else max(versions, key=lambda each: number(versions[each]))
    return suite, versions[suite]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints where QEMU is, or becomes it. Exit status 4, with a line that says why, without one."""
    parser = argparse.ArgumentParser(
        prog="python -m precopy.lab.qemu",
        description="Debian's QEMU, unpacked into the cache beside the host's packages.",
    )
    parser.add_argument("--refresh", action="store_true", help="ask Debian for a newer one")
    parser.add_argument("options", nargs="*", metavar="-- OPTIONS", help="start it with these")
    asked = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(f"precopy: lab: {text}", file=sys.stderr, flush=True)

    try:
        tree = install(say, refresh=asked.refresh)
    except LabError as error:
        say(str(error))
        return _FAILED
    if asked.options:
        program = [*command(tree), *asked.options]
        os.execv(program[0], program)
    print(tree)
    return 0


if __name__ == "__main__":
    sys.exit(main())
