"""How much of the kernel's mlx5 VFIO driver the lab has run: lines of its main.c and cmd.c.

Every boot that is asked to leaves its counters in a directory (:func:`keep`); :func:`measure` adds
them up, by way of gcov. Why a line is never reached stands in ``unreached.toml``, by function and
text, so that it holds for the next version of the driver.
"""

import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from itertools import groupby
from pathlib import Path

from precopy.lab.build import COVERED, COVERED_DIRECTORY, built, cache_dir, notes
from precopy.lab.errors import LabError

#: The files that are measured.
FILES = tuple(f"{name}.c" for name in COVERED)

#: Boots keep their counters where this says, if it says anything.
ENVIRONMENT = "PRECOPY_LAB_COVERAGE"


def default_directory() -> Path:
    """Where counters are looked for, unless told otherwise."""
    return Path(os.environ.get(ENVIRONMENT) or cache_dir() / "coverage")


# --- Counters -----------------------------------------------------------------------------------


def keep(counters: Path, kernel: Path, directory: Path) -> None:
    """Add the .gcda files in ``counters``, of one boot of ``kernel``, to those in ``directory``."""
    if not any(counters.glob("*.gcda")):
        return
    of_kernel = directory / kernel.name
    of_kernel.mkdir(parents=True, exist_ok=True)
    # Several kernels may run at once; each has a directory of its own, that appears whole.
    partial = Path(tempfile.mkdtemp(dir=of_kernel, prefix=".partial-"))
    for file in counters.glob("*.gcda"):
        shutil.copy(file, partial)
    partial.rename(of_kernel / partial.name.removeprefix(".partial-"))


def clear(directory: Path) -> None:
    """Forget all counters in ``directory``, and nothing else that may be there."""
    for kernel in directory.glob("linux-*"):
        shutil.rmtree(kernel)


# --- Lines --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the driver that the compiler made code of."""

    file: str
    number: int
    function: str
    text: str
    count: int


@dataclass(frozen=True, slots=True)
class Reason:
    """Why lines of ``function`` in ``file`` that contain ``snippet`` are never run.

    An empty ``snippet``: all of the function.
    """

    file: str
    function: str
    snippet: str
    reason: str

    def explains(self, line: Line) -> bool:
        same = (self.file, self.function) == (line.file, line.function)
        return same and self.snippet in line.text


@dataclass(frozen=True, slots=True)
class Coverage:
    """The lines of the driver, after ``boots`` boots."""

    lines: Sequence[Line]
    boots: int
    reasons: Sequence[Reason] = ()
    _why: dict[tuple[str, int], Reason] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for line in self.missed():
            for reason in self.reasons:
                if reason.explains(line):
                    self._why[line.file, line.number] = reason
                    break

    def missed(self, file: str | None = None) -> list[Line]:
        return [line for line in self.lines if not line.count and file in (None, line.file)]

    def why(self, line: Line) -> str:
        """The reason for which ``line`` is never run; empty where none is known."""
        reason = self._why.get((line.file, line.number))
        return reason.reason if reason else ""

    def percent(self, file: str | None = None) -> float:
        """Of all lines, of one file or of both."""
        of = [line for line in self.lines if file in (None, line.file)]
        return 100 * sum(1 for line in of if line.count) / len(of) if of else 0.0

    def stale(self) -> list[Reason]:
        """Reasons for lines that have been run, or that there are not."""
        used = set(map(id, self._why.values()))
        return [reason for reason in self.reasons if id(reason) not in used]


def reasons() -> list[Reason]:
    """The table of the repository."""
    text = resources.files("precopy.lab").joinpath("unreached.toml").read_text()
    return [Reason(**each) for each in tomllib.loads(text)["unreached"]]


