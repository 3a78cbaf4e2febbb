"""Builds the lab's kernel: User-Mode Linux with VFIO, mtty and mlx5_vfio_pci.

Kernels are cached by source and configuration; a build appears in the cache whole or not at all.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from importlib import resources
from pathlib import Path

from precopy.lab.errors import LabError
from precopy.lab.source import Say, Source, from_debian, from_path, run

#: What a build needs beside make and a shell: command, and Debian's package of it.
TOOLS = {
    "gcc": "gcc",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
}

#: A line about every so many compiled files.
_EVERY = 250


def cache_dir() -> Path:
    """``$PRECOPY_CACHE``, else ``precopy`` in the user's cache directory."""
    own = os.environ.get("PRECOPY_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "precopy"


def fragment() -> str:
    """The options that the lab's kernel has on top of UML's default configuration."""
    return resources.files("precopy.lab").joinpath("config.fragment").read_text()


def built() -> Path | None:
    """The kernel built last, or None."""
    link = cache_dir() / "kernel"
    return link.resolve() if link.exists() else None


def _require_tools(say: Say) -> None:
    missing = [package for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if not missing:
        return
    if os.geteuid():
        raise LabError(
            f"a kernel build needs {', '.join(missing)}: apt-get install {' '.join(missing)}"
        )
    say(f"installing {', '.join(missing)}")
    try:
        run(["apt-get", "install", "-qq", "-y", *missing])
    except LabError:
        run(["apt-get", "-qq", "update"])
        run(["apt-get", "install", "-qq", "-y", *missing])


def build(
    say: Say, *, source: Path | None = None, options: str | None = None, jobs: int | None = None
) -> Path:
    """The kernel, built unless the cache has it. ``options``: lines for the configuration, on top.

    LabError where the source, a tool or an option is missing, or the compiler fails.
    """
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    config = fragment() + (options or "")
    with open(cache / "lock", "w") as lock:
        # Two builds at once would do the same work twice.
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = None if source else _cached(cache, config)
        if found is not None:
            say("the kernel is built already")
            return found
        _require_tools(say)
        origin = from_path(source) if source else from_debian(cache / "apt", say)
        key = hashlib.sha256(f"{origin.name}\n{config}".encode()).hexdigest()[:16]
        kernel = cache / f"linux-{key}"
        if not kernel.exists():
            _compile(origin, config, kernel, jobs or os.cpu_count() or 1, say)
        _link(cache / "kernel", kernel)
        if source is None:
            (cache / "kernel.config").write_text(config)
        else:
            # A kernel of another source is not to be taken for Debian's later.
            (cache / "kernel.config").unlink(missing_ok=True)
    say(f"the kernel is {kernel.name}, of {origin.name}")
    return kernel


def _cached(cache: Path, config: str) -> Path | None:
    """The last kernel, where its configuration is the one asked for: no need to ask the mirror."""
    noted, kernel = cache / "kernel.config", built()
    if kernel is not None and noted.exists() and noted.read_text() == config:
        return kernel
    return None


def _link(link: Path, target: Path) -> None:
    new = link.with_name(link.name + ".new")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    new.rename(link)


def _compile(origin: Source, config: str, kernel: Path, jobs: int, say: Say) -> None:
    with tempfile.TemporaryDirectory(dir=kernel.parent, prefix="build-") as directory:
        work = Path(directory)
        tree = origin.fetch(work, say)
        say("configuring")
        run(["make", "ARCH=um", "x86_64_defconfig"], cwd=tree)
        with open(tree / ".config", "a") as file:
            file.write(config)
        run(["make", "ARCH=um", "olddefconfig"], cwd=tree)
        missing = _lacking(config, (tree / ".config").read_text())
        if missing:
            raise LabError(f"this kernel source does not take {', '.join(missing)}")
        log = kernel.with_suffix(".log")
        _make(tree, jobs, log, say)
        shutil.copy2(tree / "linux", work / "linux.done")
        run(["strip", str(work / "linux.done")])
        (work / "linux.done").rename(kernel)


def _lacking(wanted: str, config: str) -> list[str]:
    """Options of ``wanted`` that are not in ``config`` as they were asked for."""
    has = set(config.splitlines())
    lines = (line.strip() for line in wanted.splitlines())
    return [line for line in lines if line and not line.startswith("#") and line not in has]


def _make(tree: Path, jobs: int, log: Path, say: Say) -> None:
    say(f"compiling with {jobs} jobs (about 5 minutes on 2 cores)")
    count = 0
    with (
        open(log, "w") as out,
        subprocess.Popen(
            ["make", "ARCH=um", f"-j{jobs}", "linux"],
            cwd=tree,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as make,
    ):
        assert make.stdout is not None
        for line in make.stdout:
            out.write(line)
            if line.lstrip().startswith("CC "):
                count += 1
                if count % _EVERY == 0:
                    say(f"{count} files compiled")
    if make.returncode or not (tree / "linux").exists():
        raise LabError(f"the kernel does not compile: see {log}")
