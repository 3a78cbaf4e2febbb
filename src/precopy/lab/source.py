"""Where the kernel's source comes from: a linux-source package of Debian, or a place by name.

The host's package lists are left alone: apt works on lists and a cache of its own.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from precopy.lab.errors import LabError

#: In the order of preference: the first that has a linux-source package is taken.
SUITES = ("trixie-backports", "sid", "trixie")

#: What Debian signs its lists with.
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SOURCES = (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A kernel's source: ``name`` tells versions apart, ``fetch`` puts the tree into a new directory."""

    name: str
    fetch: Callable[[Path, Say], Path]


def run(command: list[str], *, cwd: Path | None = None) -> str:
    """Output of a command. LabError with its last line where it fails or is not there."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed: install it and try again") from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise LabError(f"{command[0]} failed ({done.returncode}): {lines[-1]}")
    return done.stdout


def from_path(path: Path) -> Source:
    """A source tree or a tarball of one. A tree is known by the times of the files in it."""
    path = path.resolve()
    if not path.exists():
        raise LabError(f"{path}: no such kernel source")
    if path.is_dir():
        if not (path / "Kconfig").exists():
            raise LabError(f"{path} is no kernel source tree")
        return Source(f"{path}-{_stamp(path)}", lambda work, say: _copy(path, work, say))
    stamp = path.stat()
    return Source(
        f"{path}-{stamp.st_mtime_ns}-{stamp.st_size}",
        lambda work, say: _unpack(path, work, say),
    )


def _stamp(tree: Path) -> str:
    """The newest time of a file or directory in ``tree``, and how many there are."""
    newest, count = tree.stat().st_mtime_ns, 0
    todo = [str(tree)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.name == ".git":
                    continue
                newest = max(newest, entry.stat(follow_symlinks=False).st_mtime_ns)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
    return f"{newest}-{count}"


def _copy(tree: Path, work: Path, say: Say) -> Path:
    say(f"copying {tree}")
    copy = Path(
        shutil.copytree(tree, work / "linux", symlinks=True, ignore=shutil.ignore_patterns(".git"))
    )
    # What has been built in it was for another configuration, or another machine.
    run(["make", "ARCH=um", "mrproper"], cwd=copy)
    return copy


def _unpack(tarball: Path, work: Path, say: Say) -> Path:
    say(f"unpacking {tarball.name}")
    into = work / "source"
    into.mkdir()
    run(["tar", "-xf", str(tarball), "-C", str(into)])
    tops = [each for each in into.iterdir() if each.is_dir()]
    if len(tops) != 1 or not (tops[0] / "Kconfig").exists():
        raise LabError(f"{tarball.name} holds no kernel source tree")
    return tops[0]


def mirror() -> str:
    """The Debian mirror of the host's own apt. LabError where it has none."""
    for path in _SOURCES:
        if path.exists():
            found = re.search(r"https?://\S+/debian(?=/?\s)", path.read_text())
            if found:
                return found.group(0)
    raise LabError("no Debian mirror in apt's sources: give the kernel's source by --source")


def from_debian(state: Path, say: Say, series: str = "") -> Source:
    """The linux-source package of ``series``, as ``6.12``; of the newest where it is empty.

    ``state`` holds apt's lists. LabError without Debian's apt, or where there is no such package.
    """
    if not KEYRING.exists():
        raise LabError(
            "this is not a Debian with its keyring: give the kernel's source by --source"
        )
    base = mirror()
    for name in ("lists/partial", "cache/archives/partial"):
        (state / name).mkdir(parents=True, exist_ok=True)
    listing = state / "sources.list"
    listing.write_text(
        "".join(f"deb [signed-by={KEYRING}] {base} {suite} main\n" for suite in SUITES)
    )
    options = [
        *("-o", f"Dir::Etc::sourcelist={listing}", "-o", "Dir::Etc::sourceparts=-"),
        *("-o", f"Dir::State::lists={state / 'lists'}", "-o", f"Dir::Cache={state / 'cache'}"),
        *("-o", "Dir::Etc::preferencesparts=-", "-o", "APT::Sandbox::User=root"),
    ]
    say("reading Debian's package lists")
    run(["apt-get", *options, "-qq", "update"])
    names = run(["apt-cache", *options, "search", "--names-only", r"^linux-source-[0-9.]+$"])
    versions = [
        tuple(map(int, found.group(1).split(".")))
        for found in re.finditer(r"^linux-source-([0-9]+(?:\.[0-9]+)*) ", names, re.M)
    ]
    if series:
        versions = [each for each in versions if each == tuple(map(int, series.split(".")))]
    if not versions:
        name = f"linux-source-{series}" if series else "linux-source"
        raise LabError(f"the Debian mirror has no {name} package")
    package = "linux-source-" + ".".join(map(str, max(versions)))
    shown = run(["apt-cache", *options, "show", "--no-all-versions", package])
    found = re.search(r"^Version: (\S+)$", shown, re.M)
    version = found.group(1) if found else "unknown"

    def fetch(work: Path, say: Say) -> Path:
        say(f"downloading {package} {version}")
        run(["apt-get", *options, "-qq", "download", package], cwd=work)
        deb = next(work.glob("linux-source-*.deb"))
        run(["dpkg-deb", "-x", str(deb), str(work / "deb")])
        deb.unlink()
        tree = _unpack(next((work / "deb/usr/src").glob("linux-source-*.tar.xz")), work, say)
        shutil.rmtree(work / "deb")
        return tree

    return Source(f"{package}_{version}", fetch)
