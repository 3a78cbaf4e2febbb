"""Builds the lab's kernels: User-Mode Linux with VFIO, mtty and mlx5_vfio_pci.

Kernels are cached by source, configuration, version and variant; a build appears in the cache whole or not at
all. Beside the kernel ``linux-KEY`` lies ``linux-KEY.notes``: its symbols, and what gcov needs.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
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

#: The kernel that is meant where none is named.
ORDINARY = "ordinary"

#: The kernels that there are, and the files with the options of each.
VARIANTS: Mapping[str, Sequence[str]] = {
    ORDINARY: ("config.fragment",),
    "debug": ("config.fragment", "debug.fragment"),
}

#: The version that is meant where none is named: of the newest linux-source package that there is.
NEWEST = "newest"

#: The versions that there are: the newest, and series of Debian's with the files of what each wants
#: otherwise. 6.12 is that of Debian 13.
VERSIONS: Mapping[str, Sequence[str]] = {
    NEWEST: (),
    "6.12": ("linux-6.12.fragment",),
}

#: The driver whose coverage is measured (see ``coverage``): its directory, and its files.
COVERED_DIRECTORY = "drivers/vfio/pci/mlx5"
COVERED = ("main", "cmd")

#: Large parts that allnoconfig leaves in, since only an expert may take them out.
_EXPERT = """\
CONFIG_EXPERT=y
# CONFIG_BLOCK is not set
# CONFIG_INPUT is not set
# CONFIG_IO_URING is not set
"""

#: A change in how a kernel is built, that its configuration does not show, gets a new number here.
_RECIPE = 2

#: A line about every so many compiled files.
_EVERY = 250

_SETTING = re.compile(r"(CONFIG_\w+)=.*|# (CONFIG_\w+) is not set")


def cache_dir() -> Path:
    """``$PRECOPY_CACHE``, else ``precopy`` in the user's cache directory."""
    own = os.environ.get("PRECOPY_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "precopy"


def fragment(variant: str = ORDINARY, version: str = NEWEST) -> str:
    """The options of a kernel. LabError where there is no such ``variant`` or ``version``."""
    if variant not in VARIANTS:
        raise LabError(f"there is no kernel variant {variant!r}: write {' or '.join(VARIANTS)}")
    if version not in VERSIONS:
        raise LabError(f"there is no kernel version {version!r}: write {' or '.join(VERSIONS)}")
    files = resources.files("precopy.lab")
    names = (*VARIANTS[variant], *VERSIONS[version])
    return "".join(files.joinpath(name).read_text() for name in names)


def _link(variant: str, version: str) -> Path:
    words = ["kernel"]
    words += [] if version == NEWEST else [version]
    words += [] if variant == ORDINARY else [variant]
    return cache_dir() / "-".join(words)


def built(variant: str = ORDINARY, version: str = NEWEST) -> Path | None:
    """The kernel of ``variant`` and ``version`` built last, or None."""
    link = _link(variant, version)
    return link.resolve() if link.exists() else None


def notes(kernel: Path) -> Path:
    """The directory with what is known of ``kernel``; one built by an older precopy has none."""
    return kernel.with_name(kernel.name + ".notes")


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
    say: Say,
    *,
    variants: Sequence[str] = (ORDINARY,),
    version: str = NEWEST,
    source: Path | None = None,
    options: str | None = None,
    jobs: int | None = None,
) -> list[Path]:
    """A kernel for each of ``variants``, built unless the cache has it, from one unpacked source.

    ``version``: of Debian's source, and which kernel it is called where ``source`` is given.
    ``options``: lines for the configuration, on top. LabError where the source, a tool, a variant or
    an option is missing, or the compiler fails.
    """
    cache = cache_dir()
    configs = {
        variant: f"# recipe {_RECIPE}\n{fragment(variant, version)}{options or ''}"
        for variant in variants
    }
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / "lock", "w") as lock:
        # Two builds at once would do the same work twice.
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = {
            variant: config
            for variant, config in configs.items()
            if source or not _is_built(_link(variant, version), config)
        }
        if wanted:
            _require_tools(say)
            series = "" if version == NEWEST else version
            origin = from_path(source) if source else from_debian(cache / "apt", say, series)
            links = {variant: _link(variant, version) for variant in wanted}
            _provide(origin, wanted, links, jobs or os.cpu_count() or 1, say)
            for variant, config in wanted.items():
                # A kernel of another source is not to be taken for Debian's later.
                _note(links[variant], None if source else config)
    kernels = []
    for variant in variants:
        kernel = built(variant, version)
        assert kernel is not None
        say(f"the {variant} kernel is {kernel.name}" + ("" if variant in wanted else " already"))
        kernels.append(kernel)
    return kernels


