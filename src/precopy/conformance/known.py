"""Known differences: a TOML file that states which failures are expected of a device, and why.

::

    [[known]]
    requirement = "R38"            # or: check = "name-of-a-check"
    reason = "a read after the session gives 0, not ENODEV"
    reference = "drivers/vfio/pci/some/main.c"
    verdict = "kernel down"        # only where the check does not just fail
    kernel = "6.12"                # only where not all kernels have it: the series that has
    came = "Out of memory"         # only where the check may fail otherwise: a part of what came
"""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from precopy.conformance.check import CHECKS, Check
from precopy.conformance.outcome import FAILURES, Known, Result, Verdict
from precopy.conformance.requirements import REQUIREMENTS, number_of

#: What is known of drivers that have been looked at, a file for each.
DRIVERS = Path(__file__).parent / "known"

_KEYS = frozenset({"check", "requirement", "reason", "reference", "verdict", "kernel", "came"})

#: What may be expected of a check. A hang is never.
_EXPECTED = {each.value: each for each in (Verdict.FAIL, Verdict.KERNEL_DOWN)}


class KnownError(ValueError):
    """One line: what is wrong with a file of known differences."""


def load(path: Path, checks: Mapping[str, Check] = CHECKS) -> list[Known]:
    """The differences that ``path`` states, or one of :data:`DRIVERS` by its name.

    KnownError, also where it can't be read.
    """
    of_driver = DRIVERS / f"{path.name}.toml"
    if len(path.parts) == 1 and not path.exists() and of_driver.exists():
        path = of_driver
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise KnownError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise KnownError(f"{path}: {error}") from error
    entries = data.get("known", [])
    if set(data) - {"known"} or not isinstance(entries, list):
        raise KnownError(f"{path}: write tables [[known]] and nothing else")
    return [_entry(f"{path}: [[known]] {at}", each, checks) for at, each in enumerate(entries, 1)]


def _entry(where: str, entry: Any, checks: Mapping[str, Check]) -> Known:
    if not isinstance(entry, dict) or not all(isinstance(each, str) for each in entry.values()):
        raise KnownError(f"{where}: each key has a text as its value")
    if strange := sorted(set(entry) - _KEYS):
        raise KnownError(
            f"{where}: unknown key {strange[0]!r}; there are {', '.join(sorted(_KEYS))}"
        )
    name, requirement = entry.get("check", ""), entry.get("requirement", "")
    if bool(name) == bool(requirement):
        raise KnownError(f"{where}: state either a check or a requirement")
    if not entry.get("reason", "").strip():
        raise KnownError(f"{where}: state the reason")
    if name and name not in checks:
        raise KnownError(f"{where}: there is no check {name!r}; precopy conform --list has them")
    number = 0
    if requirement:
        number = number_of(requirement)
        if number not in REQUIREMENTS:
            raise KnownError(f"{where}: there is no requirement {requirement!r}")
    verdict = entry.get("verdict", Verdict.FAIL.value)
    if verdict not in _EXPECTED:
        raise KnownError(f"{where}: the verdict is {' or '.join(_EXPECTED)}, not {verdict!r}")
    kernel = entry.get("kernel", "")
    if kernel and not re.fullmatch(r"\d+\.\d+(\.\d+)?", kernel):
        raise KnownError(f"{where}: kernel {kernel!r}: write a series, as 6.12")
    reference = entry.get("reference", "").strip()
    return Known(
        name,
        number,
        entry["reason"].strip(),
        reference,
        _EXPECTED[verdict],
        kernel,
        entry.get("came", ""),
    )


def of_kernel(stated: Sequence[Known], release: str) -> list[Known]:
    """Those that are stated of all kernels, or of the series of ``release``, as uname has it."""
    return [
        each
        for each in stated
        if not each.kernel or re.match(rf"{re.escape(each.kernel)}(?!\d)", release)
    ]


def apply(results: Sequence[Result], stated: Sequence[Known]) -> list[Known]:
    """Mark the failures that are stated; the stated ones that are gone: what they are about was
    checked, and nothing failed. A hang, and what was not run after it, is never expected."""
    gone = []
    for known in stated:
        covered = [each for each in results if known.covers(each.check)]
        failed = [each for each in covered if known.expects(each)]
        for result in failed:
            result.known = result.known or known
        passed = any(each.verdict is Verdict.PASS for each in covered)
        if passed and not any(each.verdict in FAILURES for each in covered):
            gone.append(known)
    return gone
