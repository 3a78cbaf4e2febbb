"""Debian's QEMU beside the host's packages, as a peer to measure against in the lab.

``python -m precopy.lab.qemu`` unpacks it, with every library that it needs, into the cache; the host
is given nothing. It runs through the loader of its own C library. apt works on lists of its own.
"""

import argparse
import fcntl
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from precopy.lab.build import cache_dir
from precopy.lab.errors import LabError
from precopy.lab.source import _KEYRING, SUITES, Say, _mirror, run

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
    link = cache_dir() / "qemu"
    return link.resolve() if link.exists() else None


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
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        # The lists of packages are those of the kernel's source, and apt won't share them.
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = None if refresh else installed()
        if found is not None:
            say(f"{found.name} is installed already")
            return found
        with tempfile.TemporaryDirectory(dir=cache, prefix="unpack-") as directory:
            tree = _from_debian(cache, Path(directory), say)
        link = cache / "qemu.new"
        link.unlink(missing_ok=True)
        link.symlink_to(tree.name)
        link.rename(cache / "qemu")
    say(f"{tree.name} is installed")
    return tree


def _from_debian(cache: Path, work: Path, say: Say) -> Path:
    if not _KEYRING.exists():
        raise LabError("QEMU comes from Debian's packages: this is not a Debian with its keyring")
    try:
        mirror = _mirror()
    except LabError as error:
        raise LabError(
            "no Debian mirror in apt's sources: QEMU's packages come from one"
        ) from error
    try:
        suite, version = _choose(_apt(cache, work, mirror, SUITES), say)
        name = "qemu-" + re.sub(r"[^\w.+~-]", "_", re.sub(r"^\d+:", "", version))
        tree = cache / name
        if not tree.exists():
            _unpack(_apt(cache, work, mirror, _BASES[suite]), suite, work, say)
            (work / "tree").rename(tree)
    except LabError as error:
        raise LabError(f"QEMU can't be installed from {mirror}: {error}") from error
    return tree


def _apt(cache: Path, work: Path, mirror: str, suites: Sequence[str]) -> list[str]:
    """Options for apt: its lists are in ``cache``, all else is in ``work``; nothing is installed."""
    lists, debs = cache / "apt/lists", work / "debs"
    for path in (lists / "partial", debs / "partial"):
        path.mkdir(parents=True, exist_ok=True)
    (work / "status").touch()
    listing = work / "sources.list"
    listing.write_text(
        "".join(f"deb [signed-by={_KEYRING}] {mirror} {suite} main\n" for suite in suites)
    )
    settings = {
        "Dir::State": work,
        "Dir::State::lists": lists,
        # With no package installed, everything that QEMU needs is to be fetched.
        "Dir::State::status": work / "status",
        "Dir::Cache": work,
        "Dir::Cache::archives": debs,
        "Dir::Etc::sourcelist": listing,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "APT::Sandbox::User": "root",
        # A list that can't be fetched is else a warning.
        "APT::Update::Error-Mode": "any",
    }
    config = work / "apt.conf"
    # The host's hooks are for the host's lists.
    config.write_text(
        "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
        + "".join(f'{key} "{value}";\n' for key, value in settings.items())
    )
    return ["-c", str(config)]


def _choose(options: list[str], say: Say) -> tuple[str, str]:
    """Suite and version of the QEMU to take."""
    say("reading Debian's package lists")
    try:
        run(["apt-get", *options, "-qq", "update"])
    except LabError as error:
        raise LabError(f"its package lists can't be fetched: {error}") from error
    said = run(["apt-cache", *options, "madison", PACKAGE])
    versions = {
        suite: version
        for version, suite in re.findall(r"\| +(\S+) \| \S+ (\S+)/main amd64 ", said)
        if suite in SUITES
    }
    if not versions:
        raise LabError(f"{', '.join(SUITES)} have no {PACKAGE}")
    new_enough = [
        suite for suite in SUITES if suite in versions and _number(versions[suite]) >= WANTED
    ]
    suite = new_enough[0] if new_enough else max(versions, key=lambda each: _number(versions[each]))
    return suite, versions[suite]


def _number(version: str) -> tuple[int, ...]:
    """``(11, 1, 3)`` of ``1:11.1.3+ds-1~bpo13+1``."""
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found.group(1).split("."))) if found else ()


def _unpack(options: list[str], suite: str, work: Path, say: Say) -> None:
    """Download, unpack into ``work``/tree, and see whether it starts."""
    say(f"downloading QEMU and its libraries from {suite}")
    fetch = ["-qq", "-y", "--no-install-recommends", "--download-only", "-t", suite]
    run(["apt-get", *options, *fetch, "install", PACKAGE])
    packages = sorted((work / "debs").glob("*.deb"))
    say(f"unpacking {len(packages)} packages")
    tree = work / "tree"
    for package in packages:
        run(["dpkg-deb", "-x", str(package), str(tree)])
    run([*command(tree), "--version"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints where QEMU is. Exit status 4, with a line that says why, where it can't be got."""
    parser = argparse.ArgumentParser(
        prog="python -m precopy.lab.qemu",
        description="Debian's QEMU, unpacked into the cache beside the host's packages.",
    )
    parser.add_argument("--refresh", action="store_true", help="ask Debian for a newer one")
    asked = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(f"precopy: lab: {text}", file=sys.stderr, flush=True)

    try:
        print(install(say, refresh=asked.refresh))
    except LabError as error:
        say(str(error))
        return _FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