def _config_note(link: Path) -> Path:
    return link.with_name(link.name + ".config")


def _is_built(link: Path, config: str) -> bool:
    """Whether the last kernel has the configuration asked for: no need to ask the mirror then."""
    noted = _config_note(link)
    return link.exists() and noted.exists() and noted.read_text() == config


def _note(link: Path, config: str | None) -> None:
    if config is None:
        _config_note(link).unlink(missing_ok=True)
    else:
        _config_note(link).write_text(config)


def _name(origin: Source, config: str) -> str:
    return f"linux-{hashlib.sha256(f'{origin.name} {config}'.encode()).hexdigest()[:16]}"


def _provide(
    origin: Source,
    configs: Mapping[str, str],
    links: Mapping[str, Path],
    jobs: int,
    say: Say,
) -> None:
    """Compile those kernels that the cache has not, and link all."""
    cache = cache_dir()
    kernels = {variant: cache / _name(origin, config) for variant, config in configs.items()}
    missing = [variant for variant, kernel in kernels.items() if not kernel.exists()]
    if missing:
        with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as directory:
            work = Path(directory)
            tree = origin.fetch(work, say)
            for variant in missing:
                say(f"configuring the {variant} kernel")
                _configure(tree, configs[variant])
                _compile(tree, work, kernels[variant], jobs, say)
    for variant, kernel in kernels.items():
        link = links[variant]
        new = link.with_name(link.name + ".new")
        new.unlink(missing_ok=True)
        new.symlink_to(kernel.name)
        new.rename(link)


# --- Configuration ------------------------------------------------------------------------------


def _configure(tree: Path, config: str) -> None:
    wanted = tree / "precopy.config"
    wanted.write_text(config)
    run(["make", "ARCH=um", f"KCONFIG_ALLCONFIG={wanted.name}", "allnoconfig"], cwd=tree)
    with open(tree / ".config", "a") as file:
        file.write(_EXPERT + config)
    run(["make", "ARCH=um", "olddefconfig"], cwd=tree)
    missing = lacking(config, (tree / ".config").read_text())
    if missing:
        raise LabError(f"this kernel source does not take {', '.join(missing)}")


def _settings(config: str) -> dict[str, str]:
    """Lines of a configuration by their option, the last of each; what is no option by itself."""
    found = {}
    for line in (line.strip() for line in config.splitlines()):
        match = _SETTING.fullmatch(line)
        if match:
            found[match.group(1) or match.group(2)] = line
        elif line and not line.startswith("#"):
            found[line] = line
    return found


def lacking(wanted: str, config: str) -> list[str]:
    """Lines of ``wanted`` that are not so in ``config``; of two about one option the last counts."""
    has = _settings(config)
    # An option that is off may be left out altogether.
    return [
        line
        for option, line in _settings(wanted).items()
        if has.get(option, f"# {option} is not set") != line
    ]


# --- Compilation --------------------------------------------------------------------------------


def _compile(tree: Path, work: Path, kernel: Path, jobs: int, say: Say) -> None:
    log = kernel.with_name(kernel.name + ".log")
    _make(tree, jobs, log, say)
    done, kept = work / "linux.done", work / "notes.done"
    kept.mkdir()
    for name in COVERED:
        shutil.copy2(tree / COVERED_DIRECTORY / f"{name}.c", kept)
        counts = tree / COVERED_DIRECTORY / f"{name}.gcno"
        if counts.exists():
            shutil.copy2(counts, kept)
    shutil.copy2(tree / "System.map", kept)
    shutil.copy2(tree / "linux", done)
    run(["strip", str(done)])
    # What an interrupted build has left.
    shutil.rmtree(notes(kernel), ignore_errors=True)
    kept.rename(notes(kernel))
    done.rename(kernel)


def coverage_variables() -> list[str]:
    """Variables for make, so that the files of :data:`COVERED` count how often each line runs.

    Kbuild looks for a variable by a file's bare name; other directories have files of that name.
    """
    here = f"$(if $(filter {COVERED_DIRECTORY},$(obj)),y,n)"
    return [f"GCOV_PROFILE_{name}.o={here}" for name in COVERED]


def _make(tree: Path, jobs: int, log: Path, say: Say) -> None:
    say(f"compiling with {jobs} jobs (about 3 minutes on 2 cores)")
    count = 0
    with (
        open(log, "w") as out,
        subprocess.Popen(
            ["make", "ARCH=um", f"-j{jobs}", "linux", *coverage_variables()],
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
