"""Debian's packages beside the host's: unpacked into the cache, which is all that they reach.

apt works on lists of its own there. The host is given nothing, and asked only for its mirror.
"""

import fcntl
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from precopy.lab.build import cache_dir
from precopy.lab.errors import LabError
from precopy.lab.source import KEYRING, SUITES, Say, mirror, run


def installed(name: str) -> Path | None:
    """The tree that was installed last under ``name``, or None."""
    link = cache_dir() / name
    return link.resolve() if link.exists() else None


def install(
    name: str, what: str, fetch: Callable[["Packages"], Path], say: Say, *, refresh: bool = False
) -> Path:
    """The tree ``name`` of the cache; ``fetch`` makes it where there is none, or with ``refresh``.

    LabError, which names ``what`` can't be installed, where this is no Debian, its mirror does not
    answer or lacks it, or ``fetch`` says so.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        # The lists of packages are those of the kernel's source, and apt won't share them.
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = None if refresh else installed(name)
        if found is not None:
            say(f"{found.name} is installed already")
            return found
        with tempfile.TemporaryDirectory(dir=cache, prefix="unpack-") as directory:
            tree = _fetched(Packages(cache, Path(directory), what), fetch)
        link = cache / f"{name}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(tree.name)
        link.rename(cache / name)
    say(f"{tree.name} is installed")
    return tree


def _fetched(packages: "Packages", fetch: Callable[["Packages"], Path]) -> Path:
    try:
        return fetch(packages)
    except LabError as error:
        what, where = packages.what, packages.mirror
        raise LabError(f"{what} can't be installed from {where}: {error}") from error


class Packages:
    """Debian's packages, by apt, with its lists in ``cache`` and all else in ``work``."""

    def __init__(self, cache: Path, work: Path, what: str) -> None:
        self.cache, self.work, self.what = cache, work, what
        if not KEYRING.exists():
            raise LabError(
                f"{what} comes from Debian's packages: this is no Debian with its keyring"
            )
        try:
            self.mirror = mirror()
        except LabError as error:
            raise LabError(f"no Debian mirror in apt's sources: {what} comes from one") from error
        self._options = self._of(SUITES)

    def _of(self, suites: Sequence[str]) -> list[str]:
        lists, debs = self.cache / "apt/lists", self.work / "debs"
        for path in (lists / "partial", debs / "partial"):
            path.mkdir(parents=True, exist_ok=True)
        (self.work / "status").touch()
        listing = self.work / "sources.list"
        listing.write_text(
            "".join(f"deb [signed-by={KEYRING}] {self.mirror} {suite} main\n" for suite in suites)
        )
        settings = {
            "Dir::State": self.work,
            "Dir::State::lists": lists,
            # With no package installed, everything that a package needs is to be fetched.
            "Dir::State::status": self.work / "status",
            "Dir::Cache": self.work,
            "Dir::Cache::archives": debs,
            "Dir::Etc::sourcelist": listing,
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Sandbox::User": "root",
            # A list that can't be fetched is else a warning.
            "APT::Update::Error-Mode": "any",
        }
        config = self.work / "apt.conf"
        # The host's hooks are for the host's lists.
        config.write_text(
            "#clear APT::Update::Post-Invoke;\n#clear APT::Update::Post-Invoke-Success;\n"
            + "".join(f'{key} "{value}";\n' for key, value in settings.items())
        )
        return ["-c", str(config)]

    def update(self, say: Say, suites: Sequence[str] = SUITES) -> None:
        say("reading Debian's package lists")
        self._options = self._of(suites)
        try:
            run(["apt-get", *self._options, "-qq", "update"])
        except LabError as error:
            raise LabError(f"its package lists can't be fetched: {error}") from error

    def versions(self, package: str, suites: Sequence[str] = SUITES) -> dict[str, str]:
        """By suite: the newest version that it has of ``package``. LabError where none has it."""
        said = run(["apt-cache", *self._options, "madison", package])
        versions: dict[str, str] = {}
        for version, suite in re.findall(r"\| +(\S+) \| \S+ (\S+)/main amd64 ", said):
            if suite in suites:
                versions.setdefault(suite, version)
        if not versions:
            raise LabError(f"{', '.join(suites)} have no {package}")
        return versions

    def needs(self, package: str, version: str) -> list[str]:
        """The names of the packages that this one depends on, without alternatives."""
        said = run(["apt-cache", *self._options, "show", f"{package}={version}"])
        found = re.search(r"^Depends: (.*)$", said, re.M)
        named = found.group(1).split(",") if found else []
        return [each.split()[0] for each in named if "|" not in each]

    def download(self, wanted: Sequence[str]) -> None:
        """These packages (``NAME=VERSION``) alone. LabError."""
        run(["apt-get", *self._options, "-qq", "download", *wanted], cwd=self.work / "debs")

    def download_with_needs(self, package: str, suites: Sequence[str]) -> None:
        """``package`` of the first of ``suites``, and all that it needs of any of them. LabError."""
        options = self._of(suites)
        fetch = ["-qq", "-y", "--no-install-recommends", "--download-only", "-t", suites[0]]
        run(["apt-get", *options, *fetch, "install", package])

    def unpack(self, say: Say) -> Path:
        """Everything that was downloaded, in one tree below ``work``."""
        packages = sorted((self.work / "debs").glob("*.deb"))
        say(f"unpacking {len(packages)} packages")
        tree = self.work / "tree"
        for package in packages:
            run(["dpkg-deb", "-x", str(package), str(tree)])
        return tree


def tree_name(package: str, version: str) -> str:
    """What a tree of the cache is called: ``qemu-11.1.3+ds-1``."""
    return f"{package}-" + re.sub(r"[^\w.+~-]", "_", re.sub(r"^\d+:", "", version))


def number(version: str) -> tuple[int, ...]:
    """``(11, 1, 3)`` of ``1:11.1.3+ds-1~bpo13+1``."""
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return tuple(map(int, found.group(1).split("."))) if found else ()