def measure(directory: Path) -> Coverage:
    """What the ordinary kernel has run in all boots that left counters in ``directory``.

    LabError where there is no such kernel, no counters of it, or gcov can't read them.
    """
    kernel = built()
    if kernel is None or not notes(kernel).exists():
        raise LabError("no kernel that counts has been built yet: run precopy lab build")
    boots = sorted((directory / kernel.name).glob("[!.]*"))
    if not boots:
        raise LabError(
            f"{directory} holds no counters of {kernel.name}: give a lab run {ENVIRONMENT}={directory},"
            " or the tests in tests/lab --lab-coverage"
        )
    texts = {file: (notes(kernel) / file).read_text().splitlines() for file in FILES}
    lines = [
        Line(file, number, function, texts[file][number - 1].strip(), count)
        for (file, number), (function, count) in sorted(_counts(boots, notes(kernel)).items())
    ]
    return Coverage(lines, len(boots), reasons())


def _counts(boots: Sequence[Path], of: Path) -> dict[tuple[str, int], tuple[str, int]]:
    """Function and count by file and line, over ``boots`` of a kernel with notes ``of``."""
    sums: dict[tuple[str, int], tuple[str, int]] = {}
    with tempfile.TemporaryDirectory() as directory:
        names = []
        # gcov looks for a file's notes beside its counters.
        for number, boot in enumerate(boots):
            here = Path(directory, str(number))
            here.mkdir()
            for name in COVERED:
                if (boot / f"{name}.gcda").exists():
                    (here / f"{name}.gcda").symlink_to((boot / f"{name}.gcda").resolve())
                    (here / f"{name}.gcno").symlink_to((of / f"{name}.gcno").resolve())
                    names.append(f"{number}/{name}.gcda")
        for told in _gcov(names, Path(directory)):
            for file in told["files"]:
                name = Path(file["file"]).name
                if name not in FILES or not file["file"].endswith(f"{COVERED_DIRECTORY}/{name}"):
                    # A header's inline functions.
                    continue
                for line in file["lines"]:
                    key = name, line["line_number"]
                    _, before = sums.get(key, ("", 0))
                    sums[key] = line.get("function_name", ""), before + line["count"]
    return sums


def _gcov(names: Sequence[str], directory: Path) -> list[dict]:  # type: ignore[type-arg]
    command = ["gcov", "--json-format", "--stdout", *names]
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise LabError("gcov is not installed: it is in the same package as gcc") from error
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(answers) != len(names) or "mismatch" in done.stderr:
        said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise LabError(f"gcov can't read the kernel's counters: {said}")
    return answers


# --- The report ---------------------------------------------------------------------------------


def _ranges(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines of one function and one reason that follow each other, with nothing run in between."""
    groups: list[list[Line]] = []
    for line in lines:
        last = groups[-1][-1] if groups else None
        near = last is not None and last.file == line.file and line.number - last.number <= 2
        if last is not None and near and last.function == line.function:
            groups[-1].append(line)
        else:
            groups.append([line])
    return groups


def report(coverage: Coverage) -> list[str]:
    """What there is to say of ``coverage``, line by line: figures, then what was never run and why."""
    missed = coverage.missed()
    without = [line for line in missed if not coverage.why(line)]
    told = [f"{coverage.boots} boots"]
    for file in (*FILES, None):
        of = [line for line in coverage.lines if file in (None, line.file)]
        told.append(
            f"{file or 'both'}: {coverage.percent(file):.1f} % of {len(of)} lines,"
            f" {len(coverage.missed(file))} never run,"
            f" {sum(1 for line in without if file in (None, line.file))} of them without a reason"
        )
    by_reason = sorted(missed, key=lambda line: coverage.why(line))
    for reason, group in groupby(by_reason, key=lambda line: coverage.why(line)):
        lines = sorted(group, key=lambda line: (line.file, line.number))
        told += ["", reason or "Never run, and no reason is known:"]
        for part in _ranges(lines):
            told.append(f"  {part[0].file}: {part[0].function}")
            told += [f"    {line.number:5} {' '.join(line.text.split())}" for line in part]
    for each in coverage.stale():
        where = f"{each.file}: {each.function}" + (f": {each.snippet}" if each.snippet else "")
        told += ["", f"No line is left to this reason: {where}"]
    return told
